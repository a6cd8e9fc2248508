"""One stream of frames to a server and of results back.

Three tasks share a stream. The feeder takes frames from the caller's source as the window allows, the sender is the
only one that writes to the call, the reader is the only one that reads from it. So a retune can be written and
answered while the caller is slow, and neither direction ever waits for the other.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, Unpack

import grpc
from grpc import aio  # type: ignore[attr-defined, unused-ignore]  # newer stubs leave it out

from offramp.v1 import classification_pb2 as pb
from offramp_client import convert
from offramp_client.ending import Ending
from offramp_client.errors import InvalidRequestError, OfframpClientError, StreamClosedError, error_for
from offramp_client.types import Control, ControlFields, Frame, Image, Result

Frames = Iterable[Image | Frame] | AsyncIterable[Image | Frame]


class Call(Protocol):
    """What a stream needs of a bidirectional gRPC call."""

    async def write(self, request: pb.StreamClassifyRequest) -> None:
        """Send one message; waits while flow control holds it back."""
        ...

    async def done_writing(self) -> None:
        """Say that no more messages will come."""
        ...

    def cancel(self) -> bool:
        """End the call; harmless when it has ended."""
        ...

    def __aiter__(self) -> AsyncIterator[pb.StreamClassifyResponse]: ...


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What a stream runs and how; see `Client.stream`."""

    model: str = ""
    version: str = ""
    ordered: bool = True
    top_k: int = 1
    window: int = 32
    raise_errors: bool = False


