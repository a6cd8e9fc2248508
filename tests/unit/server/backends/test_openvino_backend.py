"""The OpenVINO backend on the trained smoke bundles: cut stages against the uncut graph and torch, row by row."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from offramp_model.bundle import MANIFEST, Bundle, BundleError, open_bundle
from offramp_model.graphs import FOLDER, GRAPH_WEIGHTS, KINDS
from offramp_model.routing import Policy
from offramp_server.backends import OpenVinoBackend
from offramp_server.backends.torch_backend import TorchBackend
from offramp_server.engine.execution import Place, no_logits, run_stage, run_whole, warm_up
from offramp_server.engine.types import FrameControl, StageResult
from offramp_training.data import synthetic_images
from tests.conftest import HAS_NNCF

pytestmark = pytest.mark.skipif(not HAS_NNCF, reason="the bundle gets its graphs from openvino and nncf, which are not installed")

THREADS = 2
"""More than one, so that a kernel whose threads get in each other's way shows."""


@pytest.fixture(scope="module", params=["1", "2"], ids=["bank", "forecast"])
def bundle(smoke_store: Path, request: pytest.FixtureRequest) -> Bundle:
    return open_bundle(smoke_store / "smoke" / str(request.param))


@pytest.fixture(scope="module")
def int8(bundle: Bundle) -> OpenVinoBackend:
    return OpenVinoBackend(bundle, "int8", THREADS)


@pytest.fixture(scope="module")
def exact(bundle: Bundle) -> OpenVinoBackend:
    return OpenVinoBackend(bundle, "f32", THREADS)


def images(bundle: Bundle, count: int, seed: int = 0) -> list[np.ndarray]:
    """Such as the bundle was trained on."""
    return list(synthetic_images(count, bundle.manifest.network.input_size, seed).images_NCHW.permute(0, 2, 3, 1).numpy())


def normalised(bundle: Bundle, image: np.ndarray) -> np.ndarray:
    mean, std = (
        np.array(values, np.float32) for values in (bundle.manifest.preprocessing.mean, bundle.manifest.preprocessing.std)
    )
    return ((image.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)


def run_stages(backend: OpenVinoBackend | TorchBackend, batch: list[np.ndarray]) -> list[StageResult]:
    features = backend.prepare(batch)
    logits_NEC = no_logits(len(batch), backend.classes)
    results = []
    for exit in range(1, backend.exits + 1):
        result = backend.run_stage(exit, features, logits_NEC)
        features, logits_NEC = backend.take(result.features, np.arange(len(batch))), result.logits_NEC
        results.append(StageResult(features, logits_NEC, result.router_output))
    return results


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 33])
def test_a_batch_of_any_size_gives_each_frame_what_it_gets_alone(bundle: Bundle, int8: OpenVinoBackend, count: int) -> None:
    batch = images(bundle, count)
    together, first, last = (run_stages(int8, frames) for frames in (batch, batch[:1], batch[-1:]))
    for stage, result in enumerate(together):
        assert len(result.logits_NEC) == count
        np.testing.assert_allclose(result.logits_NEC[:1], first[stage].logits_NEC)
        np.testing.assert_allclose(result.logits_NEC[-1:], last[stage].logits_NEC)
    logits_NEC, routers = int8.run_whole(int8.prepare(batch))
    assert [len(output) for output in (logits_NEC, *routers)] == [count] * int8.exits


def test_float_stages_give_what_torch_gives(bundle: Bundle, exact: OpenVinoBackend) -> None:
    batch = images(bundle, 5)
    for ours, theirs in zip(run_stages(exact, batch), run_stages(TorchBackend(bundle, "cpu"), batch), strict=True):
        np.testing.assert_allclose(ours.logits_NEC, theirs.logits_NEC, atol=1e-4, rtol=1e-4)
        if theirs.router_output is None:
            assert ours.router_output is None
        else:
            assert ours.router_output is not None
            np.testing.assert_allclose(ours.router_output, theirs.router_output, atol=1e-4, rtol=1e-4)


