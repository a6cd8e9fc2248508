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
from offramp_model.weights import load_network
from offramp_server.backends.torch_backend import TorchBackend
from offramp_server.engine.execution import Place, no_logits, run_stage, run_whole
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


def test_a_normalised_tensor_is_taken_as_it_is(bundle: Bundle, backend: TorchBackend) -> None:
    batch = images(4, backend.input_size)
    tensors = [normalised(bundle, image) for image in batch]
    np.testing.assert_allclose(backend.prepare(tensors).numpy(), backend.prepare(batch).numpy(), atol=1e-5)


def test_stages_in_a_row_give_what_the_network_gives(bundle: Bundle, backend: TorchBackend) -> None:
    network = load_network(bundle)
    with torch.inference_mode():
        features, logits_NEC = backend.prepare(images(2, backend.input_size)), no_logits(2, backend.classes)
        for exit, expected in enumerate(network.stages(features), 1):
            result = backend.run_stage(exit, features, logits_NEC)
            np.testing.assert_allclose(result.logits_NEC, expected.logits_NEC, rtol=1e-4, atol=1e-5)
            if expected.router_output is None:
                assert result.router_output is None
            else:
                np.testing.assert_allclose(result.router_output, expected.router_output, rtol=1e-4, atol=1e-5)
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
    together = run_stage(backend, 1, frames, batch)
    for row, (frame, control) in enumerate(zip(frames, batch, strict=True)):
        alone = run_stage(backend, 1, [frame], [control])
        assert together.halting[row] == pytest.approx(alone.halting[0], abs=1e-5)
        np.testing.assert_allclose(together.probabilities_NC[row], alone.probabilities_NC[0], atol=1e-5)
        # a score within rounding of its threshold may fall either way
        if abs(alone.halting[0][0] - control.thresholds[0]) > 1e-4 and control.policy is not Policy.ENTROPY:
            assert (together.places[row] is None) == (alone.places[0] is None)


def test_survivors_of_several_batches_run_as_if_they_had_stayed_together(backend: TorchBackend) -> None:
    frames = images(7, backend.input_size)
    stays = FrameControl(Policy.ROUTER, 0.0, (1.0,) * 3, 1, 4)
    goes = FrameControl(Policy.FIXED, 0.0, (1.0,) * 3, 1, 1)
    first = run_stage(backend, 1, frames[:4], [stays, goes, stays, stays])
    second = run_stage(backend, 1, frames[4:], [stays] * 3)
    assert [place is None for place in first.places] == [False, True, False, False]
    # the third of the first cohort is dropped on the way
    places = [first.places[0], first.places[3], *second.places]
    later = run_stage(backend, 2, [place for place in places if place is not None], [stays] * 5)
    kept = [frames[row] for row in (0, 3, 4, 5, 6)]
    together = run_stage(backend, 1, kept, [stays] * 5)
    expected = run_stage(backend, 2, [place for place in together.places if place is not None], [stays] * 5)
    np.testing.assert_allclose(later.probabilities_NC, expected.probabilities_NC, atol=1e-5)
    np.testing.assert_allclose(later.halting, expected.halting, atol=1e-5)


def test_a_run_of_the_whole_network_answers_as_its_stages_do(backend: TorchBackend) -> None:
    frames = images(3, backend.input_size)
    controls = [FrameControl(Policy.FIXED, lambda_, (0.5,) * 3, 1, 4) for lambda_ in (0.0, 0.5, 3.0)]
    whole = run_whole(backend, frames, controls)
    inputs: list[np.ndarray | Place] = [*frames]
    for stage in range(1, 5):
        outcome = run_stage(backend, stage, inputs, controls)
        inputs = [place for place in outcome.places if place is not None]
        if stage < 4:
            np.testing.assert_allclose([row[stage - 1] for row in whole.halting], [row[0] for row in outcome.halting], atol=1e-5)
    assert whole.places == outcome.places == [None] * 3
    assert whole.by_policy == outcome.by_policy
    np.testing.assert_allclose(whole.probabilities_NC, outcome.probabilities_NC, atol=1e-5)
