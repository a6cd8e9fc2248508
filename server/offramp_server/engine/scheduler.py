"""Which lane runs next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LaneState:
    """One lane's queue as the scheduler sees it."""

    entry: bool
    """Whether its frames come from callers, and not from a stage before."""
    length: int
    oldest_wait: float
    """Seconds for which the first frame in it has waited; 0 when it is empty."""
    efficient: int
    """Frames from which on a batch of this lane runs at about its best rate."""


Strategy = Callable[[Sequence[LaneState], float], int | None]
"""From the lanes, shallow to deep, and the longest wait between stages in seconds, the index of the lane to run."""


def choose_lane(lanes: Sequence[LaneState], max_wait: float) -> int | None:
    """The lane to run next, or None when all are empty. While any frame is queued some lane runs: none waits for company.

    In this order:

    1. of the lanes between stages in which a frame has waited `max_wait` seconds, the one with the longest wait;
    2. the deepest lane between stages that can fill an efficient batch, so that frames finish;
    3. where an entry can fill one, the entry whose first frame has waited longest, so that none starves;
    4. else the lane nearest to an efficient batch, the deepest among equals; but an entry, too, goes first once its first
       frame has waited `max_wait`.
    """
    waiting = [index for index, lane in enumerate(lanes) if lane.length]
    if not waiting:
        return None

    def wait(index: int) -> float:
        return lanes[index].oldest_wait

    between = [index for index in waiting if not lanes[index].entry]
    if overdue := [index for index in between if wait(index) >= max_wait]:
        return max(overdue, key=wait)
    if efficient := [index for index in between if lanes[index].length >= lanes[index].efficient]:
        return efficient[-1]
    entries = [index for index in waiting if lanes[index].entry]
    if entries:
        longest = max(entries, key=wait)
        if wait(longest) >= max_wait or any(lanes[index].length >= lanes[index].efficient for index in entries):
            return longest
    return max(waiting, key=lambda index: (lanes[index].length / lanes[index].efficient, index))