def test_int8_stages_are_near_what_torch_gives(bundle: Bundle, int8: OpenVinoBackend) -> None:
    batch = images(bundle, 40)
    theirs = run_stages(TorchBackend(bundle, "cpu"), batch)[-1].logits_NEC
    ours = run_stages(int8, batch)[-1].logits_NEC
    assert float(np.sqrt(np.square(ours - theirs).mean())) < 0.15 * float(theirs.std())


def test_features_travel_between_int8_stages_in_uint8(bundle: Bundle, int8: OpenVinoBackend) -> None:
    in_float = json.loads((bundle.path / "metrics.json").read_text())["graphs"]["float_stages"]  # a gate on few images decides
    results = run_stages(int8, images(bundle, 3))
    assert len(in_float) < len(results) - 1
    for next_stage, result in enumerate(results[:-1], 2):
        assert len(result.features) == 3
        if next_stage not in in_float:
            assert result.features.dtype == np.uint8


@pytest.mark.parametrize("precision", ["int8", "f32"])
def test_cut_stages_give_what_the_uncut_graph_gives(
    bundle: Bundle, precision: str, int8: OpenVinoBackend, exact: OpenVinoBackend
) -> None:
    backend, batch = (int8 if precision == "int8" else exact), images(bundle, 6)
    cut = run_stages(backend, batch)
    logits_NEC, routers = backend.run_whole(backend.prepare(batch))
    np.testing.assert_allclose(logits_NEC, cut[-1].logits_NEC, atol=1e-4, rtol=1e-4)
    assert len(routers) == backend.exits - 1
    for router, stage in zip(routers, cut, strict=False):
        assert stage.router_output is not None
        np.testing.assert_allclose(router, stage.router_output, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 7, 16, 33])
