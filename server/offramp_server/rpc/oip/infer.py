"""One request through the engine: its pictures as frames, their answers as one response."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from inference import grpc_service_pb2 as oip
from offramp.v1 import classification_pb2 as pb
from offramp_server.engine.types import Answer
from offramp_server.errors import InvalidRequestError, OfframpError
from offramp_server.rpc.call import current_call
from offramp_server.rpc.control import ResolvedControl
from offramp_server.rpc.convert import resolve, run_frame
from offramp_server.rpc.images import ImageReader
from offramp_server.rpc.models import ServedModel
from offramp_server.rpc.oip.parameters import PATH, RequestParameters, read_parameters, write_parameters
from offramp_server.rpc.oip.tensors import WantedOutput, read_frames, read_outputs, write_outputs
from offramp_server.rpc.statistics import now_ns


class Inference:
    """Runs requests on models."""

    def __init__(self, images: ImageReader, max_frames: int, clock: Callable[[], float]) -> None:
        """`max_frames` bounds the pictures of one request; `clock` is the engine's, in seconds."""
        self._images, self._clock = images, clock
        self.max_frames = max_frames

    async def run(self, model: ServedModel, request: oip.ModelInferRequest, deadline: float | None) -> oip.ModelInferResponse:
        """Answer a request whole, or raise the OfframpError of the first picture that fails. `deadline` is the call's."""
        started = now_ns()
        try:
            parameters, frames, wanted = self._read(model, request)
            control = resolve(model, model.controls.default, parameters.control, PATH)
            answered = await self._run_frames(model, frames, control, parameters.tighten(deadline, self._clock))
        except OfframpError as error:
            model.statistics.failed(started)
            current_call().frames_failed(model, started, error)
            raise
        answers = [answer for answer, _ in answered]
        writing = now_ns()
        response = oip.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
        write_parameters(control, answers, response)
        write_outputs(response, wanted, answers, model.manifest)
        # its own reading, since the device may be at the first picture while the last is being read
        slowest, read_at = max(answered, key=lambda pair: pair[1] + (pair[0].queue_ms + pair[0].compute_ms) * 1e6)
        ended = now_ns()
        model.statistics.answered(started, read_at, slowest.queue_ms, slowest.compute_ms, ended - writing, frames=len(answers))
        current_call().frames_answered(model, started, answered, writing, ended)
        return response

    def _read(
        self, model: ServedModel, request: oip.ModelInferRequest
    ) -> tuple[RequestParameters, list[pb.Frame], list[WantedOutput]]:
        try:
            frames = read_frames(request, self.max_frames)
            return read_parameters(request), frames, read_outputs(request, model.manifest)
        except InvalidRequestError:
            model.metrics.frame_refused("invalid")
            raise

    async def _run_frames(
        self, model: ServedModel, frames: list[pb.Frame], control: ResolvedControl, deadline: float | None
    ) -> list[tuple[Answer, int]]:
        work = [
            run_frame(model, self._images, frame, control, deadline, f"inputs[0].contents[{index}]")
            for index, frame in enumerate(frames)
        ]
        if len(work) == 1:  # by far the commonest, and needs no task of its own
            return [await work[0]]
        try:
            async with asyncio.TaskGroup() as group:  # one that fails drops the others before they run
                tasks = [group.create_task(each) for each in work]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]
