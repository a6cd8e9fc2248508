"""The engine: admits frames, keeps one queue a stage, runs batches, lets every frame out where its own policy says."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from offramp_model.routing import ExitReason
from offramp_server.engine.execution import RowOutcome, Survivor, run_batch, warm_up
from offramp_server.engine.scheduler import QueueState, choose_stage
from offramp_server.engine.types import Answer, Backend, EngineLimits, EngineMetrics, Frame
from offramp_server.errors import DeadlineError, ExecutionError, OverloadedError, UnavailableError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Row:
    """A frame on its way through the stages."""

    frame: Frame
    future: asyncio.Future[Answer]
    input: np.ndarray | Survivor
    queued_at: float
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    halting: list[float] = field(default_factory=list)


class Engine:
    """Serves one network. All methods are called on one asyncio loop; only `backend` runs in the executor's thread."""

    def __init__(
        self,
        backend: Backend,
        limits: EngineLimits,
        metrics: EngineMetrics,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend, self._limits, self._metrics, self._executor, self._clock = backend, limits, metrics, executor, clock
        self._queues: list[deque[_Row]] = [deque() for _ in range(backend.exits)]
        self._in_flight = 0
        self._work = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._closed = False
        self._busy_seconds = 0.0
        self.frames_answered = 0
        self.batches_entered = 0
        """Batches that ran stage 1, through which every frame goes."""

    @property
    def in_flight(self) -> int:
        """Frames admitted and not yet answered or dropped."""
        return self._in_flight

    async def start(self, warm_up_in: Executor | None = None) -> None:
        """Warm up every stage, then take frames. `warm_up_in` keeps that off the engine's own executor, where others may run."""
        executor = warm_up_in or self._executor
        await asyncio.get_running_loop().run_in_executor(executor, warm_up, self._backend, self._limits.max_batch)
        self._loop_task = asyncio.create_task(self._run(), name="engine")

    def submit(self, frame: Frame) -> asyncio.Future[Answer]:
        """Admit a frame; its answer comes through the future, which may fail with DeadlineError or ExecutionError.

        Cancelling the future drops the frame before it runs its next stage. Raises OverloadedError when too much is in
        flight and UnavailableError before `start` and after `close`.
        """
        if self._closed:
            self._metrics.frame_refused("closed")
            raise UnavailableError("the server is going away: send to another one")
        if self._loop_task is None:
            self._metrics.frame_refused("not_ready")
            raise UnavailableError("the model is not ready yet: wait until the health service says SERVING")
        if self._in_flight >= self._limits.max_in_flight:
            self._metrics.frame_refused("overloaded")
            message = f"{self._in_flight} frames are in flight, the most that this model takes"
            raise OverloadedError(message, self._retry_after_ms())
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._count(+1)
        self._metrics.frame_admitted(frame)
        self._enqueue(1, _Row(frame, future, frame.image, self._clock()))
        return future

    async def close(self) -> None:
        """Stop. Frames still in flight fail with UnavailableError: whoever wants them answered waits before closing."""
        self._closed = True
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        for queue in self._queues:
            while queue:
                self._drop(queue.popleft(), UnavailableError("the server closed before the frame was answered"), "failed")

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            now = self._clock()
            states = [QueueState(len(q), now - q[0].queued_at if q else 0.0) for q in self._queues]
            stage = choose_stage(states, self._limits.max_batch, self._limits.max_stage_wait_ms / 1000)
            if stage is None:
                self._work.clear()
                await self._work.wait()
            elif rows := self._take(stage):
                await self._run_stage(stage, rows)

    def _take(self, stage: int) -> list[_Row]:
        """Up to a batch of frames whose callers still wait for them; the others are dropped here, before they run."""
        queue, rows, now = self._queues[stage - 1], list[_Row](), self._clock()
        while queue and len(rows) < self._limits.max_batch:
            row = queue.popleft()
            if row.future.done():
                self._drop(row, None, "cancelled")
            elif row.frame.deadline is not None and now >= row.frame.deadline:
                self._drop(row, DeadlineError(f"the deadline passed while the frame waited for stage {stage}"), "expired")
            else:
                rows.append(row)
        return rows

    async def _run_stage(self, stage: int, rows: list[_Row]) -> None:
        started = self._clock()
        self.batches_entered += stage == 1
        waits = [started - row.queued_at for row in rows]
        try:
            outcomes = await asyncio.get_running_loop().run_in_executor(
                self._executor, run_batch, self._backend, stage, [row.input for row in rows], [row.frame.control for row in rows]
            )
        except asyncio.CancelledError:
            for row in rows:
                self._drop(row, UnavailableError("the server closed before the frame was answered"), "failed")
            raise
        except Exception:
            logger.exception("stage %d failed on a batch of %d", stage, len(rows))
            for row in rows:
                self._drop(row, ExecutionError("the network could not be run on this frame"), "failed")
            return
        finished = self._clock()
        self._busy_seconds += finished - started
        self._metrics.batch_ran(stage, len(rows), finished - started, waits)
        for row, wait, outcome in zip(rows, waits, outcomes, strict=True):
            row.queue_seconds += wait
            row.compute_seconds += finished - started
            if outcome.halting is not None:
                row.halting.append(outcome.halting)
            if outcome.leaves:
                self._answer(row, stage, outcome)
            else:
                assert outcome.survivor is not None
                row.input, row.queued_at = outcome.survivor, finished
                self._enqueue(stage + 1, row)

    def _answer(self, row: _Row, exit: int, outcome: RowOutcome) -> None:
        if outcome.probabilities is None:
            logger.error("exit %d gave probabilities that are not finite", exit)
            self._drop(row, ExecutionError("the network gave no finite probabilities for this frame"), "failed")
            return
        if outcome.by_policy:
            reason = ExitReason.POLICY
        elif exit == self._backend.exits:
            reason = ExitReason.LAST_EXIT
        else:
            reason = row.frame.control.max_exit_reason
        answer = Answer(
            probabilities=outcome.probabilities,
            exit=exit,
            reason=reason,
            halting=tuple(row.halting),
            queue_ms=row.queue_seconds * 1000,
            compute_ms=row.compute_seconds * 1000,
        )
        if row.future.done():
            self._drop(row, None, "cancelled")
            return
        row.future.set_result(answer)
        self.frames_answered += 1
        self._metrics.frame_answered(row.frame, answer)
        self._count(-1)

    # --- bookkeeping --------------------------------------------------------------------------------------------------

    def _enqueue(self, stage: int, row: _Row) -> None:
        self._queues[stage - 1].append(row)
        self._work.set()

    def _drop(self, row: _Row, error: Exception | None, reason: str) -> None:
        if error is not None and not row.future.done():
            row.future.set_exception(error)
        self._metrics.frame_dropped(reason)
        self._count(-1)

    def _count(self, change: int) -> None:
        self._in_flight += change
        self._metrics.in_flight(self._in_flight)

    def _retry_after_ms(self) -> int:
        """About as long as the frames in flight take at the mean compute of a frame so far."""
        seconds_a_frame = self._busy_seconds / self.frames_answered if self.frames_answered else 0.01
        return max(1, math.ceil(self._in_flight * seconds_a_frame * 1000))
