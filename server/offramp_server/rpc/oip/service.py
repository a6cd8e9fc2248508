"""GRPCInferenceService: health, metadata, inference, statistics and the repository."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from inference import grpc_service_pb2 as oip
from inference import grpc_service_pb2_grpc, model_config_pb2
from offramp_server.errors import ModelNotFoundError, OfframpError, UnavailableError, UnsupportedError
from offramp_server.rpc.calls import StreamSlots
from offramp_server.rpc.images import ImageReader
from offramp_server.rpc.models import Catalogue, ServedModel
from offramp_server.rpc.oip import describe
from offramp_server.rpc.oip.infer import Inference
from offramp_server.rpc.oip.repository import check_repository, read_load, read_unload, write_index
from offramp_server.rpc.oip.stream import InferenceStream
from offramp_server.rpc.oip.unsupported import UnsupportedMethods
from offramp_server.rpc.repository import ModelRepository
from offramp_server.rpc.stream import StreamLimits

EXTENSIONS = ("classification", "model_configuration", "model_repository", "parameters", "statistics")
GRPC_ERROR_HEADER = "triton_grpc_error"
"""`true` in a stream's metadata asks for the first error as the call's status, in place of a message."""

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What the server tells of itself."""

    version: str
    repository_control: bool
    """Whether callers may load and unload models."""


class InferenceServicer(UnsupportedMethods, grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """Implements inference.GRPCInferenceService on the same models and engines as our own services."""

    def __init__(
        self,
        catalogue: Catalogue,
        repository: ModelRepository,
        images: ImageReader,
        limits: StreamLimits,
        streams: StreamSlots,
        identity: ServerIdentity,
        is_ready: Callable[[], bool],
        draining: asyncio.Event,
        clock: Callable[[], float],
    ) -> None:
        """`streams` are the places of all services; `is_ready` is what the health service says; `clock` is the engine's."""
        self._catalogue, self._repository, self._limits, self._streams = catalogue, repository, limits, streams
        self._identity, self._is_ready, self._draining, self._clock = identity, is_ready, draining, clock
        self._inference = Inference(images, limits.max_batch_frames, clock)

    # --- health and metadata ------------------------------------------------------------------------------------------

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:  # noqa: N802
        """True where it can be asked."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:  # noqa: N802
        """What /readyz and grpc.health.v1 say."""
        return oip.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:  # noqa: N802
        """False for a model that is not there, too."""
        try:
            self._catalogue.find(request.name, request.version)
        except OfframpError:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=self._is_ready())

    async def ServerMetadata(  # noqa: N802
        self, request: oip.ServerMetadataRequest, context: Context
    ) -> oip.ServerMetadataResponse:
        """Name, version, extensions."""
        return oip.ServerMetadataResponse(name="offramp", version=self._identity.version, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Context) -> oip.ModelMetadataResponse:  # noqa: N802
        """Tensors of a model. Raises ModelNotFoundError or UnavailableError."""
        model = self._catalogue.find(request.name, request.version)
        versions = [model.version] if request.version else self._versions(model.name)
        return describe.write_metadata(model, versions)

    async def ModelConfig(  # noqa: N802
        self, request: model_config_pb2.ModelConfigRequest, context: Context
    ) -> model_config_pb2.ModelConfigResponse:
        """Configuration of a model. Raises ModelNotFoundError or UnavailableError."""
        model = self._catalogue.find(request.name, request.version)
        return model_config_pb2.ModelConfigResponse(config=describe.write_config(model, self._inference.max_frames))

    async def ModelStatistics(  # noqa: N802
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        """What models have done. Raises ModelNotFoundError."""
        models = [
            model
            for model in self._catalogue.models
            if request.name in ("", model.name) and request.version in ("", model.version)
        ]
        if not models and (request.name or request.version):
            raise ModelNotFoundError(f"no model {request.name!r} of version {request.version!r} is loaded")
        return oip.ModelStatisticsResponse(model_stats=[describe.write_statistics(model) for model in models])

    # --- inference ----------------------------------------------------------------------------------------------------

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:  # noqa: N802
        """Run a model on one request; every error travels as the call's status."""
        self._refuse_while_draining()
        model = self._catalogue.find(request.model_name, request.model_version)
        with model.calls:
            return await self._inference.run(model, request, self._deadline(context))

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> None:
        """Run models on requests as they come; see InferenceStream."""
        self._refuse_while_draining()
        with self._streams:
            stream = InferenceStream(
                requests,
                context.write,
                self._catalogue,
                self._inference,
                self._limits.window,
                self._draining,
                self._deadline(context),
                errors_end_it=_wants_status(context),
            )
            await stream.run()

    # --- the repository -----------------------------------------------------------------------------------------------

    async def RepositoryIndex(  # noqa: N802
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        """Every model version in the store or served."""
        check_repository(request.repository_name)
        return write_index(await self._repository.index(), request.ready)

    async def RepositoryModelLoad(  # noqa: N802
        self, request: oip.RepositoryModelLoadRequest, context: Context
    ) -> oip.RepositoryModelLoadResponse:
        """Load a model, or swap its versions. Raises ModelNotFoundError or ModelLoadError; then nothing has changed."""
        self._check_control(request.repository_name)
        await self._repository.load(request.model_name, read_load(request))
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        """Unload every version of a model. Raises ModelNotFoundError."""
        self._check_control(request.repository_name)
        await self._repository.unload(read_unload(request))
        return oip.RepositoryModelUnloadResponse()

    # --- bookkeeping --------------------------------------------------------------------------------------------------

    def _versions(self, name: str) -> list[str]:
        found: list[ServedModel] = [model for model in self._catalogue.models if model.name == name]
        return [model.version for model in reversed(found)]

    def _check_control(self, repository_name: str) -> None:
        self._refuse_while_draining()
        check_repository(repository_name)
        if not self._identity.repository_control:
            raise UnsupportedError("models can't be loaded and unloaded here: start the server with --model-control explicit")

    def _refuse_while_draining(self) -> None:
        if self._draining.is_set():
            raise UnavailableError("the server is draining: send to another one")

    def _deadline(self, context: Context) -> float | None:
        remaining: float | None = context.time_remaining()
        return None if remaining is None else self._clock() + remaining


def _wants_status(context: Context) -> bool:
    for key, value in context.invocation_metadata() or ():
        if key == GRPC_ERROR_HEADER:
            return str(value).lower() == "true"
    return False