def test_an_answer_does_not_depend_on_batch_mates(bundle: Bundle, int8: OpenVinoBackend, count: int) -> None:
    batch = images(bundle, count, seed=count)
    together = run_stages(int8, batch)
    for row in {0, count // 2, count - 1}:
        alone = run_stages(int8, [batch[row]])
        for one, all_of_them in zip(alone, together, strict=True):
            np.testing.assert_allclose(all_of_them.logits_NEC[row], one.logits_NEC[0], atol=1e-4, rtol=1e-4)


def test_shares_of_the_cores_answer_at_the_same_time_as_all_of_them_do(bundle: Bundle, int8: OpenVinoBackend) -> None:
    batches = [images(bundle, 9, seed) for seed in range(6)]
    expected = [run_stages(int8, batch) for batch in batches]
    shares = int8.split()
    assert len(shares) == 2 * THREADS
    with ThreadPoolExecutor(len(shares)) as threads:
        both = list(threads.map(lambda share: [run_stages(share, batch) for batch in batches], shares))
    for answers in both:
        for ours, theirs in zip(answers, expected, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(one.logits_NEC, other.logits_NEC, atol=1e-4, rtol=1e-4)


def test_a_single_core_is_not_shared(bundle: Bundle) -> None:
    assert OpenVinoBackend(bundle, "int8", threads=1).split() == []


def test_the_same_batch_gets_the_same_answers_again(bundle: Bundle, int8: OpenVinoBackend) -> None:
    batch = images(bundle, 64)
    first = run_stages(int8, batch)[-1].logits_NEC
    for _ in range(10):
        np.testing.assert_array_equal(run_stages(int8, batch)[-1].logits_NEC, first)


def test_normalised_tensors_are_answered_like_pixels(bundle: Bundle, int8: OpenVinoBackend) -> None:
    batch = images(bundle, 6)
    pixels = run_stages(int8, batch)[0].logits_NEC
    tensors = run_stages(int8, [normalised(bundle, image) for image in batch])[0].logits_NEC
    # a tensor's own rounding may move a value to the next of 256 levels
    assert float(np.abs(tensors - pixels).max()) < 0.1 * float(pixels.std())


def test_the_engine_runs_on_it(bundle: Bundle, int8: OpenVinoBackend) -> None:
    ran: list[tuple[str, int]] = []
    warm_up([int8], 8, time.perf_counter, lambda lane, size, seconds: ran.append((lane, size)))
    assert ran == [(lane, size) for size in (1, 8) for lane in ("1", "2", "3", "4", "whole")]
    thresholds = (0.5,) * (int8.exits - 1)
    controls = [FrameControl(policy, 0.0, thresholds, 1, int8.exits) for policy in (Policy.FIXED, Policy.ROUTER)]
    first = run_stage(int8, 1, images(bundle, 2), controls)
    place = first.places[0]
    assert place is not None
    second = run_stage(int8, 2, [place], controls[:1]).places[0]
    assert second is not None
    assert second.cohort.logits_NEC.shape == (1, 2, int8.classes)


def test_the_uncut_graph_answers_as_the_stages_do(bundle: Bundle, int8: OpenVinoBackend) -> None:
    frames, controls = images(bundle, 5), [FrameControl(Policy.FIXED, 0.3, (0.5,) * 3, 1, 4)] * 5
    whole = run_whole(int8, frames, controls)
    inputs: list[np.ndarray | Place] = [*frames]
    for stage in range(1, 5):
        outcome = run_stage(int8, stage, inputs, controls)
        inputs = [place for place in outcome.places if place is not None]
        if stage < 4:
            np.testing.assert_allclose([row[stage - 1] for row in whole.halting], [row[0] for row in outcome.halting], atol=1e-3)
    # OpenVINO may fuse and round otherwise where the network is not cut
    np.testing.assert_allclose(whole.probabilities_NC, outcome.probabilities_NC, atol=1e-3)


def damaged(bundle: Bundle, folder: Path, name: str) -> Path:
    shutil.copytree(bundle.path, folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["stage2.xml", GRAPH_WEIGHTS])
def test_a_graph_that_is_not_the_published_one_is_refused(bundle: Bundle, tmp_path: Path, kind: str, name: str) -> None:
    folder = damaged(bundle, tmp_path / "1", f"{FOLDER}/{kind}/{name}")
    with pytest.raises(BundleError, match=rf"{kind}/{name}: does not match its sha256"):
        open_bundle(folder)


def test_a_graph_whose_digest_is_not_listed_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "1")
    name = f"{FOLDER}/int8/stage1.xml"
    files = {file: digest for file, digest in bundle.manifest.files.items() if file != name}
    (tmp_path / "1" / MANIFEST).write_text(bundle.manifest.model_copy(update={"files": files}).model_dump_json())
    with pytest.raises(BundleError, match=f"lists no digest of {name}"):
        open_bundle(tmp_path / "1")


def test_a_graph_that_openvino_cannot_read_is_named(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "1")
    path = tmp_path / "1" / FOLDER / "int8" / "stage3.xml"
    path.write_text("<net/>")
    with pytest.raises(BundleError, match=r"stage3\.xml: can't be run by OpenVINO"):
        OpenVinoBackend(Bundle(tmp_path / "1", bundle.manifest), "int8")


def test_nothing_is_reported_to_anybody() -> None:
    """OpenVINO would tell its makers of every import."""
    code = (
        "import sys; from offramp_server.backends.openvino_backend import openvino_capabilities; openvino_capabilities(); "
        "print([name for name in sys.modules if name.startswith('openvino_telemetry') and sys.modules[name]])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch is asked for the CUDA device that there is")
def test_a_server_that_runs_graphs_never_imports_torch(smoke_store: Path) -> None:
    """It would take seconds of the start, and memory (ADR 15)."""
    code = f"""
import asyncio, sys
from offramp_server.app import Server
from offramp_server.config import Settings

async def main():
    async with Server(Settings(store={str(smoke_store)!r}, models=["smoke"], grpc_port=0, http_port=0)):
        print("torch" in sys.modules)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "False", done.stdout
