"""The gRPC side as one thing: services, health, reflection, the port, the drain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from inference import grpc_service_pb2, grpc_service_pb2_grpc
from offramp.v1 import classification_pb2, classification_pb2_grpc, model_pb2, model_pb2_grpc
from offramp_server.rpc.access import Access
from offramp_server.rpc.call import Tracing
from offramp_server.rpc.calls import OpenCalls, StreamSlots
from offramp_server.rpc.classification import ClassificationLimits, ClassificationServicer
from offramp_server.rpc.images import ImageReader
from offramp_server.rpc.interceptors import CallInterceptor
from offramp_server.rpc.model_service import ModelServicer
from offramp_server.rpc.models import Catalogue
from offramp_server.rpc.oip.service import InferenceServicer, ServerIdentity
from offramp_server.rpc.repository import ModelRepository
from offramp_server.security.certificates import ServerCertificates
from offramp_server.security.tokens import Tokens

logger = logging.getLogger(__name__)

FLUSH_S = 0.25
"""For the last answers to leave the socket; health watches never end by themselves and are cut after it."""

SERVICES = (
    classification_pb2.DESCRIPTOR.services_by_name["ClassificationService"].full_name,
    model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)


@dataclass(frozen=True, slots=True)
class Doors:
    """How callers come in."""

    certificates: ServerCertificates | None = None
    """For TLS; None talks in the clear."""
    tokens: Tokens | None = None
    """Who is let in; None lets everybody in."""
    tracing: Tracing | None = None


class GrpcServer:
    """Listens from `start` on, says SERVING while a model is served, drains in `stop`."""

    def __init__(
        self,
        catalogue: Catalogue,
        repository: ModelRepository,
        images: ImageReader,
        limits: ClassificationLimits,
        identity: ServerIdentity,
        options: Sequence[tuple[str, int]],
        clock: Callable[[], float],
        doors: Doors,
    ) -> None:
        """`options` are gRPC channel arguments; `clock` is the engines', in seconds."""
        self._catalogue, self._certificates = catalogue, doors.certificates
        self.is_ready = False
        """Whether frames are taken; what the health service says, too."""
        self._draining = asyncio.Event()
        self._open_calls = OpenCalls()
        self._health = health.aio.HealthServicer()
        interceptor = CallInterceptor(frozenset(SERVICES), self._open_calls, Access(doors.tokens), doors.tracing)
        self._server = grpc.aio.server(interceptors=[interceptor], options=options)
        streams = StreamSlots(limits.max_streams)
        classify = ClassificationServicer(catalogue, images, limits.stream, streams, self._draining, clock)
        classification_pb2_grpc.add_ClassificationServiceServicer_to_server(classify, self._server)  # type: ignore[no-untyped-call]
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(catalogue), self._server)  # type: ignore[no-untyped-call]
        infer = InferenceServicer(
            catalogue, repository, images, limits.stream, streams, identity, lambda: self.is_ready, self._draining, clock
        )
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(infer, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self, host: str, port: int) -> int:
        """Listen, port 0 meaning a free one, NOT_SERVING; returns the port. Raises RuntimeError."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        address = f"{host}:{port}"
        if self._certificates is None:
            bound = self._server.add_insecure_port(address)
        else:
            bound = self._server.add_secure_port(address, self._certificates.credentials())
        await self._server.start()
        return bound

    async def update_health(self) -> None:
        """Be ready, and say so, while a model is served and the server does not drain; call it when the catalogue changed."""
        self.is_ready = bool(self._catalogue.models) and not self._draining.is_set()
        response = health_pb2.HealthCheckResponse
        await self._set_health(response.SERVING if self.is_ready else response.NOT_SERVING)

    async def stop(self, timeout_s: float) -> None:
        """NOT_SERVING, no new calls, streams end; returns when open calls have been answered, or were cut at the timeout."""
        self._draining.set()
        self.is_ready = False
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._server.stop(timeout_s))  # refuses new calls from here on
        try:
            await asyncio.wait_for(self._open_calls.wait_idle(), timeout_s)
        except TimeoutError:
            logger.warning("drain timeout: %d calls are cut off", self._open_calls.count)
        await self._server.stop(FLUSH_S)
        await stopping

    async def _set_health(self, status: int) -> None:
        for service in ("", *SERVICES):
            await self._health.set(service, status)
