"""Running sums."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from offramp_client import Classification, ClassProbability, Control, ExitReason, FrameError, Result
from offramp_client.tally import Tally

SHOWN = Classification((ClassProbability(3, "cat", 0.9),), 1, ExitReason.POLICY, (0.8,), 0.25, 250, 0.1, 0.2, "m", "1", Control())


def result(exit: int, latency_ms: float = 1.0) -> Result:
    return Result(0, 0, latency_ms, replace(SHOWN, exit=exit, cost_ratio=exit / 4, cost_macs=250 * exit))


def test_sums_of_exits_and_compute() -> None:
    tally = Tally()
    for exit in (1, 1, 2, 4):
        tally.add(result(exit))
    tally.add(Result(9, 0, 1.0, error=FrameError("INTERNAL", "")))
    assert (tally.answered, tally.failed) == (4, 1)
    assert [tally.fraction(k) for k in range(1, 5)] == [0.5, 0.25, 0, 0.25]
    assert tally.mean_cost == 0.5
    assert (tally.macs_spent, tally.macs_saved) == (2000, 2000)


def test_percentiles_of_latency() -> None:
    tally = Tally()
    assert math.isnan(tally.latency_ms(50))
    for latency_ms in range(101):
        tally.add(result(1, float(latency_ms)))
    assert (tally.latency_ms(50), tally.latency_ms(95)) == (50, 95)


def test_the_rate_is_that_of_the_last_seconds_and_the_mean_that_of_all() -> None:
    now = 100.0
    tally = Tally(clock=lambda: now)
    assert (tally.fps, tally.mean_fps) == (0, 0)
    for _ in range(11):
        tally.add(result(1))
        now += 1.0
    for _ in range(40):
        tally.add(result(1))
        now += 0.1
    assert tally.fps == pytest.approx(10)
    assert tally.mean_fps == pytest.approx(50 / 14.9)
