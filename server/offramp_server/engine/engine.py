"""The engine on the event loop: admits frames, and hands every batch's answers to those who wait for them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

from offramp_model.routing import Policy
from offramp_server.engine.lanes import WHOLE, Row
from offramp_server.engine.overload import HEADROOM, PriceTable, pressure
from offramp_server.engine.scheduler import Strategy, choose_lane
from offramp_server.engine.types import Answer, Backend, EngineLimits, EngineMetrics, Frame, FrameControl
from offramp_server.engine.worker import Turn, Worker
from offramp_server.errors import OverloadedError, UnavailableError


class Engine:
    """Serves one network. All methods are called on one asyncio loop; batches run in the executor's threads (`worker.py`)."""

    def __init__(
        self,
        backend: Backend,
        limits: EngineLimits,
        metrics: EngineMetrics,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
        prices: PriceTable | None = None,
        choose: Strategy = choose_lane,
    ) -> None:
        """`executor` has a thread for every batch that `backend` may run at the same time; `prices` are the model's, for frames
        that may be degraded; `choose` says which lane runs next."""
        self._limits, self._metrics, self._executor, self._clock = limits, metrics, executor, clock
        self._prices = prices or PriceTable()
        self._worker = Worker(backend, limits, executor, clock, choose, self._report)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = set[Row]()
        self._closed = False
        self._busy_seconds = 0.0
        self.frames_answered = 0
        self.batches_entered = 0
        """Batches that ran stage 1, through which every frame goes."""

    @property
    def in_flight(self) -> int:
        """Frames admitted and not yet answered or dropped."""
        return len(self._open)

    async def start(self, warm_up_in: Executor | None = None) -> None:
        """Warm up every stage, then take frames. `warm_up_in` keeps that off the engine's own executor, where others may run."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(warm_up_in or self._executor, self._worker.warm_up)
        self._loop = loop

    def submit(self, frame: Frame) -> asyncio.Future[Answer]:
        """Admit a frame; its answer comes through the future, which may fail with DeadlineError or ExecutionError.

        Cancelling the future drops the frame before it runs its next stage. Raises OverloadedError when too much is in
        flight and UnavailableError before `start` and after `close`.
        """
        if self._closed:
            self._metrics.frame_refused("closed")
            raise UnavailableError("the server is going away: send to another one")
        if self._loop is None:
            self._metrics.frame_refused("not_ready")
            raise UnavailableError("the model is not ready yet: wait until the health service says SERVING")
        control = self._admit(frame.control)
        now, call, own = self._clock(), frame.deadline, control.max_latency_s
        deadline = min(math.inf if call is None else call, math.inf if own is None else now + own)
        row = Row(frame, control, self._loop.create_future(), frame.image, now, deadline)
        self._open.add(row)
        self._metrics.frame_admitted(frame)
        self._metrics.in_flight(len(self._open))
        self._worker.put(row)
        return row.future

    async def close(self) -> None:
        """Stop. Frames still in flight fail with UnavailableError: whoever wants them answered waits before closing."""
        self._closed = True
        self._worker.stop()
        while self._open:
            self._drop(self._open.pop(), "failed", UnavailableError("the server closed before the frame was answered"))
        self._metrics.in_flight(0)

    def _admit(self, control: FrameControl) -> FrameControl:
        """What a frame is to run under. Raises OverloadedError."""
        in_flight, most = len(self._open), self._limits.max_in_flight
        may_degrade = control.allow_degrade and control.policy is Policy.ROUTER
        if in_flight >= (most + math.ceil(HEADROOM * most) if may_degrade else most):
            self._metrics.frame_refused("overloaded")
            message = f"{in_flight} frames are in flight, the most that this model takes"
            raise OverloadedError(message, self._retry_after_ms())
        if may_degrade:
            lambda_ = self._prices.raise_lambda(control.lambda_, pressure(in_flight, most))
            return replace(control, lambda_=lambda_) if lambda_ > control.lambda_ else control
        return control

    def _retry_after_ms(self) -> int:
        """About as long as the frames in flight take at the mean compute of a frame so far."""
        seconds_a_frame = self._busy_seconds / self.frames_answered if self.frames_answered else 0.01
        return max(1, math.ceil(len(self._open) * seconds_a_frame * 1000))

    # --- after a turn -------------------------------------------------------------------------------------------------

    def _report(self, turns: Sequence[Turn]) -> None:
        """In a thread of the executor: the hand-over to the event loop."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._finish, turns)

    def _finish(self, turns: Sequence[Turn]) -> None:
        if self._closed:
            return
        for turn in turns:
            if turn.lane:
                self.batches_entered += turn.lane in ("1", WHOLE)
                self._busy_seconds += turn.seconds
                self._metrics.batch_ran(turn.lane, len(turn.waits), turn.seconds, turn.waits)
            for row, answer in turn.answers:
                self._open.discard(row)
                if row.future.done():
                    self._drop(row, "cancelled", None)
                    continue
                row.future.set_result(answer)
                self.frames_answered += 1
                self._metrics.frame_answered(row.frame, answer)
            for row, reason, error in turn.dropped:
                self._open.discard(row)
                self._drop(row, reason, error)
        self._metrics.in_flight(len(self._open))

    def _drop(self, row: Row, reason: str, error: Exception | None) -> None:
        if error is not None and not row.future.done():
            row.future.set_exception(error)
        self._metrics.frame_dropped(reason)
