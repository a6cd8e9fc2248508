"""Prometheus metrics: the families of a server, and one model's view of them."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from functools import partial
from itertools import product

from prometheus_client import CollectorRegistry, Gauge, GCCollector, PlatformCollector, ProcessCollector

from offramp_server.engine.types import Answer, Frame
from offramp_server.ops.drift import DriftWindow
from offramp_server.ops.instruments import Counter, Histogram

SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)
COMPUTE_RATIOS = tuple(round(0.05 * step, 2) for step in range(1, 23))  # up to 1.1: heads and routers exceed the plain network
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LAMBDAS = (0, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(1, 11))
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)

MODEL = ("model", "version")
EXIT_REASONS = ("policy", "last_exit", "max_exit", "max_cost", "deadline")
SCORING_POLICIES = ("router", "entropy", "confidence")
POLICIES = (*SCORING_POLICIES, "fixed")
REFUSALS = ("invalid", "overloaded", "limited", "not_ready", "closed")
DROPS = ("cancelled", "expired", "failed")


def register_process_metrics(registry: CollectorRegistry, version: str) -> None:
    """Process, garbage collector and build information."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    build = Gauge("offramp_build_info", "Always 1; the labels say what runs.", ("version", "python"), registry=registry)
    build.labels(version, platform.python_version()).set(1)


class MetricFamilies:
    """The metrics about models. Labels stay few: never a raw λ, τ or caller."""

    def __init__(self, registry: CollectorRegistry, exits: int) -> None:
        """`exits` is the number of exits of the deepest model: a bucket of the exit histogram each."""

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"offramp_{name}", text, (*MODEL, *labels), buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"offramp_{name}", text, (*MODEL, *labels), registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"offramp_{name}", text, (*MODEL, *labels), registry=registry)

        depths = tuple(float(exit) for exit in range(1, exits + 1))
        self.exit_depth = histogram("exit_depth", "Exit at which a frame left.", depths)
        self.compute = histogram("compute_ratio", "MACs spent on a frame over the full network's.", COMPUTE_RATIOS, "policy")
        self.frames = counter("frames", "Frames classified, by policy, exit and why they left there.", "policy", "exit", "reason")
        self.degraded = counter("frames_degraded", "Frames classified at a larger lambda than they asked for, under overload.")
        self.macs_spent = counter("macs_spent", "Multiply-accumulates spent on classified frames.")
        self.macs_saved = counter("macs_saved", "Multiply-accumulates that the full network would have spent beyond that.")
        self.latency = histogram("latency_seconds", "From a frame's admission to its answer.", SECONDS)
        self.queue = histogram("queue_seconds", "A classified frame's whole time in queues.", SECONDS)
        self.stage_wait = histogram("stage_wait_seconds", "A frame's time in one stage's queue.", SECONDS, "stage")
        self.stage = histogram("stage_seconds", "Running one stage, or the whole network, on one batch.", SECONDS, "stage")
        self.batch_size = histogram("batch_size_frames", "Frames in one batch of one stage.", BATCH_SIZES, "stage")
        self.lambda_ = histogram("requested_lambda", "Price of compute of admitted frames under the router policy.", LAMBDAS)
        self.threshold = histogram(
            "requested_threshold", "Threshold of admitted frames, the mean over exits where they differ.", THRESHOLDS, "policy"
        )
        self.confidence = histogram("confidence", "Largest class probability of a classified frame.", CONFIDENCES, "exit")
        self.admitted = counter("frames_admitted", "Frames that entered the first queue.")
        self.refused = counter("frames_refused", "Frames that were not admitted.", "reason")
        self.dropped = counter("frames_dropped", "Admitted frames that got no answer.", "reason")
        self.in_flight = gauge("frames_in_flight", "Frames admitted and not yet answered.")
        self.streams = gauge("streams", "Open streams.")
        self.drift = gauge(
            "drift_score", "How far the last frames' histogram is from the bundle's, 0 to 1; NaN while frames are few.", "kind"
        )
        self.drift_frames = gauge("drift_frames", "Frames that the drift scores are of: the last ones under the default control.")
        self.info = gauge(
            "model_info", "1 while loaded; the labels say what, where it runs, and why there.", "backend", "device", "reason"
        )


