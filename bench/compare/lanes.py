"""Lanes of the load generator on other servers: every message is a call of its own, over KServe's gRPC or over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import numpy as np
from grpc import aio  # type: ignore[attr-defined, unused-ignore]  # newer stubs leave it out

from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc
from offramp_client.bench_types import Answer, Lane, OpenLane, Sent, Sink

PIXELS, LOGITS = "pixels", "logits"
"""Names of input and output, as every peer's model has them."""

Ask = Callable[[list[int]], Awaitable[list[int]]]
"""Asks for the classes of images, by their index. Raises RefusedError."""


class RefusedError(Exception):
    """The server answered with an error; the message is its code."""


class CallLane:
    """Implements bench_types.Lane."""

    def __init__(self, ask: Ask, sink: Sink) -> None:
        self._ask, self._sink = ask, sink
        self._calls: set[asyncio.Task[None]] = set()

    async def send(self, frames: Sequence[Sent]) -> None:
        """Begin a call; it does not wait for the answer."""
        call = asyncio.create_task(self._call(frames))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def finish(self) -> None:
        """Wait for the calls that are under way."""
        await asyncio.gather(*self._calls)

    async def _call(self, frames: Sequence[Sent]) -> None:
        try:
            labels = await self._ask([frame.image for frame in frames])
        except RefusedError as error:
            answers = [Answer(frame.number, error=str(error)) for frame in frames]
        else:
            answers = [Answer(frame.number, label) for frame, label in zip(frames, labels, strict=True)]
        for answer in answers:
            self._sink.answered(answer)


class Connection:
    """A client of one model on one peer, for one event loop."""

    ask: Ask

    async def close(self) -> None:
        """End the connection."""

    async def open_lane(self, sink: Sink) -> Lane:
        """Open a lane; see bench_types.OpenLane."""
        return CallLane(self.ask, sink)


class KServeConnection(Connection):
    """Calls ModelInfer of inference.GRPCInferenceService, as Triton, MLServer and our Ray application serve it."""

    def __init__(
        self,
        address: str,
        model: str,
        images_NHWC: np.ndarray,
        metadata: tuple[tuple[str, str], ...] = (),
        as_bytes: bool = False,
    ) -> None:
        """`as_bytes` sends each image as one element of BYTES in place of a UINT8 tensor."""
        self._metadata, self._as_bytes = metadata, as_bytes
        self._channel = aio.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),))
        stub: Any = grpc_service_pb2_grpc.GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._infer = stub.ModelInfer
        self._model, self._images = model, [image.tobytes() for image in images_NHWC]
        self._shape = images_NHWC.shape[1:]

    async def ask(self, images: list[int]) -> list[int]:
        """One call with all these images. Raises RefusedError."""
        request = pb.ModelInferRequest(model_name=self._model)
        if self._as_bytes:
            pixels = request.inputs.add(name=PIXELS, datatype="BYTES", shape=(len(images),))
            pixels.contents.bytes_contents.extend(self._images[image] for image in images)
        else:
            request.inputs.add(name=PIXELS, datatype="UINT8", shape=(len(images), *self._shape))
            request.raw_input_contents.append(b"".join(self._images[image] for image in images))
        try:
            answer = await self._infer(request, metadata=self._metadata)
        except aio.AioRpcError as error:
            raise RefusedError(error.code().name) from None
        if answer.raw_output_contents:
            logits = np.frombuffer(answer.raw_output_contents[0], np.float32)
        else:
            logits = np.array(answer.outputs[0].contents.fp32_contents, np.float32)
        labels: list[int] = logits.reshape(len(images), -1).argmax(1).tolist()
        return labels

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class HttpConnection(Connection):
    """Posts JSON with the pixels in base64, as LitServe's documentation does with images; the answer holds the logits."""

    def __init__(self, url: str, images_NHWC: np.ndarray) -> None:
        self._url = url
        self._images = [image.tobytes() for image in images_NHWC]
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def ask(self, images: list[int]) -> list[int]:
        """One request with all these images. Raises RefusedError."""
        pixels = base64.b64encode(b"".join(self._images[image] for image in images)).decode()
        try:
            async with self._session.post(self._url, json={PIXELS: pixels}) as answer:
                body = await answer.read()
                if answer.status != 200:
                    raise RefusedError(f"HTTP {answer.status}")
        except aiohttp.ClientError as error:
            raise RefusedError(type(error).__name__) from None
        labels: list[int] = np.array(json.loads(body)[LOGITS]).argmax(1).tolist()
        return labels

    async def close(self) -> None:
        """Close the session."""
        await self._session.close()


def opener(connections: Sequence[Connection]) -> OpenLane:
    """Open lanes over several connections in turn."""
    opened = 0

    async def open_lane(sink: Sink) -> Lane:
        nonlocal opened
        opened += 1
        return await connections[opened % len(connections)].open_lane(sink)

    return open_lane
