"""Metrics: what a frame leaves behind in every family."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from offramp_model.routing import ExitReason, Policy
from offramp_server.engine.types import Answer, Frame, FrameControl
from offramp_server.ops.metrics import DROPS, REFUSALS, MetricFamilies, ModelMetrics, register_process_metrics

EXIT_MACS, FULL_MACS = (250, 510, 1010), 1000
NAMES = {"model": "m", "version": "1"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> ModelMetrics:
    families = MetricFamilies(registry, exits=3)
    return ModelMetrics(families, ("m", "1"), ("torch", "cpu, float32"), EXIT_MACS, FULL_MACS)


def frame(policy: Policy = Policy.ROUTER, lambda_: float = 0.7, thresholds: tuple[float, ...] = (0.5, 0.5)) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), FrameControl(policy, lambda_, thresholds, 1, 3))


def answer(exit: int = 1, reason: ExitReason = ExitReason.POLICY, confidence: float = 0.8) -> Answer:
    probabilities = np.array([confidence, 1 - confidence], np.float32)
    return Answer(probabilities, exit, reason, halting=(0.9,), queue_ms=2.0, compute_ms=6.0)


def read(registry: CollectorRegistry, name: str, **labels: object) -> float:
    value = registry.get_sample_value(f"offramp_{name}", NAMES | {key: str(label) for key, label in labels.items()})
    assert value is not None, f"there is no series {name} {labels}"
    return value


def test_an_answered_frame_counts_in_every_family(registry: CollectorRegistry, metrics: ModelMetrics) -> None:
    metrics.frame_answered(frame(), answer(exit=2))
    assert read(registry, "exit_depth_bucket", le="1.0") == 0
    assert read(registry, "exit_depth_bucket", le="2.0") == 1
    assert read(registry, "compute_ratio_sum", policy="router") == pytest.approx(0.51)
    assert read(registry, "frames_total", policy="router", exit=2, reason="policy") == 1
    assert read(registry, "macs_spent_total") == 510
    assert read(registry, "macs_saved_total") == 490
    assert read(registry, "latency_seconds_sum") == pytest.approx(0.008)
    assert read(registry, "queue_seconds_sum") == pytest.approx(0.002)
    assert read(registry, "confidence_sum", exit=2) == pytest.approx(0.8)


def test_the_exit_histogram_has_a_bucket_an_exit(registry: CollectorRegistry, metrics: ModelMetrics) -> None:
    family = next(family for family in registry.collect() if family.name == "offramp_exit_depth")
    assert [s.labels["le"] for s in family.samples if s.name.endswith("_bucket")] == ["1.0", "2.0", "3.0", "+Inf"]


def test_heads_and_routers_never_make_savings_negative(registry: CollectorRegistry, metrics: ModelMetrics) -> None:
    metrics.frame_answered(frame(), answer(exit=3, reason=ExitReason.LAST_EXIT))
    assert read(registry, "macs_spent_total") == 1010
    assert read(registry, "macs_saved_total") == 0


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("reason", ExitReason)
def test_every_policy_and_reason_has_its_series(
    registry: CollectorRegistry, metrics: ModelMetrics, policy: Policy, reason: ExitReason
) -> None:
    labels = {"policy": policy.name.lower(), "reason": reason.name.lower()}
    assert read(registry, "frames_total", exit=1, **labels) == 0
    metrics.frame_answered(frame(policy), answer(exit=1, reason=reason))
    assert read(registry, "frames_total", exit=1, **labels) == 1
    assert read(registry, "compute_ratio_count", policy=labels["policy"]) == 1


@pytest.mark.parametrize(
    ("policy", "lambdas", "series"),
    [(Policy.ROUTER, 1, "router"), (Policy.ENTROPY, 0, "entropy"), (Policy.CONFIDENCE, 0, "confidence"), (Policy.FIXED, 0, None)],
)
def test_only_what_a_policy_reads_counts_as_requested(
    registry: CollectorRegistry, metrics: ModelMetrics, policy: Policy, lambdas: int, series: str | None
) -> None:
    metrics.frame_admitted(frame(policy, thresholds=(0.2, 0.6)))
    assert read(registry, "frames_admitted_total") == 1
    assert read(registry, "requested_lambda_count") == lambdas
    counts = {each: read(registry, "requested_threshold_count", policy=each) for each in ("router", "entropy", "confidence")}
    assert counts == {each: float(each == series) for each in counts}
    if series:
        assert read(registry, "requested_threshold_sum", policy=series) == pytest.approx(0.4)


def test_degraded_frames_count(registry: CollectorRegistry, metrics: ModelMetrics) -> None:
    metrics.frame_answered(frame(), answer())
    metrics.frame_answered(frame(), replace(answer(), degraded=True))
    assert read(registry, "frames_degraded_total") == 1


def test_one_nan_does_not_poison_the_confidence(registry: CollectorRegistry, metrics: ModelMetrics) -> None:
    metrics.frame_answered(frame(), answer(confidence=float("nan")))
    metrics.frame_answered(frame(), answer(confidence=0.75))
    assert read(registry, "confidence_sum", exit=1) == 0.75


def test_batches_streams_refusals_and_drops(registry: CollectorRegistry, metrics: ModelMetrics) -> None:
    metrics.batch_ran("2", 3, 0.004, [0.001, 0.002, 0.003])
    metrics.batch_ran("whole", 1, 0.016, [0.001])
    assert read(registry, "stage_seconds_sum", stage=2) == pytest.approx(0.004)
    assert read(registry, "batch_size_frames_sum", stage=2) == 3
    assert read(registry, "batch_size_frames_sum", stage="whole") == 1
    assert read(registry, "stage_wait_seconds_count", stage=2) == 3
    metrics.stream_opened()
    metrics.stream_opened()
    metrics.stream_closed()
    assert read(registry, "streams") == 1
    metrics.in_flight(7)
    assert read(registry, "frames_in_flight") == 7
    for reason in REFUSALS:
        metrics.frame_refused(reason)
        assert read(registry, "frames_refused_total", reason=reason) == 1
    for reason in DROPS:
        metrics.frame_dropped(reason)
        assert read(registry, "frames_dropped_total", reason=reason) == 1
    assert read(registry, "model_info", backend="torch", device="cpu, float32", reason="") == 1


def test_two_models_share_the_families(registry: CollectorRegistry) -> None:
    families = MetricFamilies(registry, exits=3)
    deep = ModelMetrics(families, ("m", "1"), ("torch", "cpu"), EXIT_MACS, FULL_MACS)
    ModelMetrics(families, ("m", "2"), ("torch", "cpu"), EXIT_MACS[:2], FULL_MACS)
    deep.frame_answered(frame(), answer(exit=3))
    assert read(registry, "exit_depth_count") == 1
    assert registry.get_sample_value("offramp_exit_depth_count", {"model": "m", "version": "2"}) == 0


def test_the_build_and_the_process_are_described(registry: CollectorRegistry) -> None:
    register_process_metrics(registry, "1.2.3")
    names = {family.name for family in registry.collect()}
    assert {"offramp_build_info", "python_info", "python_gc_objects_collected", "process_start_time_seconds"} <= names
