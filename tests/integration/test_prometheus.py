"""A real Prometheus scrapes a real server under load: every panel, rule and alert of ours has data."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from offramp_model.bundle import Control
from offramp_model.network import MultiExitResNet
from offramp_model.weights import publish_bundle
from offramp_server.app import Server
from offramp_server.config import Settings
from tests.contract.test_monitoring import DOCKER, panel_expressions, rules
from tests.integration.conftest import PATIENCE_S
from tests.integration.messages import bad_frame, config, frame, send
from tests.unit.server.rpc.manifests import EXITS, tiny_manifest

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's package prometheus is not installed")

POLL_S = 0.2
VARIABLES = {"$model": ".*", "$version": ".*", "$policy": ".*", "$__rate_interval": "1m"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A model whose default control has a measured exit histogram, and the smallest window for the drift score."""
    manifest = tiny_manifest(control=Control(policy="router", lambda_=2.0))
    torch.manual_seed(0)
    publish_bundle(tmp_path / "store", manifest, MultiExitResNet(manifest.network).state_dict(), {})
    return Settings(
        store=tmp_path / "store",
        grpc_port=0,
        http_port=0,
        device="cpu",
        torch_threads=1,
        drift_window=100,
        drain_timeout_s=PATIENCE_S,
    )


@pytest.fixture
async def load(stub: classification_pb2_grpc.ClassificationServiceStub) -> AsyncIterator[None]:
    """A stream that goes on until the test ends: every policy, every depth, bounds of cost, and frames that are refused."""
    stop = asyncio.Event()

    async def requests() -> AsyncIterator[pb.StreamClassifyRequest]:
        yield config()
        frame_id = 0
        while not stop.is_set():
            controls: list[dict[str, object]] = [{}] * 8
            controls += [{"policy": pb.POLICY_FIXED, "max_exit": exit} for exit in range(1, EXITS + 1)]
            controls += [{"policy": pb.POLICY_ENTROPY}, {"policy": pb.POLICY_CONFIDENCE, "threshold": 0.3}, {"max_cost": 0.6}]
            for control in controls:
                yield send(frame(frame_id, **control))
                frame_id += 1
            yield send(bad_frame(frame_id))
            await asyncio.sleep(POLL_S / 4)  # enough for every series, and the machine's other half for Prometheus

    async def run() -> None:
        async for _ in stub.StreamClassify(requests()):
            pass

    streaming = asyncio.create_task(run())
    yield
    stop.set()
    await asyncio.wait_for(streaming, PATIENCE_S)


class Prometheus:
    """The query API of a running Prometheus."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer."""
        response = await self._client.get(path, params=parameters)
        answer = response.json()
        assert answer["status"] == "success", answer
        return answer["data"]

    async def has_data(self, expression: str) -> bool:
        """Whether the expression gives a number now."""
        found = await self.get("/api/v1/query", query=expression)
        return any(math.isfinite(float(series["value"][1])) for series in found["result"])

    async def until_data(self, expressions: set[str]) -> None:
        """Return once each of the expressions has given a number; fail naming those that never do."""
        waiting = set(expressions)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while waiting:
                    for expression in sorted(waiting):
                        if await self.has_data(expression):
                            waiting.remove(expression)
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            pytest.fail("no data for " + "\n".join(sorted(waiting)))


def our_configuration(target: str) -> dict[str, Any]:
    """The committed configuration, at a test's pace."""
    configuration = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"}
    configuration["rule_files"] = [str(DOCKER / "prometheus" / name) for name in configuration["rule_files"]]
    configuration["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    return dict(configuration)


@pytest.fixture
async def prometheus(server: Server, tmp_path: Path) -> AsyncIterator[Prometheus]:
    """One that scrapes the server."""
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(our_configuration(server.http_address)))
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    drained = None
    try:
        address = await asyncio.wait_for(_listening_address(process.stderr), PATIENCE_S)
        drained = asyncio.create_task(process.stderr.read())
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=PATIENCE_S, trust_env=False) as client:
            yield Prometheus(client)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if drained is not None:
            await drained


async def _listening_address(log: asyncio.StreamReader) -> str:
    lines = []
    async for line in log:
        lines.append(line.decode())
        if found := re.search(r'msg="Listening on" address="?([\d.]+:\d+)', lines[-1]):
            return found[1]
    raise AssertionError("prometheus did not start:\n" + "".join(lines))


def bare(expression: str) -> str:
    """An alert's expression without its comparisons."""
    return re.sub(r"\s*(==|!=|>=|<=|>|<)\s*[\d.]+", "", expression)


async def test_every_panel_rule_and_alert_has_data(server: Server, prometheus: Prometheus, load: None) -> None:
    expressions = set()
    for _, expression in panel_expressions():
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        expressions.add(expression)
    assert not [expression for expression in expressions if "$" in expression]
    alerts = [rule for rule in rules() if "alert" in rule]
    assert all(bare(rule["expr"]) != rule["expr"] for rule in alerts)
    records = {rule["record"] for rule in rules() if "record" in rule}
    await prometheus.until_data(expressions | records | {bare(rule["expr"]) for rule in alerts})
    judged = [rule for group in (await prometheus.get("/api/v1/rules"))["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in judged} == {rule["alert"] for rule in alerts} | records
    assert [rule for rule in judged if rule["health"] != "ok" or rule.get("lastError")] == []
    for label in ("model", "version", "policy"):
        assert await prometheus.get(f"/api/v1/label/{label}/values", **{"match[]": '{__name__=~"offramp_.*"}'}), label


async def test_a_server_that_is_gone_is_noticed(server: Server, prometheus: Prometheus) -> None:
    await prometheus.until_data({'up{job="offramp"} == 1'})
    await server.shutdown()
    await prometheus.until_data({'ALERTS{alertname="OfframpDown",alertstate="pending"}'})
