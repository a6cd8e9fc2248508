"""Which stage runs next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueState:
    """One stage's queue as the scheduler sees it."""

    length: int
    oldest_wait: float
    """Seconds for which the first frame in it has waited; 0 when it is empty."""


def choose_stage(queues: Sequence[QueueState], max_batch: int, max_wait: float) -> int | None:
    """The stage (1…K) to run next, or None when every queue is empty.

    First a stage whose oldest frame has waited `max_wait` seconds, the longest wait first; then the deepest stage with a
    full batch, so that frames finish; then the fullest, so that batches grow, the deepest among equals. Nothing waits
    for company: while any frame is queued, some stage runs.
    """
    waiting = [stage for stage, queue in enumerate(queues, 1) if queue.length]
    if not waiting:
        return None
    overdue = [stage for stage in waiting if queues[stage - 1].oldest_wait >= max_wait]
    if overdue:
        return max(overdue, key=lambda stage: queues[stage - 1].oldest_wait)
    return max(waiting, key=lambda stage: (min(queues[stage - 1].length, max_batch), stage))
