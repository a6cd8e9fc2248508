"""A lane of the load generator on an Offramp server: one StreamClassify call, with messages made by hand to cost little."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import grpc
from grpc import aio  # type: ignore[attr-defined, unused-ignore]  # newer stubs leave it out

from offramp.v1 import classification_pb2 as pb
from offramp_client import convert
from offramp_client.bench_types import Answer, Lane, OpenLane, Sent, Sink
from offramp_client.client import Client
from offramp_client.ending import Ending
from offramp_client.errors import InvalidRequestError, error_for
from offramp_client.streaming import Call
from offramp_client.types import Control, Frame, Image


def open_lanes(
    clients: Sequence[Client],
    images: Sequence[Image],
    controls: Sequence[Control],
    *,
    model: str = "",
    version: str = "",
    seed: int = 0,
) -> OpenLane:
    """Return what opens lanes, over the clients' connections in turn.

    Args:
        clients: connections to one server.
        images: what the frames show.
        controls: one for all frames; or several, of which every frame draws its own.
        model: empty for the server's default.
        version: empty for the newest that is loaded.
        seed: of the draw.

    The function returned raises the RequestError that fits where the server refuses the stream.
    """
    if not controls:
        raise InvalidRequestError("name at least one", field="controls")
    pictures = [convert.frame_to_wire(Frame(image), 0) for image in images]
    mix = [convert.control_to_wire(control) for control in controls] if len(controls) > 1 else []
    config = convert.config_to_wire(model, version, controls[0] if len(controls) == 1 else Control(), ordered=False, top_k=1)
    opened, chance = 0, random.Random(seed)

    def make_frame(sent: Sent) -> pb.Frame:
        frame = pb.Frame()
        frame.CopyFrom(pictures[sent.image])
        frame.frame_id = sent.number
        if mix:
            frame.control.CopyFrom(chance.choice(mix))
        return frame

    async def open_lane(sink: Sink) -> Lane:
        nonlocal opened
        client, opened = clients[opened % len(clients)], opened + 1
        lane = StreamLane(client.open_call(), make_frame, sink)
        await lane.begin(config)
        return lane

    return open_lane


class StreamLane:
    """Implements bench_types.Lane."""

    def __init__(self, call: Call, make_frame: Callable[[Sent], pb.Frame], sink: Sink) -> None:
        self._call, self._make_frame, self._sink = call, make_frame, sink
        self._responses = aiter(call)
        self._finished = False

    async def begin(self, config: pb.StreamConfig) -> None:
        """Configure the stream, and wait until the server has taken that. Raises RequestError."""
        ending = Ending(self._call)
        try:
            await self._call.write(pb.StreamClassifyRequest(config=config))
            await anext(self._responses)
        except aio.AioRpcError as error:
            raise convert.error_from_rpc(await ending.error(error)) from None
        except (asyncio.InvalidStateError, StopAsyncIteration):
            raise error_for("UNAVAILABLE", "the server ended the stream before its first frame") from None
        self._reading = asyncio.create_task(self._read(), name="offramp bench reader")

    async def send(self, frames: Sequence[Sent]) -> None:
        """Send a frame, or several in one message."""
        if len(frames) == 1:
            message = pb.StreamClassifyRequest(frame=self._make_frame(frames[0]))
        else:
            message = pb.StreamClassifyRequest(batch=pb.FrameBatch(frames=map(self._make_frame, frames)))
        with suppress(grpc.RpcError, asyncio.InvalidStateError):  # where the call has ended, the reader learns why
            await self._call.write(message)

    async def finish(self) -> None:
        """Half-close, and read to the end; cancels the call where it is itself cancelled."""
        self._finished = True
        try:
            with suppress(grpc.RpcError, asyncio.InvalidStateError):
                await self._call.done_writing()
            await self._reading
        finally:
            self._call.cancel()
            self._reading.cancel()

    async def _read(self) -> None:
        code = "UNAVAILABLE"
        try:
            async for response in self._responses:
                kind = response.WhichOneof("response")
                if kind == "result":
                    self._sink.answered(_answer(response.result))
                elif kind == "results":  # of servers that send together what is ready together
                    for result in response.results.results:
                        self._sink.answered(_answer(result))
        except aio.AioRpcError as error:
            code = error.code().name
        if not self._finished:
            self._sink.lost(code)


def _answer(result: pb.FrameResult) -> Answer:
    if result.HasField("classification"):
        seen = result.classification
        return Answer(result.frame_id, seen.top[0].label, seen.exit, seen.cost_ratio)
    error = convert.frame_error_from_wire(result.error)
    return Answer(result.frame_id, error=error.code, retry_after_ms=error.retry_after_ms)
