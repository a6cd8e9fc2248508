"""Frames under pressure: early answers before a deadline, a larger λ under overload, and none of either unasked."""

from __future__ import annotations

import asyncio

import pytest

from offramp_model.routing import ExitReason, Policy
from offramp_server.engine.overload import PriceTable, price_table
from offramp_server.engine.types import EngineLimits
from offramp_server.errors import DeadlineError, OverloadedError
from tests.unit.server.engine.fakes import EXITS, FakeBackend, frame
from tests.unit.server.engine.running import Clock, block, running

STAGE_S = 1.0
PRICES = price_table([(0.0, 1.0), (1.0, 0.6), (5.0, 0.2)])


def slow(clock: Clock) -> FakeBackend:
    """Every batch takes a second, the whole network three."""
    backend = FakeBackend()

    def pass_time(lane: int | str, size: int) -> None:
        clock.now += EXITS * STAGE_S if lane == "whole" else STAGE_S

    backend.after_run = pass_time
    return backend


@pytest.mark.parametrize(
    ("budget", "exit", "reason"),
    [(1.5, 1, ExitReason.DEADLINE), (2.5, 2, ExitReason.DEADLINE), (3.5, EXITS, ExitReason.LAST_EXIT)],
)
@pytest.mark.parametrize("bound", [{"threshold": 1.0}, {"policy": Policy.FIXED}, {"threshold": 1.0, "min_exit": 1}])
async def test_a_frame_leaves_where_going_on_would_miss_its_deadline(
    budget: float, exit: int, reason: ExitReason, bound: dict[str, object]
) -> None:
    clock = Clock()
    async with running(clock=clock, backend=slow(clock)) as (engine, _, metrics):
        answer = await engine.submit(frame(0.5, label=2, max_latency_s=budget, allow_early_answer=True, **bound))
        assert (answer.exit, answer.reason, int(answer.probabilities.argmax())) == (exit, reason, 2)
        assert len(answer.halting) == min(exit, EXITS - 1)
        assert answer.queue_ms + answer.compute_ms <= budget * 1000
        assert engine.in_flight == metrics.frames_in_flight == 0


async def test_the_calls_deadline_counts_like_the_frames_own_and_the_sooner_holds() -> None:
    clock = Clock()
    async with running(clock=clock, backend=slow(clock)) as (engine, _, _):
        allowed = {"threshold": 1.0, "allow_early_answer": True}
        assert (await engine.submit(frame(deadline=clock.now + 2.5, **allowed))).exit == 2
        assert (await engine.submit(frame(deadline=clock.now + 2.5, max_latency_s=1.5, **allowed))).exit == 1
        assert (await engine.submit(frame(deadline=clock.now + 1.5, max_latency_s=9.0, **allowed))).exit == 1


async def test_who_does_not_allow_it_gets_no_early_answer() -> None:
    clock = Clock()
    async with running(clock=clock, backend=slow(clock)) as (engine, backend, metrics):
        with pytest.raises(DeadlineError):
            await engine.submit(frame(threshold=1.0, max_latency_s=0.5))
        assert backend.batches == [(1, 1)]
        assert metrics.events["dropped expired"] == 1


async def test_no_early_answer_comes_before_min_exit_or_before_the_first_exit() -> None:
    clock = Clock()
    async with running(clock=clock, backend=slow(clock)) as (engine, backend, _):
        allowed = {"threshold": 1.0, "allow_early_answer": True}
        held = await engine.submit(frame(min_exit=2, max_latency_s=2.5, **allowed))
        assert (held.exit, held.reason) == (2, ExitReason.DEADLINE)
        with pytest.raises(DeadlineError):
            await engine.submit(frame(min_exit=2, max_latency_s=0.5, **allowed))
        blocked = await block(engine, backend)
        late = engine.submit(frame(max_latency_s=0.5, **allowed))
        backend.gate.set()
        await blocked
        with pytest.raises(DeadlineError):
            await late


async def test_one_slow_moment_does_not_keep_frames_shallow_for_ever() -> None:
    clock, slow_stages = Clock(), {2}
    backend = FakeBackend()

    def pass_time(lane: int | str, size: int) -> None:
        clock.now += 50.0 if lane in slow_stages else 0.1

    backend.after_run = pass_time
    async with running(clock=clock, backend=backend) as (engine, _, _):
        hurried = {"threshold": 1.0, "allow_early_answer": True, "max_latency_s": 3.0}
        assert (await engine.submit(frame(**hurried))).exit == 1
        slow_stages.clear()
        exits = [(await engine.submit(frame(**hurried))).exit for _ in range(300)]
        assert exits[0] == 1
        assert exits[-1] == EXITS


async def test_a_batch_of_another_lane_makes_nobody_late_who_has_an_answer_in_hand() -> None:
    """Two frames wait between stages while a full entry batch, preferred, would outlast the first one's deadline."""
    clock = Clock()
    async with running(EngineLimits(max_batch=2, max_stage_wait_ms=1e9), clock, backend=slow(clock)) as (engine, backend, _):
        blocked = await block(engine, backend)
        hurried = engine.submit(frame(threshold=1.0, allow_early_answer=True, max_latency_s=3.5))
        mate = engine.submit(frame(1.0))
        others = [engine.submit(frame(1.0)) for _ in range(4)]
        backend.gate.set()
        answers = await asyncio.gather(blocked, hurried, mate, *others)
        assert (answers[1].exit, answers[1].reason) == (1, ExitReason.DEADLINE)
        # at 102 s it had run stage 1; the entry batch then chosen would have ended at 103 s and its own stage at 104 s
        assert answers[1].queue_ms + answers[1].compute_ms == pytest.approx(2000)


async def test_under_overload_lambda_rises_for_those_who_allow_it_and_only_for_them() -> None:
    limits = EngineLimits(max_batch=4, max_in_flight=4)
    async with running(limits, prices=PRICES) as (engine, backend, metrics):
        blocked = await block(engine, backend)
        futures = [engine.submit(frame(allow_degrade=allowed)) for allowed in (True, False, True)]
        with pytest.raises(OverloadedError):
            engine.submit(frame())
        futures.append(engine.submit(frame(allow_degrade=True)))
        with pytest.raises(OverloadedError):
            engine.submit(frame(allow_degrade=True))
        backend.gate.set()
        answers = await asyncio.gather(blocked, *futures)
        # in flight at admission: 0, 1, 2, 3, and at the limit
        assert [a.lambda_ for a in answers] == pytest.approx([0, 0, 0, 1.0, 5.0])
        assert [a.degraded for a in answers] == [False, False, False, True, True]
        assert metrics.events["refused overloaded"] == 2


@pytest.mark.parametrize("policy", [Policy.ENTROPY, Policy.CONFIDENCE, Policy.FIXED])
async def test_policies_that_read_no_lambda_are_refused_as_ever(policy: Policy) -> None:
    async with running(EngineLimits(max_batch=4, max_in_flight=1), prices=PRICES) as (engine, backend, _):
        await block(engine, backend)
        with pytest.raises(OverloadedError):
            engine.submit(frame(policy=policy, allow_degrade=True))


async def test_a_model_without_prices_degrades_nothing() -> None:
    async with running(EngineLimits(max_batch=4, max_in_flight=4), prices=PriceTable()) as (engine, backend, _):
        blocked = await block(engine, backend)
        futures = [engine.submit(frame(allow_degrade=True)) for _ in range(4)]
        backend.gate.set()
        answers = await asyncio.gather(blocked, *futures)
        assert not any(answer.degraded for answer in answers)
