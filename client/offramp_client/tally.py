"""Running sums over the results of a stream: exits, compute, latency and rate."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable

import numpy as np

from offramp_client.types import Result

RATE_OVER_S = 3.0
"""The frame rate is that of so many last seconds."""


class Tally:
    """Counts results as they come. Latencies are kept for the last 100,000 frames, all else is a sum."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start at nothing; `clock` gives seconds."""
        self.answered = 0
        """Frames classified."""
        self.failed = 0
        """Frames answered by an error."""
        self.exits: Counter[int] = Counter()
        """Frames classified, by exit."""
        self.macs_spent = 0
        self.macs_full = 0.0
        """What the plain full network would have spent on the same frames."""
        self.cost_sum = 0.0
        self._latencies_ms: deque[float] = deque(maxlen=100_000)
        self._clock, self._times = clock, deque[float]()
        self._first: float | None = None
        self._last = 0.0

    def add(self, result: Result) -> None:
        """Count one result."""
        now = self._clock()
        self._first = now if self._first is None else self._first
        self._last = now
        self._times.append(now)
        while now - self._times[0] > RATE_OVER_S:
            self._times.popleft()
        if result.classification is None:
            self.failed += 1
            return
        shown = result.classification
        self.answered += 1
        self.exits[shown.exit] += 1
        self.cost_sum += shown.cost_ratio
        self.macs_spent += shown.cost_macs
        self.macs_full += shown.cost_macs / shown.cost_ratio if shown.cost_ratio > 0 else 0
        self._latencies_ms.append(result.latency_ms)

    @property
    def mean_cost(self) -> float:
        """Mean compute of the frames classified, over the full network's; 0 before the first."""
        return self.cost_sum / self.answered if self.answered else 0.0

    @property
    def macs_saved(self) -> float:
        """MACs that the plain full network would have spent on top; negative where the routers cost more than they save."""
        return self.macs_full - self.macs_spent

    @property
    def fps(self) -> float:
        """Results a second over the last `RATE_OVER_S` seconds."""
        return _rate(len(self._times), self._times[-1] - self._times[0]) if self._times else 0.0

    @property
    def mean_fps(self) -> float:
        """Results a second from the first to the last."""
        return _rate(self.answered + self.failed, self._last - self._first) if self._first is not None else 0.0

    def fraction(self, exit: int) -> float:
        """Share of the frames classified that left at an exit, in [0, 1]."""
        return self.exits[exit] / self.answered if self.answered else 0.0

    def latency_ms(self, percentile: float) -> float:
        """Return a percentile, 0 to 100, of the latencies; NaN before the first."""
        return float(np.percentile(self._latencies_ms, percentile)) if self._latencies_ms else float("nan")


def _rate(count: int, seconds: float) -> float:
    return (count - 1) / seconds if seconds > 0 else 0.0