class ModelMetrics:
    """One model's metrics. Implements engine.types.EngineMetrics and what servicers report."""

    def __init__(
        self,
        families: MetricFamilies,
        names: tuple[str, str],
        runtime: tuple[str, str],
        exit_macs: tuple[int, ...],
        full_macs: int,
        drift: DriftWindow | None = None,
        reason: str = "",
    ) -> None:
        """`names` are the model and its version, `runtime` the backend and its device, `reason` why those were chosen.

        `exit_macs` are the MACs up to each exit, `full_macs` the plain full network's. Without `drift` there is no drift score.
        """
        self._exit_macs, self._full_macs, self._drift = exit_macs, full_macs, drift
        exits = range(1, len(exit_macs) + 1)
        # every child is made here, so that each series starts at 0 and no frame pays for a lookup
        self._exit_depth = families.exit_depth.labels(*names)
        self._compute = {policy: families.compute.labels(*names, policy) for policy in POLICIES}
        self._frames = {key: families.frames.labels(*names, *key) for key in product(POLICIES, exits, EXIT_REASONS)}
        self._degraded = families.degraded.labels(*names)
        self._macs_spent = families.macs_spent.labels(*names)
        self._macs_saved = families.macs_saved.labels(*names)
        self._latency = families.latency.labels(*names)
        self._queue = families.queue.labels(*names)
        stages = [*map(str, exits), "whole"]
        self._stage_wait = {stage: families.stage_wait.labels(*names, stage) for stage in stages}
        self._stage = {stage: families.stage.labels(*names, stage) for stage in stages}
        self._batch_size = {stage: families.batch_size.labels(*names, stage) for stage in stages}
        self._lambda = families.lambda_.labels(*names)
        self._threshold = {policy: families.threshold.labels(*names, policy) for policy in SCORING_POLICIES}
        self._confidence = {exit: families.confidence.labels(*names, exit) for exit in exits}
        self._admitted = families.admitted.labels(*names)
        self._refused = {reason: families.refused.labels(*names, reason) for reason in REFUSALS}
        self._dropped = {reason: families.dropped.labels(*names, reason) for reason in DROPS}
        self._in_flight = families.in_flight.labels(*names)
        self._streams = families.streams.labels(*names)
        self._info = families.info.labels(*names, *runtime, reason)
        self._info.set(1)
        self._drift_scores = {} if drift is None else {kind: families.drift.labels(*names, kind) for kind in drift.kinds}
        if drift is not None:  # computed when scraped, not for every frame
            families.drift_frames.labels(*names).set_function(lambda: drift.frames)
            for kind, score in self._drift_scores.items():
                score.set_function(partial(drift.score, kind))

    def frame_admitted(self, frame: Frame) -> None:
        """A frame entered the first queue."""
        self._admitted.inc()
        policy, thresholds = frame.control.policy.name.lower(), frame.control.thresholds
        if policy == "router":
            self._lambda.observe(frame.control.lambda_)
        if policy in self._threshold and thresholds:
            self._threshold[policy].observe(sum(thresholds) / len(thresholds))

    def frame_answered(self, frame: Frame, answer: Answer) -> None:
        """A frame left the network."""
        spent, policy = self._exit_macs[answer.exit - 1], frame.control.policy.name.lower()
        reason = answer.reason.name.lower()
        self._exit_depth.observe(answer.exit)
        self._compute[policy].observe(spent / self._full_macs)
        self._frames[policy, answer.exit, reason].inc()
        if answer.degraded:
            self._degraded.inc()
        self._macs_spent.inc(spent)
        self._macs_saved.inc(max(self._full_macs - spent, 0))
        self._latency.observe((answer.queue_ms + answer.compute_ms) / 1000)
        self._queue.observe(answer.queue_ms / 1000)
        confidence = float(answer.probabilities.max())
        if math.isfinite(confidence):  # one NaN would stay in the histogram's sum for ever
            self._confidence[answer.exit].observe(confidence)
            if self._drift is not None and not answer.degraded and reason != "deadline":  # else load would pass for drift
                self._drift.observe(frame.control, answer.exit, confidence)

    def frame_refused(self, reason: str) -> None:
        """A frame was not admitted: `invalid`, `overloaded`, `limited`, `not_ready` or `closed`."""
        self._refused[reason].inc()

    def frame_dropped(self, reason: str) -> None:
        """An admitted frame got no answer: `cancelled`, `expired` or `failed`."""
        self._dropped[reason].inc()

    def batch_ran(self, stage: str, size: int, seconds: float, waits: Sequence[float]) -> None:
        """A stage, `1`…`K` or the `whole` network, ran on `size` frames for `seconds`, for which each had queued `waits`."""
        self._stage[stage].observe(seconds)
        self._batch_size[stage].observe(size)
        for wait in waits:
            self._stage_wait[stage].observe(wait)

    def in_flight(self, frames: int) -> None:
        """The number of frames admitted and not yet answered changed."""
        self._in_flight.set(frames)

    def model_retired(self) -> None:
        """The model version is no longer loaded."""
        self._info.set(0)
        for score in self._drift_scores.values():
            score.set_function(lambda: math.nan)  # what it served last is nobody's alarm

    def stream_opened(self) -> None:
        """A stream was configured."""
        self._streams.inc()

    def stream_closed(self) -> None:
        """A stream that was opened ended."""
        self._streams.dec()
