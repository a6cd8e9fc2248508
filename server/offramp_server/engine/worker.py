"""The executors' side of the engine: takes turns there, each of which runs one batch and reports to the event loop once."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
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


@dataclass(slots=True, eq=False)
class Turn:
    """What one turn did, for the event loop."""

    alone: bool = True
    """Whether its batch had the device to itself when it began."""
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

    A backend that splits runs as many turns at the same time as it has shares. A batch with nothing beside it and nothing
    behind it gets the whole device, so that a lone frame is answered soonest; else each gets a share, so that no batch waits
    for a core that another thread holds. Where several shares are of the same cores, and all cores are busy, a further turn
    comes for an efficient batch alone: what is less waits for company. A turn ends by asking for the next one while there is
    work, so that several workers on one executor alternate; but a batch that had the device to itself goes on through its
    later stages in the same thread.
    """

    def __init__(
        self,
        backend: Backend,
        limits: EngineLimits,
        executor: Executor,
        clock: Callable[[], float],
        choose: Strategy,
        report: Callable[[Sequence[Turn]], None],
    ) -> None:
        """`report` is called in the executor's threads with all turns since it was last called, once one of them lets go of a
        frame."""
        self._backend, self._limits, self._executor, self._clock = backend, limits, executor, clock
        self._choose, self._report = choose, report
        self._shares = list[Backend]()
        """Those that no turn uses now."""
        self._most = self._busy = 1
        """Turns at the same time, and with how many of them every core is busy."""
        self._lanes = Lanes(backend.exits, limits.max_batch)
        self._inbox = deque[Row]()
        self._busy_until = dict[Turn, float]()
        """When the batches that run now are expected to end."""
        self._untold = list[Turn]()
        """Those that are over and not reported yet."""
        self._queues = threading.Lock()  # over lanes, shares, busy_until and untold
        self._turns = 0
        self._stopped = False
        self._gate = threading.Lock()  # over the two above; never held for long, since the event loop takes it

    def warm_up(self) -> None:
        """Run everything once and learn how long it takes; before the first `put`, in any thread."""
        self._shares = list(self._backend.split())
        self._most = max(1, len(self._shares))
        self._busy = max(1, self._most // self._backend.batches_a_share)
        execution.warm_up([self._backend], self._limits.max_batch, self._clock, self._learner(alone=True))
        execution.warm_up(self._shares, self._limits.max_batch, self._clock, self._learner(alone=False))

    def put(self, row: Row) -> None:
        """Queue a new frame, and see to it that a turn comes."""
        self._inbox.append(row)
        self._ask_for_turn()

    def stop(self) -> None:
        """Run no further batch; what is queued stays where it is."""
        with self._gate:
            self._stopped = True

    # --- a turn -------------------------------------------------------------------------------------------------------

    def _ask_for_turn(self) -> None:
        with self._gate:
            if self._stopped or self._turns == self._most or (self._turns >= self._busy and not self._batch_waits()):
                return
            self._turns += 1
        self._executor.submit(self._take_turn)

    def _take_turn(self) -> None:
        try:
            for _ in range(self._backend.exits):
                if not (self._run_turn() and self._has_work()):
                    break
        except Exception:  # else the engine would stand still, and nobody would know why
            logger.exception("a turn of the engine failed")
        with self._gate:
            self._turns -= 1
        if self._has_work():
            self._ask_for_turn()

    def _batch_waits(self) -> bool:
        """Whether some lane can fill an efficient batch. Read without the lock: who misses one is not the last to ask."""
        new = len(self._inbox)
        lanes = self._lanes.all
        return any(len(lane.rows) + (new if lane.entry else 0) >= lane.pace(alone=False).efficient for lane in lanes)

    def _has_work(self) -> bool:
        return bool(self._inbox) or any(lane.rows for lane in self._lanes.all)

    def _run_turn(self) -> bool:
        """Run a batch, where any waits; returns whether it had the device to itself."""
        turn, told = Turn(), list[Turn]()
        with self._queues:
            while self._inbox:
                self._lanes.enter(self._inbox.popleft())
            lane = None if self._stopped else self._choose_lane()
            if lane is None:
                return False
            turn.alone = not self._shares or not (self._busy_until or self._leaves_work(lane))
            ends_at = self._answer_early(lane, turn)
            rows = self._take(lane, turn)
            backend = self._backend if turn.alone else self._shares.pop()
            self._busy_until[turn] = ends_at
        try:
            if self._has_work():
                self._ask_for_turn()
            if rows:
                self._run(backend, lane, rows, turn)
        finally:
            with self._queues:
                self._busy_until.pop(turn, None)
                if not turn.alone:
                    self._shares.append(backend)
                self._untold.append(turn)
                if turn.answers or turn.dropped:
                    told, self._untold = self._untold, []
        if told:
            self._report(told)
        return turn.alone

    def _choose_lane(self) -> Lane | None:
        now, lanes = self._clock(), self._lanes.all
        alone = self._most == 1
        states = [
            LaneState(
                lane.entry,
                len(lane.rows),
                now - lane.rows[0].queued_at if lane.rows else 0.0,
                lane.pace(alone=alone).efficient,
            )
            for lane in lanes
        ]
        chosen = self._choose(states, self._limits.max_stage_wait_ms / 1000)
        return None if chosen is None else lanes[chosen]

    def _leaves_work(self, chosen: Lane) -> bool:
        """Whether frames are left in the lanes once the chosen one's batch has been taken."""
        return any(len(lane.rows) > (self._limits.max_batch if lane is chosen else 0) for lane in self._lanes.all)

    def _answer_early(self, chosen: Lane, turn: Turn) -> float:
        """Answer the frames that may be answered early and could not be in time once the chosen lane's batch has run.

        Returns when that is expected to be.
        """
        now = self._clock()
        ends_at = now + self._expect(chosen, turn)
        others = [max(now, end) for end in self._busy_until.values()]
        free_at = min((ends_at, *others)) if len(others) + 1 >= self._busy else now
        for lane in self._lanes.later:
            ends = ends_at if lane is chosen else free_at + self._expect(lane, turn)
            if not any(ends > row.deadline and row.held is not None for row in lane.rows):
                continue
            lane.pace(alone=turn.alone).doubt()
            rows, lane.rows = lane.rows, deque()
            for row in rows:
                if ends > row.deadline and row.held is not None:
                    row.queue_seconds += now - row.queued_at
                    turn.answers.append((row, row.answer(ExitReason.DEADLINE, row.held)))
                else:
                    lane.rows.append(row)
        return ends_at

    def _expect(self, lane: Lane, turn: Turn) -> float:
        """Seconds for which the lane's next batch would run."""
        return lane.pace(alone=turn.alone).seconds(min(len(lane.rows), self._limits.max_batch)) if lane.rows else 0.0

    def _take(self, lane: Lane, turn: Turn) -> list[Row]:
        """Up to a batch of frames whose callers still wait for them; the others are dropped here, before they run."""
        rows, now = list[Row](), self._clock()
        most = min(len(lane.rows), self._limits.max_batch)
        if not turn.alone and most > self._backend.batch_step:  # the rest comes first next time, and nothing has to be filled up
            most -= most % self._backend.batch_step
        while lane.rows and len(rows) < most:
            row = lane.rows.popleft()
            if row.future.done():  # cancelled; a flag that may be read in this thread
                turn.dropped.append((row, "cancelled", None))
            elif now >= row.deadline:
                error = DeadlineError(f"the deadline passed while the frame waited for stage {lane.stage}")
                turn.dropped.append((row, "expired", error))
            else:
                rows.append(row)
        return rows

    def _run(self, backend: Backend, lane: Lane, rows: list[Row], turn: Turn) -> None:
        began, controls = self._clock(), [row.control for row in rows]
        try:
            if lane.name == WHOLE:
                outcome = execution.run_whole(backend, [row.frame.image for row in rows], controls)
            else:
                outcome = execution.run_stage(backend, lane.stage, [row.input for row in rows], controls)
        except Exception:
            logger.exception("stage %s failed on a batch of %d", lane.name, len(rows))
            turn.dropped += [(row, "failed", ExecutionError(FAULT)) for row in rows]
            return
        ended = self._clock()
        turn.lane, turn.seconds = lane.name, ended - began
        turn.waits = [began - row.queued_at for row in rows]
        for index, row in enumerate(rows):
            row.queue_seconds += turn.waits[index]
            row.compute_seconds += turn.seconds
            row.stages += (StageTime(lane.name, turn.waits[index] * 1000, turn.seconds * 1000),)
            row.halting += outcome.halting[index]
        staying = self._release(rows, backend.exits if lane.name == WHOLE else lane.stage, outcome, ended, turn)
        with self._queues:
            lane.pace(alone=turn.alone).ran(len(rows), turn.seconds)
            if staying:
                self._lanes.after(lane.stage).rows.extend(staying)

    def _release(self, rows: list[Row], exit: int, outcome: Outcome, now: float, turn: Turn) -> list[Row]:
        """Answer the frames that leave at `exit`; returns the others, made ready for their next stage."""
        staying = []
        fields = (outcome.places, outcome.by_policy, outcome.sound, outcome.probabilities_NC)
        for row, place, by_policy, sound, probabilities in zip(rows, *fields, strict=True):
            row.exit = exit
            if place is not None:
                may_leave = row.control.allow_early_answer and exit >= row.control.min_exit and row.deadline < math.inf
                row.held = probabilities.copy() if may_leave and sound else None
                row.input, row.queued_at = place, now
                staying.append(row)
            elif sound:
                if by_policy:
                    reason = ExitReason.POLICY
                else:
                    reason = ExitReason.LAST_EXIT if exit == self._backend.exits else row.control.max_exit_reason
                turn.answers.append((row, row.answer(reason, probabilities)))
            else:
                logger.error("exit %d gave probabilities that are not finite", exit)
                turn.dropped.append((row, "failed", ExecutionError(NOT_FINITE)))
        return staying

    def _learner(self, *, alone: bool) -> Callable[[str, int, float], None]:
        def learn(lane: str, size: int, seconds: float) -> None:
            with self._queues:
                for each in self._lanes.named(lane):
                    each.pace(alone=alone).ran(size, seconds)

        return learn
