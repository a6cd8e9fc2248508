"""ModelStreamInfer against a real server: order, errors inside the stream, the window, cancelling and draining."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inference import grpc_service_pb2 as oip
from offramp.v1 import classification_pb2_grpc
from offramp_server.app import Server
from offramp_server.config import Settings
from offramp_server.rpc.oip import stream
from tests.integration.conftest import PATIENCE_S, Gate, started, until
from tests.integration.inference_messages import Stub, exchange, pictures, request, tensors


@pytest.fixture
def infer(channel: grpc.aio.Channel) -> Stub:
    return Stub(channel)


async def test_answers_come_in_order_each_final_with_its_id(infer: Stub) -> None:
    responses = await exchange(infer, [request(id=str(n), lambda_=float(n % 3 * 1000)) for n in range(20)])
    assert [response.infer_response.id for response in responses] == [str(n) for n in range(20)]
    assert not any(response.error_message for response in responses)
    for n, response in enumerate(responses):
        assert response.infer_response.parameters["triton_final_response"].bool_param
        assert response.infer_response.parameters["lambda"].double_param == n % 3 * 1000


async def test_an_error_stays_in_the_stream_and_names_the_id(infer: Stub) -> None:
    nobody = request(id="gone")
    nobody.model_name = "nobody"
    responses = await exchange(infer, [request(id="a"), request(id="bad", lambda_=-1.0), nobody, request(id="z")])
    assert [response.infer_response.id for response in responses] == ["a", "bad", "gone", "z"]
    assert [bool(response.error_message) for response in responses] == [False, True, True, False]
    assert "[request id: bad] INVALID_ARGUMENT: parameters.lambda" in responses[1].error_message
    assert "[request id: gone] NOT_FOUND" in responses[2].error_message


async def test_a_caller_may_have_the_first_error_as_the_calls_status(infer: Stub) -> None:
    call = infer.ModelStreamInfer(
        iter([request(id="a"), request(id="bad", lambda_=-1.0), request(id="z")]), metadata=(("triton_grpc_error", "true"),)
    )
    assert (await call.read()).infer_response.id == "a"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("parameters.lambda")


async def test_a_stream_without_a_request_ends_well(infer: Stub) -> None:
    assert await exchange(infer, []) == []


async def test_a_batch_larger_than_the_window_still_goes_through(settings: Settings) -> None:
    async with (
        Server(settings.model_copy(update={"stream_window": 2})) as server,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        responses = await exchange(Stub(channel), [request(pictures(5), id=str(n)) for n in range(3)])
        assert [len(tensors(response.infer_response)["exit"]) for response in responses] == [5, 5, 5]


async def test_the_window_stops_the_reader(settings: Settings, gate: Gate) -> None:
    narrow = settings.model_copy(update={"stream_window": 3})
    async with Server(narrow, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        call = Stub(channel).ModelStreamInfer(iter([request(id=str(n)) for n in range(10)]))
        reading = asyncio.create_task(collect(call))
        await until(lambda: server.in_flight == 3)
        unary = Stub(channel).ModelInfer(request())  # the engine has room: only the stream is held back
        await until(lambda: server.in_flight == 4)
        gate.open()
        assert [response.infer_response.id for response in await reading] == [str(n) for n in range(10)]
        await unary


async def collect(call: AsyncIterator[oip.ModelStreamInferResponse]) -> list[oip.ModelStreamInferResponse]:
    return [response async for response in call]


async def test_streams_of_both_services_share_their_bound(settings: Settings) -> None:
    async with (
        Server(settings.model_copy(update={"max_streams": 1})) as server,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        call = Stub(channel).ModelStreamInfer()
        await call.write(request(id="a"))
        assert (await call.read()).infer_response.id == "a"
        native = classification_pb2_grpc.ClassificationServiceStub(channel).StreamClassify()
        assert await native.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert len(await exchange(Stub(channel), [request()])) == 1


async def test_a_cancelled_stream_leaves_nothing_in_flight(settings: Settings, gate: Gate) -> None:
    async with Server(settings, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        call = Stub(channel).ModelStreamInfer()
        await call.write(request(pictures(3)))
        await until(lambda: server.in_flight == 3)
        call.cancel()
        gate.open()
        await until(lambda: server.in_flight == 0)


async def test_draining_answers_what_was_read_and_refuses_the_rest_inside_the_stream(
    settings: Settings, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CLOSE_GRACE_S", PATIENCE_S)
    async with started(Server(settings, gate.load)) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = Stub(channel).ModelStreamInfer()
        for n in range(3):
            await call.write(request(id=str(n)))
        await until(lambda: server.in_flight == 3)
        stopping = asyncio.create_task(server.shutdown())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await call.write(request(id="late"))
        gate.open()
        responses = [await call.read() for _ in range(4)]
        assert [response.infer_response.id for response in responses] == ["0", "1", "2", "late"]
        assert [bool(response.error_message) for response in responses] == [False, False, False, True]
        assert "[request id: late] UNAVAILABLE" in responses[3].error_message
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        await stopping


async def test_a_stream_that_its_caller_does_not_close_ends_as_unavailable(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CLOSE_GRACE_S", 0.0)
    async with started(Server(settings)) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        call = Stub(channel).ModelStreamInfer()
        await call.write(request(id="a"))
        assert (await call.read()).infer_response.id == "a"
        stopping = asyncio.create_task(server.shutdown())
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(stopping, PATIENCE_S / 2)  # the drain timeout is PATIENCE_S
