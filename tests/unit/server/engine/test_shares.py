"""A backend that splits: several batches at the same time, and the whole device for one that is alone."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from offramp_model.routing import Policy
from offramp_server.engine.types import EngineLimits
from offramp_server.errors import ExecutionError
from tests.unit.server.engine.fakes import EXITS, FakeBackend, frame
from tests.unit.server.engine.running import Clock, block, running


def split(shares: int = 2) -> FakeBackend:
    backend = FakeBackend()
    backend.shares = [FakeBackend() for _ in range(shares)]
    return backend


async def test_a_lone_frame_has_the_whole_device() -> None:
    async with running(backend=split()) as (engine, backend, _):
        assert (await engine.submit(frame(threshold=1.0))).exit == EXITS
        assert backend.batches == [(stage, 1) for stage in range(1, EXITS + 1)]
        assert not any(share.batches for share in backend.shares)


async def test_a_batch_beside_another_runs_on_a_share_and_no_more_than_there_are_shares() -> None:
    async with running(EngineLimits(max_batch=1), backend=split()) as (engine, backend, _):
        for share in backend.shares:
            share.gate.clear()
        first = await block(engine, backend)
        second = engine.submit(frame(1.0, label=2))
        third = engine.submit(frame(1.0, label=3))
        busy = backend.shares[-1]
        assert await asyncio.to_thread(busy.running.wait, 10)
        assert not any(future.done() for future in (first, second, third))
        assert not backend.shares[0].running.is_set()  # two turns are two: the third frame waits
        for each in (backend, *backend.shares):
            each.gate.set()
        assert [int((await future).probabilities.argmax()) for future in (first, second, third)] == [0, 2, 3]


async def test_many_frames_at_once_are_each_answered_once_and_as_if_alone() -> None:
    random = np.random.default_rng(0)
    async with running(EngineLimits(max_batch=4), backend=split(3)) as (engine, backend, metrics):
        halting, labels = random.uniform(0, 1, 400).round(2), random.integers(0, 4, 400)
        futures = []
        for number, (value, label) in enumerate(zip(halting, labels, strict=True)):
            control = {"policy": Policy.FIXED} if number % 5 == 0 else {"threshold": 0.5}
            futures.append(engine.submit(frame(float(value), int(label), **control)))
            if number % 7 == 0:
                await asyncio.sleep(0)
        answers = await asyncio.gather(*futures)
        for number, answer in enumerate(answers):
            leaves_at_once = number % 5 and round(halting[number] * 100) >= 50
            assert (answer.exit, int(answer.probabilities.argmax())) == (1 if leaves_at_once else EXITS, labels[number])
        assert metrics.events["answered"] == 400
        assert engine.in_flight == 0
        assert sum(size for share in backend.shares for _, size in share.batches) > 0


async def test_a_share_that_fails_comes_back() -> None:
    async with running(EngineLimits(max_batch=1), backend=split(2)) as (engine, backend, _):
        blocked = await block(engine, backend)
        for share in backend.shares:
            share.fail_on = 1
        failing = [engine.submit(frame(1.0)) for _ in range(3)]
        for future in failing:
            with pytest.raises(ExecutionError):
                await future
        for share in backend.shares:
            share.fail_on = None
        assert (await engine.submit(frame(1.0))).exit == 1  # on a share: the device's own batch still runs
        backend.gate.set()
        await blocked


async def test_frames_are_not_answered_early_while_a_share_is_free_for_them() -> None:
    clock, backend = Clock(), split(2)

    def pass_time(lane: int | str, size: int) -> None:
        clock.now += 1.0

    for each in (backend, *backend.shares):
        each.after_run = pass_time
    async with running(EngineLimits(max_batch=1), clock=clock, backend=backend) as (engine, _, _):
        blocked = await block(engine, backend)  # one of two turns, for as long as the gate is closed
        answer = await engine.submit(frame(0.5, threshold=1.0, max_latency_s=3.5, allow_early_answer=True))
        assert answer.exit == EXITS
        backend.gate.set()
        await blocked


async def test_a_share_takes_batches_of_whole_steps_and_leaves_the_rest_to_the_next() -> None:
    backend = split(2)
    for each in (backend, *backend.shares):
        each.batch_step = 4
    async with running(EngineLimits(max_batch=16), backend=backend) as (engine, _, _):
        blocked = await block(engine, backend)
        await asyncio.gather(*(engine.submit(frame(1.0)) for _ in range(23)))
        backend.gate.set()
        await blocked
    sizes = [size for share in backend.shares for _, size in share.batches]
    assert sum(sizes) == 23
    assert all(size % 4 == 0 or size < 4 for size in sizes)


async def test_while_every_core_is_busy_a_further_batch_runs_beside_them_only_if_it_is_an_efficient_one() -> None:
    backend = split(4)
    backend.batches_a_share = 2  # so there are two cores
    async with running(EngineLimits(max_batch=4), backend=backend) as (engine, _, _):
        for share in backend.shares:
            share.gate.clear()
        busy = [await block(engine, backend), engine.submit(frame(1.0))]  # one on all cores, one on a share
        assert await asyncio.to_thread(backend.shares[-1].running.wait, 10)
        few = [engine.submit(frame(1.0)) for _ in range(3)]
        assert not any(share.running.is_set() for share in backend.shares[:-1])
        few.append(engine.submit(frame(1.0)))  # the fourth makes a batch
        assert await asyncio.to_thread(backend.shares[-2].running.wait, 10)
        assert not any(share.running.is_set() for share in backend.shares[:-2])
        for each in (backend, *backend.shares):
            each.gate.set()
        assert [(await future).exit for future in (*busy, *few)] == [1] * 6
    assert backend.shares[-2].batches == [(1, 4)]
