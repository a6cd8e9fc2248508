"""The torch backend on a small random network: stages equal the network, rows do not depend on their batch-mates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offramp_model.bundle import Bundle, open_bundle
from offramp_model.routing import Policy
from offramp_server.backends import TorchBackend
from offramp_server.engine.execution import run_batch
from offramp_server.engine.types import FrameControl


@pytest.fixture(scope="module", params=["1", "2"], ids=["bank", "forecast"])
def bundle(smoke_store: Path, request: pytest.FixtureRequest) -> Bundle:
    return open_bundle(smoke_store / "smoke" / str(request.param))


@pytest.fixture(scope="module")
def backend(bundle: Bundle) -> TorchBackend:
    return TorchBackend(bundle, device="cpu")


def images(count: int, size: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def normalised(bundle: Bundle, image: np.ndarray) -> np.ndarray:
    mean, std = (
        np.array(values, np.float32) for values in (bundle.manifest.preprocessing.mean, bundle.manifest.preprocessing.std)
    )
    return ((image.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)


def test_normalisation_is_the_manifests(bundle: Bundle, backend: TorchBackend) -> None:
    batch = images(3, backend.input_size)
    expected = np.stack([normalised(bundle, image) for image in batch])
    np.testing.assert_allclose(backend.prepare(batch).numpy(), expected, atol=1e-5)


def test_pixels_and_tensors_mix_in_one_batch(bundle: Bundle, backend: TorchBackend) -> None:
    batch = images(4, backend.input_size)
    mixed = [image if index % 2 else normalised(bundle, image) for index, image in enumerate(batch)]
    np.testing.assert_allclose(backend.prepare(mixed).numpy(), backend.prepare(batch).numpy(), atol=1e-5)


def test_stages_in_a_row_give_what_the_network_gives(bundle: Bundle, backend: TorchBackend) -> None:
    network = bundle.load_network()
    with torch.inference_mode():
        features, logits_NEC = backend.prepare(images(2, backend.input_size)), network.no_exits(2)
        for exit, expected in enumerate(network.stages(features), 1):
            result = backend.run_stage(exit, features, logits_NEC)
            torch.testing.assert_close(result.logits_NEC, expected.logits_NEC)
            if expected.router_output is None:
                assert result.router_output is None
            else:
                torch.testing.assert_close(result.router_output, expected.router_output)
            features, logits_NEC = result.features, result.logits_NEC


controls = st.builds(
    lambda policy, lambda_, threshold, min_exit: FrameControl(policy, lambda_, (threshold,) * 3, min_exit, 4),
    st.sampled_from(list(Policy)),
    st.floats(0, 30),
    st.floats(0.01, 1.0),
    st.integers(1, 4),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(controls, min_size=1, max_size=6), st.integers(0, 2**31))
def test_a_row_is_decided_as_if_it_were_alone(backend: TorchBackend, batch: list[FrameControl], seed: int) -> None:
    frames = images(len(batch), backend.input_size, seed)
    together = run_batch(backend, 1, frames, batch)
    for frame, control, outcome in zip(frames, batch, together, strict=True):
        (alone,) = run_batch(backend, 1, [frame], [control])
        assert outcome.halting == pytest.approx(alone.halting, abs=1e-5)
        # a score within rounding of its threshold may fall either way
        if abs((alone.halting or 0.0) - control.thresholds[0]) > 1e-4 and control.policy is not Policy.ENTROPY:
            assert outcome.leaves == alone.leaves
        if outcome.leaves and alone.leaves:
            np.testing.assert_allclose(outcome.probabilities, alone.probabilities, atol=1e-5)
