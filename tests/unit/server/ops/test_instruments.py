"""Our counters and histograms beside prometheus_client's own: the same page for the same observations."""

from __future__ import annotations

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, disable_created_metrics, enable_created_metrics, generate_latest

from offramp_server.ops.instruments import Counter, Histogram

LABELS = ("model", "exit")
BOUNDS = (0.1, 0.5, 1.0, 20.0)

values = st.floats(0, 100) | st.sampled_from(BOUNDS)
seen = st.lists(st.tuples(st.sampled_from(["a", 'b"\n\\']), st.integers(1, 4), values), max_size=30)


@given(seen)
def test_the_page_is_what_prometheus_client_writes(observations: list[tuple[str, int, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counter = Counter("frames", "Frames, by exit.", LABELS, registry=ours)
    histogram = Histogram("seconds", "Time.", LABELS, buckets=BOUNDS, registry=ours)
    disable_created_metrics()
    try:
        their_counter = prometheus_client.Counter("frames", "Frames, by exit.", LABELS, registry=theirs)
        their_histogram = prometheus_client.Histogram("seconds", "Time.", LABELS, buckets=BOUNDS, registry=theirs)
        for model, exit, value in observations:
            counter.labels(model, exit).inc(value)
            their_counter.labels(model, exit).inc(value)
            histogram.labels(model, exit).observe(value)
            their_histogram.labels(model, exit).observe(value)
        assert generate_latest(ours) == generate_latest(theirs)
    finally:
        enable_created_metrics()


def test_a_series_starts_at_nothing_and_is_one() -> None:
    registry = CollectorRegistry()
    counter = Counter("frames", "Frames.", ("exit",), registry=registry)
    assert counter.labels(1) is counter.labels("1")
    assert registry.get_sample_value("frames_total", {"exit": "1"}) == 0
    counter.labels(1).inc()
    assert registry.get_sample_value("frames_total", {"exit": "1"}) == 1


def test_wrong_labels_and_a_taken_name_are_refused() -> None:
    registry = CollectorRegistry()
    counter = Counter("frames", "Frames.", LABELS, registry=registry)
    with pytest.raises(ValueError, match="model, exit"):
        counter.labels("m")
    with pytest.raises(ValueError, match="frames"):
        Counter("frames", "Frames.", LABELS, registry=registry)
