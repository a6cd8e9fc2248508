"""One StreamClassify call: a reader that stops at the window, a task a frame, one writer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from offramp.v1 import classification_pb2 as pb
from offramp_server.errors import ExecutionError, InvalidRequestError, OfframpError, UnavailableError
from offramp_server.rpc.control import ResolvedControl
from offramp_server.rpc.convert import classify_frame, write_failure
from offramp_server.rpc.images import ImageReader
from offramp_server.rpc.models import LATEST, Catalogue, ServedModel
from offramp_server.rpc.status import write_error

logger = logging.getLogger(__name__)

CLOSE_GRACE_S = 2.0
"""For the caller to close its side once it has read DRAINING: ending a call in the middle of its write would make grpc.aio
report INTERNAL there (grpc issue 36066). What still comes in is read and dropped, so that no write stays blocked."""

Outgoing = pb.StreamStatus | pb.FrameResult | asyncio.Task[pb.FrameResult]


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds of one stream."""

    window: int
    """Responses owed at once; the stream is not read further until one has been written."""
    max_batch_frames: int
    """Frames in one FrameBatch."""


class ClassificationStream:
    """Reads a stream's requests and writes its responses until the caller is done or the server drains.

    Every response holds a place in the window from before its frame is admitted until it has been written. A full window
    stops the reader, and HTTP/2 flow control then stops the caller, so a caller that sends without reading costs no memory.
    A stream stays with the model version that it began with, also when that is unloaded; where `latest` was asked for it
    moves to a newer one once that is loaded.
    When the server drains, the frames of messages taken so far are answered, and DRAINING says that none after them is.
    """

    def __init__(
        self,
        requests: AsyncIterator[pb.StreamClassifyRequest],
        write: Callable[[pb.StreamClassifyResponse], Awaitable[None]],
        catalogue: Catalogue,
        images: ImageReader,
        limits: StreamLimits,
        draining: asyncio.Event,
        deadline: float | None,
    ) -> None:
        """`deadline` is the whole call's, on the engine's clock, in seconds."""
        self._requests, self._send, self._catalogue, self._images = requests, write, catalogue, images
        self._limits, self._draining, self._deadline = limits, draining, deadline
        self._window = asyncio.Semaphore(limits.window)
        self._outbox = _Outbox()
        self._turn = asyncio.Lock()  # DRAINING comes between two messages: all taken before it, none after

    async def run(self) -> None:
        """Serve the call. Raises OfframpError where the first message is no config that can be served."""
        config = await self._read_first_config()
        if config is None:
            return
        self._model: ServedModel = self._catalogue.find(config.model, config.version)
        self._version = config.version
        self._ordered = config.ordered if config.HasField("ordered") else True
        self._batched = config.batch_results
        self._configure(config)
        self._enter(self._model)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write())
                await self._respond(self._write_status(pb.StreamStatus.STATE_CONFIGURED))
                await self._read_and_answer()
        finally:
            self._leave(self._model)

    async def _read_first_config(self) -> pb.StreamConfig | None:
        reading = asyncio.ensure_future(anext(self._requests, None))
        drained = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({reading, drained}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise UnavailableError("the server is draining: open the stream on another one")
            first = reading.result()
        finally:
            reading.cancel()
            drained.cancel()
        if first is None:
            return None
        if first.WhichOneof("request") != "config":
            raise InvalidRequestError("config", "is missing: the first message of a stream must be its config")
        return first.config

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _read_and_answer(self) -> None:
        async with asyncio.TaskGroup() as frames:
            reader = frames.create_task(self._read(frames))
            drained = frames.create_task(self._draining.wait())
            await asyncio.wait({reader, drained}, return_when=asyncio.FIRST_COMPLETED)
            drained.cancel()
            if not reader.done():
                async with self._turn:
                    await self._respond(self._write_status(pb.StreamStatus.STATE_DRAINING))
                await self._outbox.join()
                await asyncio.wait({reader}, timeout=CLOSE_GRACE_S)
                reader.cancel()
        self._outbox.put_nowait(None)

    async def _read(self, frames: asyncio.TaskGroup) -> None:
        async for request in self._requests:
            async with self._turn:
                if not self._draining.is_set():
                    await self._take_request(frames, request)

    async def _take_request(self, frames: asyncio.TaskGroup, request: pb.StreamClassifyRequest) -> None:
        match request.WhichOneof("request"):
            case "config":
                await self._respond(self._retune(request.config))
            case "frame":
                await self._take(frames, request.frame, "frame")
            case "batch":
                await self._take_batch(frames, request.batch)
            case _:
                error = InvalidRequestError("request", "holds neither config, frame nor batch: give one")
                await self._respond(self._write_status(pb.StreamStatus.STATE_REFUSED, error))

    async def _take_batch(self, frames: asyncio.TaskGroup, batch: pb.FrameBatch) -> None:
        most = self._limits.max_batch_frames
        if len(batch.frames) > most:
            error = InvalidRequestError("batch.frames", f"has {len(batch.frames)} frames: send at most {most} in one message")
            for frame in batch.frames:
                self._model.metrics.frame_refused("invalid")
                await self._respond(write_failure(frame, error))
            return
        for index, frame in enumerate(batch.frames):
            await self._take(frames, frame, f"batch.frames[{index}]")

    async def _take(self, frames: asyncio.TaskGroup, frame: pb.Frame, path: str) -> None:
        if self._version == LATEST:
            await self._follow()
        await self._window.acquire()
        model = self._model
        model.calls.enter()
        task = frames.create_task(self._answer(model, frame, path, self._control, self._top_k))
        task.add_done_callback(lambda _: model.calls.leave())
        if self._ordered:
            self._outbox.put_nowait(task)

    async def _answer(
        self, model: ServedModel, frame: pb.Frame, path: str, control: ResolvedControl, top_k: int
    ) -> pb.FrameResult:
        try:
            result = await classify_frame(model, self._images, frame, control, top_k=top_k, deadline=self._deadline, path=path)
        except OfframpError as error:
            result = write_failure(frame, error)
        except Exception:
            logger.exception("frame %d failed", frame.frame_id)
            result = write_failure(frame, ExecutionError("the server failed on this frame"))
        if not self._ordered:
            self._outbox.put_nowait(result)
        return result

    # --- the stream's own control -------------------------------------------------------------------------------------

    def _configure(self, config: pb.StreamConfig) -> None:
        self._control = _resolve(self._model, config)
        self._config, self._top_k = config, config.top_k
        self._declined: ServedModel | None = None  # a newer version that this config does not suit

    async def _follow(self) -> None:
        """Move to the newest version of the model where that is another one."""
        try:
            newest = self._catalogue.find(self._model.name, LATEST)
        except OfframpError:  # unloaded: the stream stays with what it has
            return
        if newest is self._model or newest is self._declined:
            return
        try:
            control = _resolve(newest, self._config)
        except InvalidRequestError as error:
            logger.warning("a stream stays with version %s of %s: %s", self._model.version, self._model.name, error)
            self._declined = newest
            return
        self._enter(newest)
        self._leave(self._model)
        self._model, self._control = newest, control
        await self._respond(self._write_status(pb.StreamStatus.STATE_MOVED))

    def _enter(self, model: ServedModel) -> None:
        model.calls.enter()
        model.metrics.stream_opened()

    def _leave(self, model: ServedModel) -> None:
        model.metrics.stream_closed()
        model.calls.leave()

    def _retune(self, config: pb.StreamConfig) -> pb.StreamStatus:
        try:
            self._check_unchanged(config)
            self._configure(config)
        except InvalidRequestError as error:
            return self._write_status(pb.StreamStatus.STATE_REFUSED, error)
        return self._write_status(pb.StreamStatus.STATE_CONFIGURED)

    def _check_unchanged(self, config: pb.StreamConfig) -> None:
        remedy = "can't change in mid-stream: leave it out, or open another stream"
        if config.model not in ("", self._model.name):
            raise InvalidRequestError("config.model", remedy)
        if config.version not in ("", self._version, self._model.version):
            raise InvalidRequestError("config.version", remedy)
        if config.HasField("ordered") and config.ordered != self._ordered:
            raise InvalidRequestError("config.ordered", remedy)
        if config.HasField("batch_results") and config.batch_results != self._batched:
            raise InvalidRequestError("config.batch_results", remedy)

    def _write_status(self, state: pb.StreamStatus.State, error: OfframpError | None = None) -> pb.StreamStatus:
        return pb.StreamStatus(
            state=state,
            model=self._model.name,
            version=self._model.version,
            control=self._control.message,
            error=write_error(error) if error is not None else None,
        )

    # --- writing ------------------------------------------------------------------------------------------------------

    async def _respond(self, response: pb.StreamStatus | pb.FrameResult) -> None:
        await self._window.acquire()
        self._outbox.put_nowait(response)

    async def _write(self) -> None:
        while (outgoing := await self._outbox.get()) is not None:
            first = await outgoing if isinstance(outgoing, asyncio.Task) else outgoing
            ready = [first]
            if self._batched and isinstance(first, pb.FrameResult):
                while (result := self._outbox.peek_result()) is not None:
                    self._outbox.get_nowait()
                    ready.append(result)
            await self._send(_wrap(ready))
            for _ in ready:
                self._window.release()
                self._outbox.task_done()


class _Outbox(asyncio.Queue[Outgoing | None]):
    """What a stream still has to write, in order; None ends it. Bounded by the stream's window."""

    def peek_result(self) -> pb.FrameResult | None:
        """The next one, where that is a result which could be written at once."""
        if self.empty():
            return None
        following: Outgoing | None = self._queue[0]  # type: ignore[attr-defined]  # documented for subclasses
        if isinstance(following, asyncio.Task):
            return following.result() if following.done() and not following.cancelled() else None
        return following if isinstance(following, pb.FrameResult) else None


def _wrap(ready: list[pb.FrameResult] | list[pb.FrameResult | pb.StreamStatus]) -> pb.StreamClassifyResponse:
    first = ready[0]
    if isinstance(first, pb.StreamStatus):
        return pb.StreamClassifyResponse(status=first)
    if len(ready) == 1:
        return pb.StreamClassifyResponse(result=first)
    return pb.StreamClassifyResponse(results=pb.FrameResultBatch(results=ready))  # type: ignore[arg-type]


def _resolve(model: ServedModel, config: pb.StreamConfig) -> ResolvedControl:
    return model.controls.apply(model.controls.default, config.control, "config.control")
