"""ClassificationService: one frame, or a stream of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from offramp_server.errors import InvalidRequestError, UnavailableError
from offramp_server.rpc.calls import StreamSlots
from offramp_server.rpc.convert import classify_frame
from offramp_server.rpc.images import ImageReader
from offramp_server.rpc.models import Catalogue
from offramp_server.rpc.stream import ClassificationStream, StreamLimits


@dataclass(frozen=True, slots=True)
class ClassificationLimits:
    """Bounds of the services that classify."""

    max_streams: int
    """Open streams; more are refused."""
    stream: StreamLimits


class ClassificationServicer(classification_pb2_grpc.ClassificationServiceServicer):
    """Implements offramp.v1.ClassificationService."""

    def __init__(
        self,
        catalogue: Catalogue,
        images: ImageReader,
        limits: StreamLimits,
        streams: StreamSlots,
        draining: asyncio.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`streams` are the places of all services; `draining` ends streams and refuses calls once it is set.

        `clock` is the engine's, in seconds.
        """
        self._catalogue, self._images, self._limits, self._draining, self._clock = catalogue, images, limits, draining, clock
        self._streams = streams

    async def Classify(  # noqa: N802  # the wire's name
        self, request: pb.ClassifyRequest, context: grpc.aio.ServicerContext[pb.ClassifyRequest, pb.ClassifyResponse]
    ) -> pb.ClassifyResponse:
        """Classify one frame; every error travels as the call's status."""
        self._refuse_while_draining()
        model = self._catalogue.find(request.model, request.version)
        if not request.HasField("frame"):
            model.metrics.frame_refused("invalid")
            raise InvalidRequestError("frame", "is missing: give the frame to classify")
        with model.calls:
            result = await classify_frame(
                model, self._images, request.frame, model.controls.default, top_k=request.top_k, deadline=self._deadline(context)
            )
        return pb.ClassifyResponse(result=result)

    async def StreamClassify(  # noqa: N802  # the wire's name
        self,
        requests: AsyncIterator[pb.StreamClassifyRequest],
        context: grpc.aio.ServicerContext[pb.StreamClassifyRequest, pb.StreamClassifyResponse],
    ) -> None:
        """Classify frames as they come; see ClassificationStream."""
        self._refuse_while_draining()
        with self._streams:
            stream = ClassificationStream(
                requests, context.write, self._catalogue, self._images, self._limits, self._draining, self._deadline(context)
            )
            await stream.run()

    def _refuse_while_draining(self) -> None:
        if self._draining.is_set():
            raise UnavailableError("the server is draining: send to another one")

    def _deadline(self, context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
        remaining: float | None = context.time_remaining()
        return None if remaining is None else self._clock() + remaining
