"""The drift score: zero without drift, one without anything in common, growing in between, and quiet on finite samples."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from offramp_model.bundle import Control
from offramp_model.drift import DriftReference, Histogram, confidence_bin, drift_score
from offramp_model.outcomes import Frontier, FrontierPoint
from tests.unit.model.test_bundle import make_manifest

counts = st.lists(st.integers(0, 5000), min_size=2, max_size=20).filter(any)


@given(counts, st.integers(1, 1000))
def test_equal_histograms_are_at_distance_zero(shape: list[int], scale: int) -> None:
    reference = Histogram(tuple(shape), sum(shape))
    assert drift_score([scale * count for count in shape], reference) == 0


@given(st.data(), st.integers(2, 12))
def test_it_lies_between_zero_and_one_whichever_way_round(data: st.DataObject, bins: int) -> None:
    some = st.lists(st.integers(0, 5000), min_size=bins, max_size=bins).filter(any)
    live, held_out = data.draw(some), data.draw(some)
    score = drift_score(live, Histogram(tuple(held_out), sum(held_out)))
    assert 0 <= score <= 1
    assert score == pytest.approx(drift_score(held_out, Histogram(tuple(live), sum(live))), abs=1e-6)


@given(st.lists(st.integers(1, 100), min_size=3, max_size=10), st.integers(0, 9))
def test_it_grows_with_the_share_of_frames_of_another_kind(shape: list[int], bin: int) -> None:
    assume(bin < len(shape))
    reference = Histogram(tuple(shape), math.inf)
    million, other = [1_000_000 * count / sum(shape) for count in shape], [0.0] * len(shape)
    other[bin] = 1_000_000
    mixed = [[(1 - t) * a + t * b for a, b in zip(million, other, strict=True)] for t in (0, 0.1, 0.3, 0.6, 1)]
    scores = [drift_score(live, reference) for live in mixed]
    assert scores[0] == pytest.approx(0, abs=1e-6)
    assert all(less < more for less, more in pairwise(scores))


def test_by_hand() -> None:
    # 90 : 10 against 50 : 50, middle 70 : 30
    divergence = (0.9 * math.log2(9 / 7) + 0.1 * math.log2(1 / 3) + 0.5 * math.log2(5 / 7) + 0.5 * math.log2(5 / 3)) / 2
    expected = 1 / (8 * math.log(2)) * (1 / 1000 + 1 / 500)
    assert drift_score([900, 100], Histogram((250, 250), 500)) == pytest.approx(math.sqrt(divergence - expected))
    # shares of a number of frames that nobody knows
    assert drift_score([900, 100], Histogram((0.5, 0.5), math.inf)) == pytest.approx(
        math.sqrt(divergence - 1 / (8000 * math.log(2)))
    )
    assert drift_score([0, 10**7], Histogram((10**7, 0), 10**7)) == pytest.approx(1, abs=1e-6)
    assert math.isnan(drift_score([0, 0], Histogram((1, 1), 2)))
    with pytest.raises(ValueError, match="zip"):
        drift_score([1, 2, 3], Histogram((1, 1), 2))


@pytest.mark.parametrize(
    "shares",
    [(0.5, 0.25, 0.15, 0.1), (0.01,) * 10 + (0.02,) * 6 + (0.05, 0.08, 0.15, 0.5), (0.97, 0.01, 0.01, 0.01)],
    ids=["exits", "confidences", "lopsided"],
)
def test_without_drift_half_a_thousand_frames_stay_far_below_the_alert(shares: tuple[float, ...]) -> None:
    random = np.random.default_rng(0)
    scores = [
        drift_score(random.multinomial(500, shares).tolist(), Histogram(tuple(random.multinomial(2000, shares).tolist()), 2000))
        for _ in range(400)
    ]
    # the expected divergence is taken off, so that about every other score is 0
    assert 0.25 < np.mean(np.array(scores) == 0) < 0.75
    assert max(scores) < 0.13


@pytest.mark.parametrize(
    ("confidence", "bin"), [(0.0, 0), (0.0499, 0), (0.05, 1), (0.949, 18), (0.95, 19), (1.0, 19), (1.0001, 19)]
)
def test_confidences_fall_into_twenty_bins(confidence: float, bin: int) -> None:
    assert confidence_bin(confidence) == bin


@pytest.mark.parametrize(("exits", "confidences"), [((1, 2), (1, 1)), ((0, 0), (0, 0)), ((1,), (1,)), ((-1, 2), (1, 0))])
def test_a_reference_is_of_the_same_frames_twice(exits: tuple[int, ...], confidences: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        DriftReference(exit_counts=exits, confidence_counts=confidences)


def test_a_bundle_gives_what_it_has_to_hold_live_frames_against() -> None:
    reference = DriftReference(exit_counts=(30, 10), confidence_counts=(0, 40))
    manifest = make_manifest(drift_reference=reference)
    assert manifest.drift_histograms() == {"exit": Histogram((30, 10), 40), "confidence": Histogram((0, 40), 40)}
    assert type(manifest).model_validate_json(manifest.model_dump_json()) == manifest
    with pytest.raises(ValidationError, match="exit_counts of 2 exits"):
        make_manifest(drift_reference=DriftReference(exit_counts=(30, 5, 5), confidence_counts=(0, 40)))


def test_an_older_bundle_gives_its_default_operating_point_if_it_has_one() -> None:
    assert make_manifest().drift_histograms() == {}
    older = make_manifest(default_control=Control(policy="router"))
    assert older.drift_histograms() == {"exit": Histogram((0.1, 0.9), math.inf)}
    point = FrontierPoint(lambda_=0, mean_cost=1, accuracy=0.9, exit_fractions=(0.1, 0.9), losses=0)
    measured = make_manifest(default_control=Control(policy="router"), frontier=Frontier(points=(point,), frames=700))
    assert measured.drift_histograms() == {"exit": Histogram((0.1, 0.9), 700)}
