"""Starting, readiness, draining."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from offramp_server.app import Server, StartupError
from offramp_server.config import Settings
from tests.integration.conftest import PATIENCE_S, Gate, get, started, until
from tests.integration.messages import config, frame, send

Stub = classification_pb2_grpc.ClassificationServiceStub


async def test_the_ready_file_lives_as_long_as_the_server_is_ready(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    async with Server(settings.model_copy(update={"ready_file": path})) as server:
        assert json.loads(path.read_text()) == {"grpc": server.grpc_address, "http": server.http_address}
    assert os.listdir(tmp_path) == []


async def test_nothing_is_ready_before_the_warm_up_ends(settings: Settings, gate: Gate) -> None:
    server = Server(settings, gate.load_closed)
    starting = asyncio.create_task(server.startup())
    await until(lambda: bool(server.grpc_address))
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        assert (await get(server, "/livez")).status_code == 200
        assert (await get(server, "/readyz")).status_code == 503
        status = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert status.status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await Stub(channel).Classify(pb.ClassifyRequest(frame=frame()))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await until(lambda: bool(gate.backends))
        gate.open()
        await starting
        assert (await get(server, "/readyz")).status_code == 200
        assert (await Stub(channel).Classify(pb.ClassifyRequest(frame=frame()))).result.classification.exit
    await server.shutdown()


async def test_draining_answers_what_is_in_flight_and_ends_streams_well(settings: Settings, gate: Gate) -> None:
    async with started(Server(settings, gate.load)) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        idle = Stub(channel).StreamClassify()  # sends no config, and must not hold the drain up
        call = Stub(channel).StreamClassify()
        await call.write(config())
        for n in range(3):
            await call.write(send(frame(n)))
        unary = Stub(channel).Classify(pb.ClassifyRequest(frame=frame(9)))
        await until(lambda: server.in_flight == 4)
        stopping = asyncio.create_task(server.shutdown())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await get(server, "/readyz")).status_code == 503
        assert (await get(server, "/livez")).status_code == 200
        assert not stopping.done()
        gate.open()
        responses = [await call.read() for _ in range(5)]
        assert [r.result.frame_id for r in responses[1:4]] == [0, 1, 2]
        assert all(r.result.HasField("classification") for r in responses[1:4])
        assert responses[4].status.state == pb.StreamStatus.STATE_DRAINING
        await call.write(send(frame(3)))  # too late, and no error: the caller could not know
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        assert (await unary).result.frame_id == 9
        assert await idle.code() is grpc.StatusCode.UNAVAILABLE
        await stopping
    assert server.in_flight == 0


async def test_a_stream_that_its_caller_never_closes_does_not_hold_the_drain_up(settings: Settings) -> None:
    async with started(Server(settings)) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        call = Stub(channel).StreamClassify()
        await call.write(config())
        assert (await call.read()).HasField("status")
        stopping = asyncio.create_task(server.shutdown())
        assert (await call.read()).status.state == pb.StreamStatus.STATE_DRAINING
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        await asyncio.wait_for(stopping, PATIENCE_S / 2)  # the drain timeout is PATIENCE_S


async def test_the_drain_is_bounded(settings: Settings, gate: Gate) -> None:
    hasty = settings.model_copy(update={"drain_timeout_s": 0.1})
    async with started(Server(hasty, gate.load)) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        call = Stub(channel).Classify(pb.ClassifyRequest(frame=frame()))
        await until(lambda: server.in_flight == 1)
        await server.shutdown()  # the gate is still closed
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await call


@pytest.mark.parametrize("port", ["grpc_port", "http_port"])
async def test_a_taken_port_is_a_startup_error_that_names_it(settings: Settings, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Server(settings.model_copy(update={port: taken.getsockname()[1]}))
        with pytest.raises(StartupError, match=port):
            async with server:
                pass


async def test_the_only_model_of_a_store_is_the_default_and_several_need_a_choice(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="no model"):
        async with Server(settings.model_copy(update={"store": tmp_path})):
            pass


async def test_a_ready_file_that_cannot_be_written_is_a_startup_error(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="ready_file"):
        async with Server(settings.model_copy(update={"ready_file": tmp_path / "absent" / "ready.json"})):
            pass
