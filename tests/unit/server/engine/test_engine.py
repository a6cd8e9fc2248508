"""The engine on a fake backend: who leaves where, what is bounded, what is dropped, what a fault does."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from offramp_model.routing import ExitReason, Policy
from offramp_server.engine.engine import Engine
from offramp_server.engine.types import EngineLimits, Frame
from offramp_server.errors import DeadlineError, ExecutionError, OverloadedError, UnavailableError
from tests.unit.server.engine.fakes import EXITS, FakeBackend, RecordingMetrics, control_of, frame
from tests.unit.server.engine.running import Clock, block, running


async def test_a_frame_leaves_at_the_first_exit_whose_router_passes_the_threshold() -> None:
    async with running() as (engine, _, metrics):
        answer = await engine.submit(frame(halting=0.8, label=2, threshold=0.7))
        assert (answer.exit, answer.reason, int(answer.probabilities.argmax())) == (1, ExitReason.POLICY, 2)
        assert answer.halting == pytest.approx((0.8,), abs=1e-3)
        deep = await engine.submit(frame(halting=0.6, threshold=0.7))
        assert (deep.exit, deep.reason) == (EXITS, ExitReason.LAST_EXIT)
        assert deep.halting == pytest.approx((0.6, 0.6), abs=1e-3)
        assert metrics.events["admitted"] == metrics.events["answered"] == 2
        assert engine.in_flight == metrics.frames_in_flight == 0


@pytest.mark.parametrize(
    ("control", "exit", "reason"),
    [
        ({"policy": Policy.FIXED, "max_exit": 2}, 2, ExitReason.MAX_EXIT),
        ({"policy": Policy.FIXED}, 3, ExitReason.LAST_EXIT),
        ({"threshold": 1.0, "max_exit": 2, "max_exit_reason": ExitReason.MAX_COST}, 2, ExitReason.MAX_COST),
        ({"threshold": 0.1, "min_exit": 2}, 2, ExitReason.POLICY),
        ({"threshold": 0.1, "min_exit": 3}, 3, ExitReason.LAST_EXIT),
        ({"policy": Policy.CONFIDENCE, "threshold": 0.9}, 1, ExitReason.POLICY),
        ({"policy": Policy.CONFIDENCE, "threshold": 1.0}, 3, ExitReason.LAST_EXIT),
        ({"policy": Policy.ENTROPY, "threshold": 0.9}, 1, ExitReason.POLICY),
        ({"policy": Policy.ENTROPY, "threshold": 0.001}, 3, ExitReason.LAST_EXIT),
        ({"threshold": 1.0, "lambda_": 1000.0}, 1, ExitReason.POLICY),
    ],
)
async def test_every_policy_and_bound(control: dict[str, object], exit: int, reason: ExitReason) -> None:
    async with running() as (engine, _, _):
        answer = await engine.submit(frame(halting=0.5, **control))
        assert (answer.exit, answer.reason) == (exit, reason)


async def test_mixed_controls_share_a_batch_and_each_keeps_its_own() -> None:
    async with running(EngineLimits(max_batch=8)) as (engine, backend, _):
        blocked = await block(engine, backend)
        futures = [
            engine.submit(frame(0.5, label=0, policy=Policy.FIXED, max_exit=1)),
            engine.submit(frame(0.5, label=1, threshold=0.9)),
            engine.submit(frame(0.5, label=2, threshold=0.4)),
            engine.submit(frame(0.5, label=3, policy=Policy.FIXED, max_exit=2)),
        ]
        backend.gate.set()
        answers = await asyncio.gather(blocked, *futures)
        assert [a.exit for a in answers[1:]] == [1, 3, 1, 2]
        assert [int(a.probabilities.argmax()) for a in answers[1:]] == [0, 1, 2, 3]
        assert backend.batches == [(1, 1), (1, 4), (2, 2), (3, 1)]


async def test_survivors_of_different_batches_merge_before_the_next_stage() -> None:
    async with running(EngineLimits(max_batch=2, max_stage_wait_ms=1e9)) as (engine, backend, _):
        blocked = await block(engine, backend)
        leaver, stayer = {"policy": Policy.FIXED, "max_exit": 1}, {"policy": Policy.FIXED, "max_exit": 2}
        futures = [engine.submit(frame(label=i % 4, **c)) for i, c in enumerate([leaver, stayer, stayer, leaver])]
        backend.gate.set()
        answers = await asyncio.gather(blocked, *futures)
        assert [a.exit for a in answers[1:]] == [1, 2, 2, 1]
        assert [int(a.probabilities.argmax()) for a in answers[1:]] == [0, 1, 2, 3]
        assert backend.batches == [(1, 1), (1, 2), (1, 2), (2, 2)]


async def test_frames_bound_for_the_last_exit_gather_and_run_the_whole_network() -> None:
    async with running(EngineLimits(max_batch=8)) as (engine, backend, metrics):
        blocked = await block(engine, backend)
        last = [{"policy": Policy.FIXED}, {"min_exit": EXITS}]
        futures = [engine.submit(frame(0.6, label=i % 4, **(last[i // 2 % 2] if i % 2 else {}))) for i in range(8)]
        backend.gate.set()
        answers = await asyncio.gather(blocked, *futures)
        assert set(backend.batches[1:]) == {(1, 4), ("whole", 4)}
        assert [(a.exit, a.reason) for a in answers[1:]] == [(1, ExitReason.POLICY), (EXITS, ExitReason.LAST_EXIT)] * 4
        assert [int(a.probabilities.argmax()) for a in answers[1:]] == [0, 1, 2, 3] * 2
        assert answers[2].halting == pytest.approx((0.6, 0.6), abs=1e-3)
        assert metrics.events["stage whole"] == 4
        assert engine.batches_entered == 3


async def test_tensors_and_pixels_never_share_a_batch() -> None:
    async with running(EngineLimits(max_batch=8)) as (engine, backend, _):
        blocked = await block(engine, backend)
        backend.types.clear()
        tensor = Frame(np.zeros((3, 2, 2), np.float32), control_of(policy=Policy.FIXED))
        tensors = [engine.submit(tensor) for _ in range(2)]
        pixels = [engine.submit(frame(1.0)) for _ in range(3)]
        backend.gate.set()
        await asyncio.gather(blocked, *tensors, *pixels)
        assert sorted(map(str, backend.types)) == ["{'float32'}", "{'uint8'}"]
        assert [size for lane, size in backend.batches[1:] if lane == 1] in ([2, 3], [3, 2])


async def test_the_event_loop_is_called_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(EngineLimits(max_batch=8)) as (engine, backend, _):
        blocked = await block(engine, backend)
        futures = [engine.submit(frame(1.0)) for _ in range(8)]
        calls, loop = [], asyncio.get_running_loop()
        hand_over = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *a, **k: (calls.append(a[0]), hand_over(*a, **k))[1])
        backend.gate.set()
        await asyncio.gather(blocked, *futures)
        assert backend.batches == [(1, 1), (1, 8)]
        assert len(calls) == 2


async def test_more_than_max_in_flight_is_refused_and_the_rest_is_answered() -> None:
    async with running(EngineLimits(max_batch=4, max_in_flight=3)) as (engine, backend, metrics):
        blocked = await block(engine, backend)
        others = [engine.submit(frame()) for _ in range(2)]
        with pytest.raises(OverloadedError) as refusal:
            engine.submit(frame())
        assert refusal.value.retry_after_ms >= 1
        backend.gate.set()
        assert len(await asyncio.gather(blocked, *others)) == 3
        assert metrics.events["refused overloaded"] == 1
        assert (await engine.submit(frame(1.0))).exit == 1


async def test_cancelled_and_expired_frames_never_run() -> None:
    clock = Clock()
    async with running(clock=clock) as (engine, backend, metrics):
        blocked = await block(engine, backend)
        cancelled, expired = engine.submit(frame()), engine.submit(frame(deadline=105.0))
        kept = engine.submit(frame(1.0, deadline=120.0))
        cancelled.cancel()
        clock.now = 110.0
        backend.gate.set()
        assert (await kept).exit == 1
        await blocked
        with pytest.raises(DeadlineError):
            await expired
        assert backend.batches == [(1, 1), (1, 1)]
        assert metrics.events["dropped cancelled"] == metrics.events["dropped expired"] == 1
        assert engine.in_flight == 0


async def test_a_frame_cancelled_while_its_batch_runs_leaves_its_mates_alone() -> None:
    async with running() as (engine, backend, metrics):
        blocked = await block(engine, backend)
        blocked.cancel()
        mate = engine.submit(frame(1.0, label=3))
        backend.gate.set()
        assert int((await mate).probabilities.argmax()) == 3
        assert metrics.events["dropped cancelled"] == 1
        assert engine.in_flight == 0


async def test_a_failing_stage_fails_its_frames_without_detail_and_the_engine_goes_on() -> None:
    async with running() as (engine, backend, metrics):
        backend.fail_on = 2
        with pytest.raises(ExecutionError) as failure:
            await engine.submit(frame(threshold=1.0))
        assert "secret" not in str(failure.value)
        assert metrics.events["dropped failed"] == 1
        backend.fail_on = None
        assert (await engine.submit(frame(policy=Policy.FIXED))).exit == 3


async def test_a_frame_without_finite_probabilities_fails_alone() -> None:
    async with running() as (engine, backend, metrics):
        blocked = await block(engine, backend)
        broken, mate = engine.submit(frame(1.0, label=9)), engine.submit(frame(1.0, label=2))
        backend.gate.set()
        await blocked
        assert int((await mate).probabilities.argmax()) == 2
        with pytest.raises(ExecutionError, match="finite"):
            await broken
        assert metrics.events["dropped failed"] == 1
        assert engine.in_flight == 0


async def test_closing_fails_what_is_left_and_nothing_hangs() -> None:
    async with running() as (engine, backend, metrics):
        blocked = await block(engine, backend)
        queued = engine.submit(frame())
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError):
            engine.submit(frame())
        assert metrics.events["refused closed"] == 1
        backend.gate.set()
        await closing
        for future in (blocked, queued):
            with pytest.raises(UnavailableError):
                await future
        assert engine.in_flight == 0


async def test_a_frame_is_refused_before_the_engine_has_started() -> None:
    with ThreadPoolExecutor(1) as executor:
        engine = Engine(FakeBackend(), EngineLimits(), RecordingMetrics(), executor)
        with pytest.raises(UnavailableError, match="not ready"):
            engine.submit(frame())


async def test_probabilities_are_float32_and_sum_to_one() -> None:
    async with running() as (engine, _, _):
        answer = await engine.submit(frame(1.0, label=1))
        assert answer.probabilities.dtype == np.float32
        assert answer.probabilities.sum() == pytest.approx(1, abs=1e-5)
