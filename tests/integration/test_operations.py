"""What operators see: the scrape, liveness and readiness, starting, draining."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from offramp_model.bundle import publish_bundle
from offramp_model.drift import DriftReference
from offramp_model.network import MultiExitResNet
from offramp_server.app import Server, StartupError
from offramp_server.config import Settings
from tests.integration.conftest import PATIENCE_S, Gate, publish_tiny, started, until
from tests.integration.messages import bad_frame, config, frame, send
from tests.unit.server.rpc.manifests import EXITS, tiny_manifest

Stub = classification_pb2_grpc.ClassificationServiceStub
COSTS = tiny_manifest().costs


async def get(server: Server, path: str, method: str = "GET") -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://{server.http_address}", timeout=PATIENCE_S, trust_env=False) as client:
        return await client.request(method, path)


async def scrape(server: Server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of the model's metrics, by name and labels other than model and version."""
    response = await get(server, "/metrics")
    assert response.status_code == 200
    return {
        (sample.name, frozenset((k, v) for k, v in sample.labels.items() if k not in ("model", "version"))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


REASON = "the bundle carries no OpenVINO graphs; torch runs float32 on a CPU"


def key(name: str, **labels: object) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"offramp_{name}", frozenset((k, str(v)) for k, v in labels.items())


async def test_the_scrape_agrees_with_the_frames_sent(server: Server, stub: Stub) -> None:
    frames = [frame(n, policy=pb.POLICY_FIXED, max_exit=2) for n in range(5)] + [frame(n, lambda_=1e9) for n in range(3)]
    call = stub.StreamClassify(iter([config(), *map(send, frames), send(bad_frame())]))
    exits = [response.result.classification.exit async for response in call if response.result.HasField("classification")]
    assert exits == [2] * 5 + [1] * 3
    samples = await scrape(server)
    assert samples[key("frames_total", policy="fixed", exit=2, reason="max_exit")] == 5
    assert samples[key("frames_total", policy="router", exit=1, reason="policy")] == 3
    depth = [samples[key("exit_depth_bucket", le=f"{exit}.0")] for exit in range(1, EXITS + 1)]
    assert depth == [3, 8, 8, 8]
    assert samples[key("exit_depth_sum")] == 13
    spent = 5 * COSTS.exit_macs[1] + 3 * COSTS.exit_macs[0]
    assert samples[key("macs_spent_total")] == spent
    assert samples[key("macs_saved_total")] == 8 * COSTS.full_macs - spent
    assert samples[key("compute_ratio_sum", policy="fixed")] == pytest.approx(5 * COSTS.exit_macs[1] / COSTS.full_macs)
    assert samples[key("compute_ratio_count", policy="router")] == 3
    for name in ("exit_depth_count", "latency_seconds_count", "queue_seconds_count", "frames_admitted_total"):
        assert samples[key(name)] == 8
    assert samples[key("batch_size_frames_sum", stage=1)] == 8
    assert samples[key("batch_size_frames_sum", stage=2)] == 5
    assert samples[key("requested_lambda_count")] == 3
    assert samples[key("frames_refused_total", reason="invalid")] == 1
    assert samples[key("frames_in_flight")] == 0
    assert samples[key("streams")] == 0
    assert samples[key("model_info", backend="torch", device="cpu, float32", reason=REASON)] == 1
    assert ("process_start_time_seconds", frozenset()) in samples


async def test_the_drift_scores_are_of_frames_under_the_default_control(settings: Settings, tmp_path: Path) -> None:
    reference = DriftReference(exit_counts=(0, 0, 0, 500), confidence_counts=(*(0,) * 19, 500))
    manifest = tiny_manifest().model_copy(update={"drift_reference": reference})
    torch.manual_seed(1)
    publish_bundle(tmp_path, manifest, MultiExitResNet(manifest.network).state_dict(), {})
    async with (
        Server(settings.model_copy(update={"store": tmp_path, "drift_window": 100})) as server,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        kinds = ("exit", "confidence")
        others = [send(frame(n, lambda_=9.0)) for n in range(30)] + [send(frame(n, policy=pb.POLICY_FIXED)) for n in range(30)]
        assert len([answer async for answer in Stub(channel).StreamClassify(iter([config(), *others]))]) > 60
        samples = await scrape(server)
        assert samples[key("drift_frames")] == 0
        assert all(math.isnan(samples[key("drift_score", kind=kind)]) for kind in kinds)
        # the default's λ, given by name, is the default
        frames = [send(frame(n)) for n in range(20)] + [send(frame(n, lambda_=0.5)) for n in range(10)]
        assert len([answer async for answer in Stub(channel).StreamClassify(iter([config(), *frames]))]) > 30
        samples = await scrape(server)
        assert samples[key("drift_frames")] == 30
        # random weights are sure of nothing, and the reference says that every frame was
        assert samples[key("drift_score", kind="confidence")] > 0.9
        assert 0 <= samples[key("drift_score", kind="exit")] <= 1


async def test_streams_and_cancelled_frames_are_counted(settings: Settings, gate: Gate) -> None:
    async with Server(settings, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        call = Stub(channel).StreamClassify()
        await call.write(config())
        await call.write(send(frame(0)))
        await until(lambda: server.in_flight == 1)
        samples = await scrape(server)
        assert (samples[key("streams")], samples[key("frames_in_flight")]) == (1, 1)
        call.cancel()
        async with asyncio.timeout(PATIENCE_S):
            while (await scrape(server))[key("streams")]:
                pass
        gate.open()
        await until(lambda: server.in_flight == 0)
        samples = await scrape(server)
        assert (samples[key("streams")], samples[key("frames_dropped_total", reason="cancelled")]) == (0, 1)


async def test_the_http_side_is_small_and_read_only(server: Server) -> None:
    assert (await get(server, "/livez")).status_code == 200
    assert (await get(server, "/readyz")).status_code == 200
    assert (await get(server, "/")).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "ANYTHING"])
async def test_the_http_side_takes_nothing_that_could_change_state(server: Server, method: str) -> None:
    for path in ("/metrics", "/livez", "/readyz", "/", "/v2/repository/models/tiny/load"):
        response = await get(server, path, method)
        assert response.status_code == 405
        assert response.headers["allow"] == "GET, HEAD"
    assert (await get(server, "/readyz", "HEAD")).status_code == 200


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


# --- the command ------------------------------------------------------------------------------------------------------


def command(store: Path, *arguments: str) -> list[str]:
    flags = [
        "--store",
        str(store),
        "--grpc-port",
        "0",
        "--http-port",
        "0",
        "--device",
        "cpu",
        "--torch-threads",
        "1",
        "--log-format",
        "json",
    ]
    return [sys.executable, "-m", "offramp_server", *flags, *arguments]


async def test_sigterm_answers_what_was_taken_and_exits_with_0(tiny_store: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    process = await asyncio.create_subprocess_exec(
        *command(tiny_store, "--ready-file", str(ready)), stderr=asyncio.subprocess.PIPE
    )
    try:
        await until(ready.exists)
        addresses = json.loads(ready.read_text())
        async with grpc.aio.insecure_channel(addresses["grpc"]) as channel:
            call = Stub(channel).StreamClassify()
            await call.write(config())

            draining = asyncio.Event()

            async def write() -> None:
                for n in itertools.count():
                    if draining.is_set():
                        break
                    await call.write(send(frame(n)))
                await call.done_writing()

            writer = asyncio.create_task(write())
            responses = []
            async for response in call:
                responses.append(response)
                if len(responses) == 10:
                    process.send_signal(signal.SIGTERM)
                if response.status.state == pb.StreamStatus.STATE_DRAINING:
                    draining.set()
            await writer
            assert await call.code() is grpc.StatusCode.OK
        async with asyncio.timeout(PATIENCE_S):
            _, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert responses[-1].status.state == pb.StreamStatus.STATE_DRAINING
    answers = responses[1:-1]
    assert [answer.result.frame_id for answer in answers] == list(range(len(answers)))
    assert all(answer.result.HasField("classification") for answer in answers)
    lines = [json.loads(line) for line in log.splitlines()]
    serving = next(line for line in lines if line["message"] == "serving")
    assert {"grpc": serving["grpc"], "http": serving["http"]} == addresses
    assert [line["message"] for line in lines][-3:] == ["draining", "call ended", "stopped"]
    assert lines[-2]["frames"] == len(answers)
    assert not ready.exists()


async def test_a_second_signal_ends_a_drain_at_once() -> None:
    script = """
import asyncio
from offramp_server import app
from offramp_server.config import Settings

async def start(self):
    print("up", flush=True)

async def drain_for_ever(self):
    print("draining", flush=True)
    await asyncio.Event().wait()

app.Server.startup, app.Server.shutdown = start, drain_for_ever
app.run(Settings())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        for word in (b"up\n", b"draining\n"):
            assert await process.stdout.readline() == word
            process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 128 + signal.SIGTERM


async def test_a_ready_file_that_cannot_be_written_is_a_startup_error(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="ready_file"):
        async with Server(settings.model_copy(update={"ready_file": tmp_path / "absent" / "ready.json"})):
            pass


def test_a_damaged_bundle_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    bundle = publish_tiny(tmp_path)
    weights = bundle.path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x00")
    result = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=PATIENCE_S * 2, env=os.environ)
    assert result.returncode == 1
    errors = [line for line in map(json.loads, result.stderr.splitlines()) if line["level"] == "error"]
    assert len(errors) == 1
    assert "weights.safetensors" in errors[0]["message"]
    assert "exception" not in errors[0]
