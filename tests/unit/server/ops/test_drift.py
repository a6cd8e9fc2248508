"""The window of the drift scores: which frames it takes, how it slides, when it speaks, and how it is scraped."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from offramp_model.drift import DriftReference, confidence_bin, drift_score
from offramp_model.routing import ExitReason, Policy
from offramp_server.engine.types import Answer, Frame, FrameControl
from offramp_server.ops.drift import DriftWindow
from offramp_server.ops.metrics import MetricFamilies, ModelMetrics

DEFAULT = FrameControl(Policy.ROUTER, 0.35, (0.5, 0.5), 1, 3)
REFERENCE = DriftReference(exit_counts=(50, 30, 20), confidence_counts=(0,) * 10 + (10,) * 10)
HISTOGRAMS = REFERENCE.histograms()
LABELS = {"model": "m", "version": "1"}


def make_window(size: int = 8) -> DriftWindow:
    return DriftWindow(DEFAULT, HISTOGRAMS, size)


@given(st.lists(st.tuples(st.integers(1, 3), st.floats(0, 1)), max_size=40), st.integers(1, 12))
def test_it_is_of_the_last_frames_alone(frames: list[tuple[int, float]], size: int) -> None:
    window = make_window(size)
    for exit, confidence in frames:
        window.observe(DEFAULT, exit, confidence)
    last = frames[-size:]
    assert window.frames == len(last)
    if 4 * len(last) < size:
        assert all(math.isnan(window.score(kind)) for kind in window.kinds)
    elif last:
        exits = Counter(exit for exit, _ in last)
        bins = Counter(confidence_bin(confidence) for _, confidence in last)
        assert window.score("exit") == drift_score([exits[k] for k in (1, 2, 3)], HISTOGRAMS["exit"])
        assert window.score("confidence") == drift_score([bins[b] for b in range(20)], HISTOGRAMS["confidence"])


@pytest.mark.parametrize(
    "control",
    [
        replace(DEFAULT, policy=Policy.ENTROPY),
        replace(DEFAULT, lambda_=0.36),
        replace(DEFAULT, lambda_=0.0),
        replace(DEFAULT, thresholds=(0.5, 0.6)),
        replace(DEFAULT, min_exit=2),
        replace(DEFAULT, max_exit=2, max_exit_reason=ExitReason.MAX_COST),
    ],
)
def test_frames_under_another_control_are_passed_over(control: FrameControl) -> None:
    window = make_window()
    window.observe(control, 2, 0.9)
    assert window.frames == 0


def test_a_control_that_says_the_same_counts() -> None:
    window = make_window()
    window.observe(replace(DEFAULT, lambda_=float(np.float32(0.35)), max_exit_reason=ExitReason.MAX_COST), 1, 0.9)
    assert window.frames == 1


def test_lambda_zero_is_matched_too() -> None:
    window = DriftWindow(replace(DEFAULT, lambda_=0.0), HISTOGRAMS, 8)
    window.observe(replace(DEFAULT, lambda_=0.0), 1, 0.9)
    assert window.frames == 1


def test_it_is_silent_at_first_then_zero_and_rises_when_frames_change() -> None:
    window = make_window(1000)
    for index in range(249):
        window.observe(DEFAULT, 1 if index % 2 else 2, 0.99)
    assert math.isnan(window.score("exit"))
    for index in range(1000):
        window.observe(DEFAULT, (1, 1, 1, 1, 1, 2, 2, 2, 3, 3)[index % 10], 0.5 + 0.05 * (index % 10) + 0.02)
    assert (window.score("exit"), window.score("confidence")) == (0, 0)
    scores = []
    for _ in range(4):
        for _ in range(250):
            window.observe(DEFAULT, 3, 0.6)
        scores.append((window.score("exit"), window.score("confidence")))
    assert all(a < b for kind in zip(*scores, strict=True) for a, b in pairwise(kind))
    assert min(scores[-1]) > 0.25


def test_the_scrape_shows_the_kinds_that_the_bundle_has_a_reference_for() -> None:
    registry = CollectorRegistry()
    window = DriftWindow(DEFAULT, {"exit": HISTOGRAMS["exit"]}, 100)
    metrics = ModelMetrics(MetricFamilies(registry, 3), ("m", "1"), ("torch", "cpu"), (250, 510, 1010), 1000, window)
    frame = Frame(np.zeros((2, 2, 3), np.uint8), DEFAULT)

    def read(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"offramp_{name}", LABELS | labels)

    assert read("drift_frames") == 0
    assert math.isnan(read("drift_score", kind="exit") or 0)
    assert read("drift_score", kind="confidence") is None
    for _ in range(30):
        probabilities = np.array([0.8, 0.2], np.float32)
        metrics.frame_answered(frame, Answer(probabilities, 3, ExitReason.LAST_EXIT, (0.9,), queue_ms=1.0, compute_ms=1.0))
    assert read("drift_frames") == 30
    early = Answer(probabilities, 3, ExitReason.DEADLINE, (0.9,), queue_ms=1.0, compute_ms=1.0)
    for answer in (early, replace(early, reason=ExitReason.POLICY, degraded=True)):
        metrics.frame_answered(frame, answer)
    assert read("drift_frames") == 30, "load passes for drift"
    score = read("drift_score", kind="exit")
    assert score is not None
    assert score > 0.25
    metrics.model_retired()
    assert math.isnan(read("drift_score", kind="exit") or 0)


def test_a_model_without_a_window_has_no_drift_series() -> None:
    registry = CollectorRegistry()
    ModelMetrics(MetricFamilies(registry, 3), ("m", "1"), ("torch", "cpu"), (250, 510, 1010), 1000)
    assert registry.get_sample_value("offramp_drift_frames", LABELS) is None
