"""What is measured in one run, under which load, for how long: the whole of it, and the quick form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offramp_client.bench_types import Load

Mode = Literal["single", "batch"]
"""One frame a message, or several."""
MODES: tuple[Mode, ...] = ("single", "batch")

STREAMS, IN_FLIGHT = 8, 32
"""Of every load but the lone stream's and that of many."""
MESSAGE = 16
"""Frames a message in mode `batch`."""
MANY_STREAMS = 1000
BARE_BATCH = 32
"""As large as the server's own batches are at most."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of one run."""

    name: str
    frames: int
    """Different frames, as far as there are so many."""
    rounds: int
    warm_up_s: float
    seconds: float
    """Of one load in one round."""
    bare_seconds: float
    with_bfloat16: bool
    """Whether peers serve the network in bfloat16 too, which the CPU may have and no goal asks for."""

    def load(self, mode: Mode) -> Load:
        """Eight streams."""
        return self._load(STREAMS, IN_FLIGHT, 1 if mode == "single" else MESSAGE)

    def lone(self) -> Load:
        """One frame in flight."""
        return self._load(1, 1, 1)

    def many(self) -> Load:
        """A thousand streams of one frame in flight each."""
        return self._load(MANY_STREAMS, 1, 1)

    def _load(self, streams: int, in_flight: int, batch: int) -> Load:
        return Load(streams, in_flight, batch, warm_up_s=self.warm_up_s, seconds=self.seconds, drain_s=30)


QUICK = Plan("quick", frames=2500, rounds=3, warm_up_s=0.7, seconds=1.4, bare_seconds=1.0, with_bfloat16=False)
FULL = Plan("full", frames=10_000, rounds=5, warm_up_s=2, seconds=6, bare_seconds=4, with_bfloat16=True)
