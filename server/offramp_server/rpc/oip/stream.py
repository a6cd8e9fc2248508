"""One ModelStreamInfer call: a reader that stops at the window, a task a request, one writer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from inference import grpc_service_pb2 as oip
from offramp_server.errors import ExecutionError, OfframpError, UnavailableError
from offramp_server.rpc.call import current_call
from offramp_server.rpc.models import LATEST, Catalogue, ServedModel
from offramp_server.rpc.oip.infer import Inference
from offramp_server.rpc.oip.parameters import FINAL
from offramp_server.rpc.status import find_code
from offramp_server.rpc.stream import CLOSE_GRACE_S

logger = logging.getLogger(__name__)

Outcome = oip.ModelInferResponse | OfframpError


class InferenceStream:
    """Answers a stream's requests, one each, in their order, until the caller is done or the server drains.

    Every request names its model. A name stays with the version that it meant at first, also when that is unloaded; with
    version `latest` it moves as newer ones are loaded. The window bounds the pictures that are owed an answer: when it is full
    the stream is not read further. A draining server answers what it has read, refuses what still comes in the stream
    itself, and after a grace ends the call as UNAVAILABLE.
    """

    def __init__(
        self,
        requests: AsyncIterator[oip.ModelInferRequest],
        write: Callable[[oip.ModelStreamInferResponse], Awaitable[None]],
        catalogue: Catalogue,
        inference: Inference,
        window: int,
        draining: asyncio.Event,
        deadline: float | None,
        *,
        errors_end_it: bool,
    ) -> None:
        """`deadline` is the whole call's; with `errors_end_it` the first error becomes the call's status."""
        self._requests, self._send, self._catalogue, self._inference = requests, write, catalogue, inference
        self._draining, self._deadline, self._errors_end_it = draining, deadline, errors_end_it
        self._places, self._window = window, asyncio.Semaphore(window)
        self._outbox: asyncio.Queue[tuple[str, int, asyncio.Task[Outcome]] | None] = asyncio.Queue()  # bounded by the window
        self._models: dict[tuple[str, str], ServedModel] = {}
        self._cut = False

    async def run(self) -> None:
        """Serve the call. Raises OfframpError where it must end with a status."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write())
                await self._read_and_answer()
        except ExceptionGroup as errors:
            status = errors.subgroup(OfframpError)
            raise (_first(status) if status is not None else errors) from None
        finally:
            for model in self._models.values():
                _leave(model)
        if self._cut:
            raise UnavailableError("the server is draining: open the stream on another one")

    async def _read_and_answer(self) -> None:
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self._read(group))
            drained = group.create_task(self._draining.wait())
            await asyncio.wait({reader, drained}, return_when=asyncio.FIRST_COMPLETED)
            drained.cancel()
            if not reader.done():
                await asyncio.wait({reader}, timeout=CLOSE_GRACE_S)
                self._cut = not reader.done()
                reader.cancel()
        self._outbox.put_nowait(None)

    async def _read(self, group: asyncio.TaskGroup) -> None:
        async for request in self._requests:
            places = _count_places(request, self._places)
            for _ in range(places):  # the reader alone takes places, so it can't lock itself out
                await self._window.acquire()
            self._outbox.put_nowait((request.id, places, self._take(group, request)))

    def _take(self, group: asyncio.TaskGroup, request: oip.ModelInferRequest) -> asyncio.Task[Outcome]:
        try:
            if self._draining.is_set():
                raise UnavailableError("the server is draining: send to another one")
            model = self._find(request.model_name, request.model_version)
        except OfframpError as error:
            return group.create_task(_give(error))
        model.calls.enter()
        task = group.create_task(self._answer(model, request))
        task.add_done_callback(lambda _: model.calls.leave())
        return task

    def _find(self, name: str, version: str) -> ServedModel:
        held = self._models.get((name, version))
        if held is not None and version != LATEST:
            return held
        try:
            model = self._catalogue.find(name, version)
        except OfframpError:
            if held is None:
                raise
            return held
        if model is not held:
            model.calls.enter()
            model.metrics.stream_opened()
            self._models[name, version] = model
            if held is not None:
                _leave(held)
        return model

    async def _answer(self, model: ServedModel, request: oip.ModelInferRequest) -> Outcome:
        try:
            return await self._inference.run(model, request, self._deadline)
        except OfframpError as error:
            return error
        except Exception:
            logger.exception("request %r failed", request.id[:80])
            return ExecutionError("the server failed on this request")

    async def _write(self) -> None:
        while (item := await self._outbox.get()) is not None:
            id, places, task = item
            outcome = await task
            if isinstance(outcome, OfframpError):
                if self._errors_end_it:
                    raise outcome
                current_call().error_sent(outcome)
                await self._send(write_failure(id, outcome))
            else:
                outcome.parameters[FINAL].bool_param = True
                await self._send(oip.ModelStreamInferResponse(infer_response=outcome))
            for _ in range(places):
                self._window.release()


def write_failure(id: str, error: OfframpError) -> oip.ModelStreamInferResponse:
    """An error inside a stream. Triton's client hands its caller the text alone, so the id and the code stand in it."""
    response = oip.ModelInferResponse(id=id)
    response.parameters[FINAL].bool_param = True
    text = f"[request id: {id or '<none>'}] {find_code(error).name}: {error}"
    return oip.ModelStreamInferResponse(error_message=text, infer_response=response)


async def _give(error: OfframpError) -> Outcome:
    return error


def _leave(model: ServedModel) -> None:
    model.metrics.stream_closed()
    model.calls.leave()


def _count_places(request: oip.ModelInferRequest, most: int) -> int:
    images = request.inputs[0].shape[0] if request.inputs and request.inputs[0].shape else 1
    return min(max(images, 1), most)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
