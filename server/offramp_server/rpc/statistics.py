"""What one model version has done for its callers: counts and total times of requests and of their parts."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class RequestStatistics:
    """Plain counters, so that no request pays for them. A request is a frame of a stream of ours, or a batch of OIP's."""

    requests: int = 0
    """Requests answered."""
    failures: int = 0
    """Requests that ended in an error, refusals among them."""
    frames: int = 0
    """Frames of the requests answered."""
    total_ns: int = 0
    """From a request's arrival to its answer, as are the parts below; where a request has several frames, the slowest counts."""
    failed_ns: int = 0
    input_ns: int = 0
    """Checking, decoding and resizing."""
    queue_ns: int = 0
    compute_ns: int = 0
    output_ns: int = 0
    """Writing the answer."""
    last_at_ms: int = 0
    """When the last request was answered, in milliseconds since 1970; 0 if none was."""

    def answered(
        self, started_ns: int, read_ns: int, queue_ms: float, compute_ms: float, output_ns: int, frames: int = 1
    ) -> None:
        """A request was answered just now. Times ending in `_ns` but the last are of `now_ns`: its arrival, its input read."""
        now = now_ns()
        self.requests += 1
        self.frames += frames
        self.total_ns += now - started_ns
        self.input_ns += read_ns - started_ns
        self.queue_ns += round(queue_ms * 1e6)
        self.compute_ns += round(compute_ms * 1e6)
        self.output_ns += output_ns
        self.last_at_ms = time.time_ns() // 1_000_000

    def failed(self, started_ns: int) -> None:
        """A request that came at `started_ns` ended in an error just now."""
        self.failures += 1
        self.failed_ns += now_ns() - started_ns


def now_ns() -> int:
    """The clock that these times are measured on."""
    return time.perf_counter_ns()
