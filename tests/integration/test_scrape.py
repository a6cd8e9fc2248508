"""What Prometheus scrapes, and the rest of the HTTP side."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import grpc
import grpc.aio
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from offramp_model.drift import DriftReference
from offramp_model.network import MultiExitResNet
from offramp_model.weights import publish_bundle
from offramp_server.app import Server
from offramp_server.config import Settings
from tests.integration.conftest import PATIENCE_S, Gate, get, until
from tests.integration.messages import bad_frame, config, frame, send
from tests.unit.server.rpc.manifests import EXITS, tiny_manifest

Stub = classification_pb2_grpc.ClassificationServiceStub
COSTS = tiny_manifest().costs


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