@dataclass(slots=True)
class _Running:
    """What exists only while a stream runs."""

    call: Call
    ending: Ending
    slots: asyncio.Semaphore
    """Bounds both queues: a frame takes a slot before it is read, and gives it back when the caller takes its result."""
    outbox: asyncio.Queue[pb.StreamClassifyRequest | None] = field(default_factory=asyncio.Queue)
    inbox: asyncio.Queue[Result | Exception | None] = field(default_factory=asyncio.Queue)
    retunes: deque[tuple[Control, asyncio.Future[Control]]] = field(default_factory=deque)
    """Configs sent and not yet answered, with what they asked for; the answers come in this order."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class ClassificationStream:
    """Frames on their way through a server; iterate over it for their results, once.

    The call opens when iteration begins, and is cancelled when iteration ends for whatever reason. Use it as an async
    context manager too where that must happen at a certain point, rather than soon after a `break`.
    """

    def __init__(self, open_call: Callable[[], Call], frames: Frames, control: Control, options: StreamOptions) -> None:
        if options.window < 1:
            raise InvalidRequestError("must be 1 or more", field="window")
        self._open_call, self._frames, self._options = open_call, frames, options
        self._asked = self._control = control
        self._sent_at: dict[int, deque[float]] = {}
        self._running: _Running | None = None
        self._begun = self._closed = self._all_sent = self._draining = False
        self._model, self._version = options.model, options.version
        self._config()  # refuses bad values here rather than at the first result

    # --- what the caller sees -------------------------------------------------------------------------------------

    @property
    def control(self) -> Control:
        """The control in force; every field resolved once the server has confirmed it."""
        return self._control

    @property
    def model(self) -> str:
        """Model that serves the stream; what was asked for until the server has answered."""
        return self._model

    @property
    def version(self) -> str:
        """Its version; what was asked for until the server has answered."""
        return self._version

    @property
    def draining(self) -> bool:
        """Whether the server announced that it goes away: it reads no further frame and answers those in flight."""
        return self._draining

    @property
    def unanswered(self) -> tuple[int, ...]:
        """Numbers of the frames sent and not answered, in the order sent; what to send again after a failure."""
        return tuple(frame_id for frame_id, times in self._sent_at.items() for _ in times)

    async def retune(self, control: Control | None = None, **fields: Unpack[ControlFields]) -> Control:
        """Change the control from the next frame on, and return the one then in force.

        `control` replaces the former one as a whole; `fields` go on top of it, or where no `control` is given on top of
        what was asked for last. May be awaited between results, from another task, or inside the frame source.

        Raises:
            InvalidRequestError: the server refused it; the former control goes on holding.
            StreamClosedError: the stream has ended, or has sent its last frame.
        """
        wanted = (self._asked if control is None else control).with_fields(**fields)
        # Model, version and order are the stream's for good, but a config says anew how many classes are wanted.
        config = pb.StreamConfig(control=convert.control_to_wire(wanted), top_k=self._options.top_k)
        if self._closed or self._all_sent:
            raise StreamClosedError("the stream takes no more frames")
        if self._running is None:
            self._asked = self._control = wanted
            return wanted
        answer: asyncio.Future[Control] = asyncio.get_running_loop().create_future()
        self._running.retunes.append((wanted, answer))
        self._running.outbox.put_nowait(pb.StreamClassifyRequest(config=config))
        return await answer

    def __aiter__(self) -> AsyncIterator[Result]:
        # A generator of its own, which nobody but the loop holds: after a `break` the event loop closes it.
        if self._begun:
            raise StreamClosedError("a stream is iterated over once")
        self._begun = True
        return self._results()

    async def aclose(self) -> None:
        """Cancel the call and stop reading from the source; does nothing the second time."""
        self._closed = True
        running, self._running = self._running, None
        if running is None:
            return
        running.call.cancel()  # whatever the tasks are at: a call that is merely dropped may never be collected
        for task in running.tasks:
            task.cancel()
        for _, answer in running.retunes:
            if not answer.done():
                answer.set_exception(StreamClosedError("the stream has ended"))
                answer.exception()  # whoever waits still gets it; that nobody waits is no fault
        running.inbox.put_nowait(StreamClosedError("the stream was closed while its results were read"))
        await asyncio.gather(*running.tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    # --- the three tasks and the generator ------------------------------------------------------------------------

    async def _results(self) -> AsyncGenerator[Result, None]:
        if self._closed:
            return
        running = self._start()
        try:
            while (item := await running.inbox.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                running.slots.release()
                if self._options.raise_errors:
                    item.unwrap()
                yield item
        finally:
            await self.aclose()

    def _start(self) -> _Running:
        call = self._open_call()
        running = self._running = _Running(call, Ending(call), asyncio.Semaphore(self._options.window))
        running.retunes.append((self._asked, asyncio.get_running_loop().create_future()))
        running.outbox.put_nowait(pb.StreamClassifyRequest(config=self._config()))
        running.tasks = [
            asyncio.create_task(self._feed(running), name="offramp stream feeder"),
            asyncio.create_task(self._send(running), name="offramp stream sender"),
            asyncio.create_task(self._read(running), name="offramp stream reader"),
        ]
        return running

    async def _feed(self, running: _Running) -> None:
        number = 0
        source = _each(self._frames)
        try:
            # The slot first: a source such as a camera is not asked for a frame that would then grow old waiting.
            await running.slots.acquire()
            async for item in source:
                if self._draining:
                    return
                frame = item if isinstance(item, Frame) else Frame(item)
                frame_id = number if frame.frame_id is None else frame.frame_id
                message = convert.frame_to_wire(frame, frame_id)
                self._sent_at.setdefault(frame_id, deque()).append(time.perf_counter())
                running.outbox.put_nowait(pb.StreamClassifyRequest(frame=message))
                number += 1
                await running.slots.acquire()
            self._all_sent = True
            running.outbox.put_nowait(None)
        except Exception as error:  # the source's own exception, or a frame unfit for the wire: the caller's to see
            running.inbox.put_nowait(error)
        finally:
            await source.aclose()

    async def _send(self, running: _Running) -> None:
        try:
            while (message := await running.outbox.get()) is not None:
                await running.call.write(message)
            await running.call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # the call has ended; the reader learns why

    async def _read(self, running: _Running) -> None:
        try:
            async for response in running.call:
                if response.HasField("result"):
                    running.inbox.put_nowait(self._answered(response.result))
                elif response.HasField("results"):
                    for result in response.results.results:
                        running.inbox.put_nowait(self._answered(result))
                elif response.HasField("status"):
                    self._take_status(response.status, running)
            running.inbox.put_nowait(self._verdict())
        except aio.AioRpcError as error:
            running.inbox.put_nowait(convert.error_from_rpc(await running.ending.error(error)))
        except OfframpClientError as error:
            running.inbox.put_nowait(error)

    def _answered(self, message: pb.FrameResult) -> Result:
        times = self._sent_at.get(message.frame_id)
        if not times:
            raise error_for("INTERNAL", f"the server answered frame {message.frame_id}, which was not sent")
        latency_ms = (time.perf_counter() - times.popleft()) * 1000
        if not times:
            del self._sent_at[message.frame_id]
        return convert.result_from_wire(message, latency_ms)

    def _take_status(self, status: pb.StreamStatus, running: _Running) -> None:
        if status.state == pb.StreamStatus.STATE_DRAINING:
            self._draining = True
            running.outbox.put_nowait(None)  # the server ends the call once this side has closed
        elif status.state == pb.StreamStatus.STATE_MOVED:
            self._control = convert.control_from_wire(status.control)
            self._model, self._version = status.model, status.version
        elif status.state in (pb.StreamStatus.STATE_CONFIGURED, pb.StreamStatus.STATE_REFUSED):
            if not running.retunes:
                raise error_for("INTERNAL", "the server answered a config that was not sent")
            wanted, answer = running.retunes.popleft()
            if status.state == pb.StreamStatus.STATE_CONFIGURED:
                self._asked, self._control = wanted, convert.control_from_wire(status.control)
                self._model, self._version = status.model, status.version
            if answer.done():
                return
            if status.state == pb.StreamStatus.STATE_CONFIGURED:
                answer.set_result(self._control)
            else:
                answer.set_exception(convert.frame_error_from_wire(status.error).exception())

    def _verdict(self) -> OfframpClientError | None:
        """Judge a stream that the server ended with OK: complete, or cut short."""
        if self._all_sent and not self._sent_at:
            return None
        reason = "the server is going away" if self._draining else "the server ended the stream early"
        return error_for("UNAVAILABLE", f"{reason}; {len(self.unanswered)} frames sent were not answered")

    def _config(self) -> pb.StreamConfig:
        options = self._options
        return convert.config_to_wire(options.model, options.version, self._asked, options.ordered, options.top_k)


async def _each(frames: Frames) -> AsyncGenerator[Image | Frame, None]:
    """Go through any kind of source without blocking the event loop; closes an async generator at the end."""
    if isinstance(frames, AsyncIterable):
        try:
            async for frame in frames:
                yield frame
        finally:
            if isinstance(frames, AsyncGenerator):
                await frames.aclose()
    elif isinstance(frames, (list, tuple)):
        for frame in frames:
            yield frame
    else:
        end = object()
        iterator = iter(frames)
        # Reading a camera or a file blocks, so it is done in a thread; one read at a time.
        while (item := await asyncio.to_thread(next, iterator, end)) is not end:
            yield item  # type: ignore[misc]
