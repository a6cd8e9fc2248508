"""The bundles that a fresh clone can serve, the one that it does by default, and the demo that shows it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from offramp_client import Client
from offramp_client.demo import Demo
from offramp_model.bundle import WEIGHTS, BundleStore
from offramp_server.app import Server
from offramp_server.config import DEFAULT_MODEL, Settings
from tests.integration.conftest import PATIENCE_S

ROOT = Path(__file__).parents[2]
STORE = ROOT / "model_store" / "bundles"


@pytest.mark.parametrize("name", BundleStore(STORE).names())
def test_it_is_whole_small_and_good_enough(name: str) -> None:
    bundle = BundleStore(STORE).open(name)
    manifest = bundle.manifest
    assert (bundle.path / WEIGHTS).stat().st_size <= 32e6
    assert manifest.costs.full_macs == 555_422_720
    assert manifest.full_accuracy >= 0.9
    assert "JPEG" in manifest.provenance.data_note
    assert "JPEG" in (bundle.path / "README.md").read_text()
    assert manifest.default_control.policy == "router"
    costs = [point.mean_cost for point in manifest.operating_points if point.control.policy == "router"]
    assert costs == sorted(costs, reverse=True), "a higher price of compute bought more of it"


async def test_a_server_without_any_setting_serves_it() -> None:
    settings = Settings(grpc_port=0, http_port=0, device="cpu", torch_threads=1, drain_timeout_s=PATIENCE_S)
    async with Server(settings) as server, Client(server.grpc_address, timeout_s=PATIENCE_S) as client:
        (summary,) = await client.models()
        assert (summary.name, summary.is_default) == (DEFAULT_MODEL, True)
        (photograph,) = islice(Demo(), 1)
        seen = await client.classify(photograph.image, policy="fixed")
        assert seen.name == "cat"


def random_test_images(count: int) -> list[tuple[bytes, str]]:
    """JPEG files of the test split and their classes."""
    files = sorted(Path(os.environ["OFFRAMP_CIFAR10"]).glob("test/*/*"))
    return [(file.read_bytes(), file.parent.name) for file in random.Random(0).sample(files, count)]


@pytest.mark.skipif("OFFRAMP_CIFAR10" not in os.environ, reason="OFFRAMP_CIFAR10 names no image folder")
async def test_it_is_as_accurate_on_real_images_as_its_metrics_say() -> None:
    metrics = json.loads((BundleStore(STORE).open(DEFAULT_MODEL).path / "metrics.json").read_text())
    row = next(row for row in metrics["table"] if row["kind"] == "router")
    chosen = random_test_images(500)
    settings = Settings(grpc_port=0, http_port=0, device="cpu", drain_timeout_s=PATIENCE_S)
    async with Server(settings) as server, Client(server.grpc_address) as client:
        results = [result.unwrap() async for result in client.stream([image for image, _ in chosen])]
    accuracy = sum(seen.name == name for seen, (_, name) in zip(results, chosen, strict=True)) / len(chosen)
    cost = sum(seen.cost_ratio for seen in results) / len(chosen)
    # four standard errors of five hundred images
    assert accuracy == pytest.approx(row["test"]["accuracy"], abs=0.06)
    assert cost == pytest.approx(row["test"]["mean_cost"], abs=0.05)


def test_the_demo_runs_to_its_end() -> None:
    command = [sys.executable, str(ROOT / "examples" / "demo.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE_S, check=False)
    assert result.returncode == 0, result.stderr
    assert "offramp_exit_depth_bucket" in result.stdout
    assert "exited with 0" in result.stdout
