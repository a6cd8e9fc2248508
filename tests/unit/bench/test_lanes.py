"""Lanes on other servers, against small real ones: what they send, and what they make of answers and refusals."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from aiohttp import web

from compare.lanes import Connection, HttpConnection, KServeConnection, RefusedError, opener
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc
from offramp_client.bench_load import run_load
from offramp_client.bench_types import Load

SIZE, CLASSES = 4, 5
IMAGES = np.zeros((6, SIZE, SIZE, 3), np.uint8)
IMAGES[:, 0, 0, 0] = np.arange(6) % CLASSES
TRUTH = list(IMAGES[:, 0, 0, 0])


def logits_of(pixels: bytes) -> np.ndarray:
    """Each image's first value is its class."""
    return np.eye(CLASSES, dtype=np.float32)[np.frombuffer(pixels, np.uint8).reshape(-1, SIZE, SIZE, 3)[:, 0, 0, 0]]


class KServe(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers raw where it was asked raw, as Triton and MLServer do; notes the metadata."""

    def __init__(self) -> None:
        self.metadata: list[Any] = []

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:  # noqa: N802
        self.metadata += context.invocation_metadata()
        if request.model_name != "int8":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        tensor = request.inputs[0]
        if tensor.datatype == "BYTES":
            assert list(tensor.shape) == [len(tensor.contents.bytes_contents)]
            logits = logits_of(b"".join(tensor.contents.bytes_contents))
            output = pb.ModelInferResponse.InferOutputTensor(name="logits", datatype="FP32", shape=logits.shape)
            output.contents.fp32_contents.extend(logits.ravel())
            return pb.ModelInferResponse(outputs=[output])
        assert (tensor.name, tensor.datatype, list(tensor.shape)[1:]) == ("pixels", "UINT8", [SIZE, SIZE, 3])
        logits = logits_of(request.raw_input_contents[0])
        return pb.ModelInferResponse(raw_output_contents=[logits.tobytes()])


@pytest.fixture
async def kserve() -> AsyncIterator[tuple[KServe, str]]:
    servicer, server = KServe(), grpc.aio.server()
    grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield servicer, address
    await server.stop(None)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"logits": logits_of(base64.b64decode(body["pixels"])).tolist()})

    app = web.Application()
    app.router.add_post("/int8", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def check(connection: Connection) -> None:
    assert await connection.ask([0, 5, 3]) == [TRUTH[0], TRUTH[5], TRUTH[3]]
    load = Load(streams=2, in_flight=4, batch=2, warm_up_s=0, seconds=0.3, drain_s=60)
    seen = await run_load(load, opener([connection]), len(IMAGES))
    assert seen.accuracy(TRUTH) == 1
    assert len(seen.labels) == len(IMAGES)
    assert (seen.errors, seen.unanswered, set(seen.exits) <= {0}) == ({}, 0, True)


@pytest.mark.parametrize("as_bytes", [False, True])
async def test_kserve_takes_tensors_and_bytes(kserve: tuple[KServe, str], as_bytes: bool) -> None:
    servicer, address = kserve
    connection = KServeConnection(address, "int8", IMAGES, (("application", "int8"),), as_bytes)
    try:
        await check(connection)
    finally:
        await connection.close()
    assert ("application", "int8") in {(each.key, each.value) for each in servicer.metadata}


async def test_http_posts_base64(url: str) -> None:
    connection = HttpConnection(f"{url}/int8", IMAGES)
    try:
        await check(connection)
    finally:
        await connection.close()


async def test_a_refusal_is_an_error_by_its_code_and_ends_nothing(kserve: tuple[KServe, str], url: str) -> None:
    for connection, code in (
        (KServeConnection(kserve[1], "absent", IMAGES), "NOT_FOUND"),
        (HttpConnection(f"{url}/absent", IMAGES), "HTTP 404"),
    ):
        try:
            with pytest.raises(RefusedError, match=code):
                await connection.ask([0])
            load = Load(streams=1, in_flight=2, warm_up_s=0, seconds=0.3, drain_s=60)
            seen = await run_load(load, opener([connection]), len(IMAGES))
            assert (seen.answered, seen.labels, set(seen.errors) <= {code}) == (0, {}, True)
        finally:
            await connection.close()
