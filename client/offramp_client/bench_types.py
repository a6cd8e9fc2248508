"""The load generator's words: what to send, the seams to the wire, and what was measured."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from offramp_client.errors import InvalidRequestError

PERCENTILES = (50, 95, 99)


class Answer(NamedTuple):
    """What a server said of one frame."""

    number: int
    """The frame's, as it was sent."""
    label: int = -1
    """Index of the most probable class."""
    exit: int = 0
    """From 1; 0 where the server has none."""
    cost: float = 1.0
    """Compute over the full network's."""
    error: str = ""
    """Canonical gRPC status of a frame that was not classified, such as RESOURCE_EXHAUSTED."""
    retry_after_ms: int = 0


class Sent(NamedTuple):
    """One frame on its way."""

    number: int
    image: int
    """Which of the images it shows."""


class Sink(Protocol):
    """Takes what comes back on one lane."""

    def answered(self, answer: Answer) -> None:
        """Take the answer to one frame, in any order."""
        ...

    def lost(self, error: str) -> None:
        """Learn that the lane is dead, and that no frame on it will be answered any more."""
        ...


class Lane(Protocol):
    """One conversation with a server, such as a stream."""

    async def send(self, frames: Sequence[Sent]) -> None:
        """Send one message; waits where the transport holds it back. Never raises: a dead lane tells its sink."""
        ...

    async def finish(self) -> None:
        """Say that no more frames come, and wait until those sent are answered. May be cancelled."""
        ...


OpenLane = Callable[[Sink], Awaitable[Lane]]


@dataclass(frozen=True, slots=True)
class Load:
    """How much to send, and how. Raises InvalidRequestError, naming the field."""

    streams: int = 8
    in_flight: int = 32
    """Frames of one stream on their way at most; in a closed loop, all the time."""
    batch: int = 1
    """Frames in one message."""
    rate: float | None = None
    """Open loop: frames a second of all streams together, as a Poisson process of messages; None is a closed loop."""
    warm_up_s: float = 2.0
    """Before the window in which is measured."""
    seconds: float = 10.0
    """Length of the window."""
    drain_s: float = 10.0
    """How long to wait, after the window, for answers that are still due."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("streams", "in_flight", "batch"):
            if getattr(self, name) < 1:
                raise InvalidRequestError("must be 1 or more", field=name)
        if self.rate is None and self.batch > self.in_flight:
            raise InvalidRequestError(f"{self.batch} frames a message need as many in flight: raise in_flight", field="batch")
        if self.rate is not None and not self.rate > 0:
            raise InvalidRequestError("must be above 0", field="rate")
        if not self.seconds > 0 or self.warm_up_s < 0 or self.drain_s < 0:
            raise InvalidRequestError("must be above 0, and warm_up_s and drain_s not below", field="seconds")


@dataclass(slots=True)
class Measurement:
    """What was seen in the window.

    `answered` counts frames classified inside the window. All else is of those same frames in a closed loop; in an open loop it
    is of the frames that were due inside the window, also when they were answered later: leaving those out would hide the worst.
    """

    load: Load
    seconds: float = 0.0
    """How long the window really was."""
    answered: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    """From sending, or in an open loop from when the frame was due, to its answer."""
    exits: Counter[int] = field(default_factory=Counter)
    cost_sum: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    """Frames not classified, by canonical status."""
    unanswered: int = 0
    """Frames of which nothing was heard, not even after `drain_s`."""
    lost: Counter[str] = field(default_factory=Counter)
    """Streams that the server ended, by canonical status, at any time."""
    lateness_ms: list[float] = field(default_factory=list)
    """Open loop: how long after it was due each message was sent. Where this is not small, the generator was too slow."""
    labels: dict[int, int] = field(default_factory=dict)
    """The class last answered for each image, warm-up included."""
    client_cpu_s: float = 0.0
    """Of this process, all threads."""
    server_cpu_s: float = 0.0
    """By the clock that was handed in."""

    @property
    def frames_per_s(self) -> float:
        """Frames classified a second."""
        return self.answered / self.seconds if self.seconds else 0.0

    @property
    def mean_cost(self) -> float:
        """Mean compute of the frames classified; NaN before the first."""
        return self.cost_sum / len(self.latencies_ms) if self.latencies_ms else float("nan")

    @property
    def client_cores(self) -> float:
        """Cores that the load generator kept busy."""
        return self.client_cpu_s / self.seconds if self.seconds else 0.0

    def latency_ms(self, percentile: float) -> float:
        """A percentile, 0 to 100; NaN before the first answer."""
        return float(np.percentile(self.latencies_ms, percentile)) if self.latencies_ms else float("nan")

    def accuracy(self, truth: Sequence[int]) -> float:
        """Share of the images answered whose class is that of `truth`; NaN where none was answered."""
        right = [truth[image] == label for image, label in self.labels.items()]
        return sum(right) / len(right) if right else float("nan")

    def report(self, truth: Sequence[int] | None = None) -> dict[str, Any]:
        """The figures as JSON takes them; `truth` has the class of each image."""
        cores = os.cpu_count() or 1
        figures: dict[str, Any] = {
            "loop": "closed" if self.load.rate is None else "open",
            "streams": self.load.streams,
            "in_flight_a_stream": self.load.in_flight if self.load.rate is None else None,
            "offered_frames_per_s": self.load.rate,
            "frames_a_message": self.load.batch,
            "seconds": round(self.seconds, 3),
            "frames": self.answered,
            "frames_per_s": round(self.frames_per_s, 1),
            "latency_ms": {f"p{p}": _rounded(self.latency_ms(p)) for p in PERCENTILES},
            "exits": {str(exit): count for exit, count in sorted(self.exits.items())},
            "mean_cost": _rounded(self.mean_cost, 4),
            "errors": dict(self.errors),
            "unanswered": self.unanswered,
            "streams_lost": dict(self.lost),
            "client_cores": round(self.client_cores, 3),
            "client_cpu_share": round(self.client_cores / cores, 3),
        }
        if self.lateness_ms:
            figures["generator_late_ms_p99"] = _rounded(float(np.percentile(self.lateness_ms, 99)))
        if truth is not None:
            figures |= {"accuracy": _rounded(self.accuracy(truth), 4), "images_with_answer": len(self.labels)}
        return figures


def _rounded(value: float, digits: int = 2) -> float | None:
    return round(value, digits) if value == value else None  # JSON knows no NaN
