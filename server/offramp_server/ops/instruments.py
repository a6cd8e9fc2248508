"""Counters and histograms for one thread, the event loop's, which pays for them with every frame.

Those of prometheus_client take a lock and a linear search each time, and a quarter of the loop's work for a frame went into
them (docs/scheduling.md). It still registers, collects and writes these.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Count:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Count `amount`, which is not negative."""
        self.value += amount


class Distribution:
    """One series of a histogram."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values up to each bound and above the one before; the last are beyond all of them."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Take a finite value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class _Family(Collector):
    """A metric and its series, each of them made when it is first asked for."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._about, self._names = (name, text), tuple(labels)
        registry.register(self)

    @abstractmethod
    def _blank(self) -> Metric: ...

    def describe(self) -> list[Metric]:
        """Name, type, and no series."""
        return [self._blank()]

    def _check(self, values: Sequence[object]) -> tuple[str, ...]:
        if len(values) != len(self._names):
            raise ValueError(f"{self._about[0]} has the labels {', '.join(self._names)}: {len(values)} values are given")
        return tuple(map(str, values))


class Counter(_Family):
    """Counts that only grow."""

    def __init__(self, name: str, text: str, labels: Sequence[str], *, registry: CollectorRegistry) -> None:
        """Its samples are called `name`_total. Raises ValueError where the registry has the name already."""
        self._series = dict[tuple[str, ...], Count]()
        super().__init__(name, text, labels, registry)

    def labels(self, *values: object) -> Count:
        """The series of these labels. Raises ValueError where there are more or fewer."""
        return self._series.setdefault(self._check(values), Count())

    def _blank(self) -> CounterMetricFamily:
        return CounterMetricFamily(*self._about, labels=self._names)

    def collect(self) -> Iterator[Metric]:
        """The metric with all its series."""
        family = self._blank()
        for values, count in self._series.items():
            family.add_metric(values, count.value)
        yield family


class Histogram(_Family):
    """How values are distributed over buckets."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], *, buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        """`buckets` are upper bounds, ascending and finite. Raises ValueError where the registry has the name already."""
        self._bounds, self._series = tuple(map(float, buckets)), dict[tuple[str, ...], Distribution]()
        self._texts = [*map(floatToGoString, self._bounds), "+Inf"]
        super().__init__(name, text, labels, registry)

    def labels(self, *values: object) -> Distribution:
        """The series of these labels. Raises ValueError where there are more or fewer."""
        return self._series.setdefault(self._check(values), Distribution(self._bounds))

    def _blank(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(*self._about, labels=self._names)

    def collect(self) -> Iterator[Metric]:
        """The metric with all its series."""
        family = self._blank()
        for values, distribution in self._series.items():
            buckets = list(zip(self._texts, accumulate(distribution.counts), strict=True))
            family.add_metric(values, buckets, distribution.total)
        yield family
