"""What one client may have open and send, counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from offramp_server.errors import OverloadedError

STREAM_RETRY_AFTER_MS = 1000
FRAME_RETRY_AFTER_MS = 50


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Bounds of one client, over all its connections and streams; None is no bound."""

    max_streams: int | None = None
    """Open streams."""
    max_in_flight: int | None = None
    """Frames taken and not yet answered."""
    max_frames_per_s: float | None = None
    """Frames a second; as many as one second brings may come at once, and one in any case."""


class ClientUsage:
    """What one client has open, held against its limits."""

    def __init__(self, name: str, limits: ClientLimits, clock: Callable[[], float]) -> None:
        """`clock` gives seconds."""
        self._name, self._clock = name, clock
        self.streams = self.in_flight = 0
        self.set_limits(limits)

    def set_limits(self, limits: ClientLimits) -> None:
        """Hold what is open, and what comes, against these."""
        self.limits = limits
        rate = limits.max_frames_per_s
        self._bucket = TokenBucket(rate, max(1.0, rate), self._clock) if rate is not None else None

    def enter_stream(self) -> None:
        """One more stream. Raises OverloadedError naming the limit."""
        most = self.limits.max_streams
        if most is not None and self.streams >= most:
            raise OverloadedError(
                f"max_streams: client {self._name!r} has {self.streams} streams open and may have {most}", STREAM_RETRY_AFTER_MS
            )
        self.streams += 1

    def leave_stream(self) -> None:
        """One stream less."""
        self.streams -= 1

    def enter_frame(self) -> None:
        """One more frame. Raises OverloadedError naming the limit."""
        most = self.limits.max_in_flight
        if most is not None and self.in_flight >= most:
            raise OverloadedError(
                f"max_in_flight: client {self._name!r} has {self.in_flight} frames in flight and may have {most}",
                FRAME_RETRY_AFTER_MS,
            )
        if self._bucket is not None and (wait := self._bucket.take()):
            raise OverloadedError(
                f"max_frames_per_s: client {self._name!r} may send {self.limits.max_frames_per_s:g} frames a second",
                math.ceil(wait * 1000),
            )
        self.in_flight += 1

    def leave_frame(self) -> None:
        """One frame less."""
        self.in_flight -= 1


class TokenBucket:
    """Fills at a rate up to a capacity, and gives one token at a time."""

    def __init__(self, rate: float, capacity: float, clock: Callable[[], float]) -> None:
        """`rate` is tokens a second, `capacity` at least 1; it begins full. `clock` gives seconds."""
        self._rate, self._capacity, self._clock = rate, capacity, clock
        self._tokens, self._filled_at = capacity, clock()

    def take(self) -> float:
        """Take a token and return 0, or the seconds until there is one."""
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0
