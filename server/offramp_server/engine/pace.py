"""How long batches take here and now: live estimates a lane and batch size, and the batch size from which a lane runs well."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

WEIGHT = 0.2
"""Of the newest measurement in a moving average: one odd batch counts little, a change is followed within some ten batches."""
DOUBT = 0.02
"""Part by which an estimate falls each time that it keeps frames from running."""
WELL = 0.9
"""Share of a lane's best frames a second at which a batch counts as large enough."""


@dataclass(slots=True)
class _Bucket:
    """Moving averages over the batches of about one size."""

    size: float
    seconds: float

    def add(self, size: int, seconds: float) -> None:
        self.size += WEIGHT * (size - self.size)
        self.seconds += WEIGHT * (seconds - self.seconds)


class Pace:
    """One lane's moving averages: seconds of a batch by its size, in buckets of powers of two."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch, self._buckets = max_batch, dict[int, _Bucket]()
        self.efficient = max_batch
        """Frames from which on a batch runs at `WELL` of the lane's best rate, at most `max_batch`."""

    def ran(self, size: int, seconds: float) -> None:
        """A batch of `size` frames took `seconds`."""
        bucket = self._buckets.get((size - 1).bit_length())
        if bucket is None:
            self._buckets[(size - 1).bit_length()] = _Bucket(size, seconds)
        else:
            bucket.add(size, seconds)
        self.efficient = self._find_efficient()

    def doubt(self) -> None:
        """Frames did not run because of what is expected here: expect a little less, or one slow moment would be believed for
        ever where it keeps all frames away."""
        for bucket in self._buckets.values():
            bucket.seconds *= 1 - DOUBT

    def seconds(self, size: int) -> float:
        """Expected seconds of a batch of `size` frames; 0 while nothing has been measured.

        Linear between the sizes measured. Beyond them on the safe side: a smaller batch takes as long as the smallest
        measured, a larger one as long a frame as the largest.
        """
        points = sorted((bucket.size, bucket.seconds) for bucket in self._buckets.values())
        if not points:
            return 0.0
        if size <= points[0][0]:
            return points[0][1]
        for (low, low_seconds), (high, high_seconds) in pairwise(points):
            if size <= high:
                return low_seconds + (size - low) / (high - low) * (high_seconds - low_seconds)
        return points[-1][1] * size / points[-1][0]

    def _find_efficient(self) -> int:
        sizes = [*(1 << power for power in range((self._max_batch - 1).bit_length())), self._max_batch]
        rates = [size / max(self.seconds(size), 1e-9) for size in sizes]
        return next(size for size, rate in zip(sizes, rates, strict=True) if rate >= WELL * max(rates))
