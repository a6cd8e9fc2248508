"""The executor's side of the engine: takes turns there, each of which runs one batch and reports to the event loop once."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from offramp_model.routing import ExitReason
from offramp_server.engine import execution
from offramp_server.engine.execution import Outcome
from offramp_server.engine.lanes import WHOLE, Lane, Lanes, Row
from offramp_server.engine.scheduler import LaneState, Strategy
from offramp_server.engine.types import Answer, Backend, EngineLimits, StageTime
from offramp_server.errors import DeadlineError, ExecutionError

logger = logging.getLogger(__name__)

FAULT = "the network could not be run on this frame"
NOT_FINITE = "the network gave no finite probabilities for this frame"


@dataclass(slots=True)
class Turn:
    """What one turn did, for the event loop."""

    lane: str = ""
    """Stage or `whole`; empty where no batch ran."""
    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    """Seconds for which each frame of the batch had queued."""
    answers: list[tuple[Row, Answer]] = field(default_factory=list)
    dropped: list[tuple[Row, str, Exception | None]] = field(default_factory=list)
    """Frames that get no answer: why, for the metrics, and what their caller is told."""


class Worker:
    """Runs one network's batches. `put` may be called from any thread; everything else happens in the executor, turn by turn.

    A turn ends by asking for the next one while there is work, so that several workers on one executor alternate.
    """

    def __init__(
        self,
        backend: Backend,
        limits: EngineLimits,
        executor: Executor,
        clock: Callable[[], float],
        choose: Strategy,
        report: Callable[[Turn], None],
    ) -> None:
        """`report` is called in the executor's thread, once a turn."""
        self._backend, self._limits, self._executor, self._clock = backend, limits, executor, clock
        self._choose, self._report = choose, report
        self._lanes = Lanes(backend.exits, limits.max_batch)
        self._inbox = deque[Row]()
        self._lock = threading.Lock()
        self._has_turn = self._stopped = False

    def warm_up(self) -> None:
        """Run everything once and learn how long it takes; before the first `put`, in any thread."""
        execution.warm_up(self._backend, self._limits.max_batch, self._clock, self._learn)

    def put(self, row: Row) -> None:
        """Queue a new frame, and see to it that a turn comes."""
        self._inbox.append(row)
        with self._lock:
            if self._has_turn or self._stopped:
                return
            self._has_turn = True
        self._executor.submit(self._take_turn)

    def stop(self) -> None:
        """Run no further batch; what is queued stays where it is."""
        with self._lock:
            self._stopped = True

    # --- a turn -------------------------------------------------------------------------------------------------------

    def _take_turn(self) -> None:
        try:
            self._run_turn()
        except Exception:  # else the engine would stand still, and nobody would know why
            logger.exception("a turn of the engine failed")
        with self._lock:
            self._has_turn = not self._stopped and (bool(self._inbox) or any(lane.rows for lane in self._lanes.all))
            if self._has_turn:
                self._executor.submit(self._take_turn)

    def _run_turn(self) -> None:
        while self._inbox:
            self._lanes.enter(self._inbox.popleft())
        lane = None if self._stopped else self._choose_lane()
        if lane is not None:
            turn = Turn()
            self._answer_early(lane, turn)
            if rows := self._take(lane, turn):
                self._run(lane, rows, turn)
            self._report(turn)

    def _choose_lane(self) -> Lane | None:
        now, lanes = self._clock(), self._lanes.all
        states = [
            LaneState(lane.entry, len(lane.rows), now - lane.rows[0].queued_at if lane.rows else 0.0, lane.pace.efficient)
            for lane in lanes
        ]
        chosen = self._choose(states, self._limits.max_stage_wait_ms / 1000)
        return None if chosen is None else lanes[chosen]

    def _answer_early(self, chosen: Lane, turn: Turn) -> None:
        """Answer the frames that may be answered early and could not be in time once the chosen lane's batch has run."""
        now = self._clock()
        free_at = now + self._expect(chosen)
        for lane in self._lanes.later:
            ends = free_at if lane is chosen else free_at + self._expect(lane)
            if not any(ends > row.deadline and row.held is not None for row in lane.rows):
                continue
            lane.pace.doubt()
            rows, lane.rows = lane.rows, deque()
            for row in rows:
                if ends > row.deadline and row.held is not None:
                    row.queue_seconds += now - row.queued_at
                    turn.answers.append((row, row.answer(ExitReason.DEADLINE, row.held)))
                else:
                    lane.rows.append(row)

    def _expect(self, lane: Lane) -> float:
        """Seconds for which the lane's next batch would run."""
        return lane.pace.seconds(min(len(lane.rows), self._limits.max_batch)) if lane.rows else 0.0

    def _take(self, lane: Lane, turn: Turn) -> list[Row]:
        """Up to a batch of frames whose callers still wait for them; the others are dropped here, before they run."""
        rows, now = list[Row](), self._clock()
        while lane.rows and len(rows) < self._limits.max_batch:
            row = lane.rows.popleft()
            if row.future.done():  # cancelled; a flag that may be read in this thread
                turn.dropped.append((row, "cancelled", None))
            elif now >= row.deadline:
                error = DeadlineError(f"the deadline passed while the frame waited for stage {lane.stage}")
                turn.dropped.append((row, "expired", error))
            else:
                rows.append(row)
        return rows

    def _run(self, lane: Lane, rows: list[Row], turn: Turn) -> None:
        began, controls = self._clock(), [row.control for row in rows]
        try:
            if lane.name == WHOLE:
                outcome = execution.run_whole(self._backend, [row.frame.image for row in rows], controls)
            else:
                outcome = execution.run_stage(self._backend, lane.stage, [row.input for row in rows], controls)
        except Exception:
            logger.exception("stage %s failed on a batch of %d", lane.name, len(rows))
            turn.dropped += [(row, "failed", ExecutionError(FAULT)) for row in rows]
            return
        ended = self._clock()
        turn.lane, turn.seconds = lane.name, ended - began
        turn.waits = [began - row.queued_at for row in rows]
        lane.pace.ran(len(rows), turn.seconds)
        for index, row in enumerate(rows):
            row.queue_seconds += turn.waits[index]
            row.compute_seconds += turn.seconds
            row.stages += (StageTime(lane.name, turn.waits[index] * 1000, turn.seconds * 1000),)
            row.halting += outcome.halting[index]
        self._release(rows, self._backend.exits if lane.name == WHOLE else lane.stage, outcome, ended, turn)

    def _release(self, rows: list[Row], exit: int, outcome: Outcome, now: float, turn: Turn) -> None:
        """Answer the frames that leave at `exit`, and queue the others for their next stage."""
        fields = (outcome.places, outcome.by_policy, outcome.sound, outcome.probabilities_NC)
        for row, place, by_policy, sound, probabilities in zip(rows, *fields, strict=True):
            row.exit = exit
            if place is not None:
                may_leave = row.control.allow_early_answer and exit >= row.control.min_exit and row.deadline < math.inf
                row.held = probabilities.copy() if may_leave and sound else None
                row.input, row.queued_at = place, now
                self._lanes.after(exit).rows.append(row)
            elif sound:
                if by_policy:
                    reason = ExitReason.POLICY
                else:
                    reason = ExitReason.LAST_EXIT if exit == self._backend.exits else row.control.max_exit_reason
                turn.answers.append((row, row.answer(reason, probabilities)))
            else:
                logger.error("exit %d gave probabilities that are not finite", exit)
                turn.dropped.append((row, "failed", ExecutionError(NOT_FINITE)))

    def _learn(self, lane: str, size: int, seconds: float) -> None:
        for each in self._lanes.named(lane):
            each.pace.ran(size, seconds)
