"""Live estimates of what batches take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp_server.engine.pace import Pace


def test_nothing_is_claimed_before_anything_was_measured() -> None:
    pace = Pace(32)
    assert pace.seconds(8) == 0
    assert pace.efficient == 32


def test_it_interpolates_between_sizes_and_errs_on_the_safe_side_beyond() -> None:
    pace = Pace(32)
    pace.ran(4, 0.010)
    pace.ran(16, 0.022)
    assert pace.seconds(8) == pytest.approx(0.014)
    assert pace.seconds(1) == pytest.approx(0.010)
    assert pace.seconds(32) == pytest.approx(0.044)


def test_it_follows_a_change_and_shrugs_off_one_odd_batch() -> None:
    pace = Pace(8)
    for _ in range(50):
        pace.ran(8, 0.010)
    pace.ran(8, 0.100)
    assert pace.seconds(8) < 0.03
    for _ in range(50):
        pace.ran(8, 0.020)
    assert pace.seconds(8) == pytest.approx(0.020, rel=0.01)


def test_an_estimate_that_keeps_frames_away_fades() -> None:
    pace = Pace(8)
    pace.ran(8, 1.0)
    for _ in range(100):
        pace.doubt()
    assert 0 < pace.seconds(8) < 0.2


@pytest.mark.parametrize(
    ("fixed", "each", "efficient"),
    [(0.0, 0.001, 1), (0.001, 0.001, 8), (0.010, 0.001, 32), (1.0, 0.0, 32)],
)
def test_a_batch_is_efficient_once_its_fixed_cost_is_spread(fixed: float, each: float, efficient: int) -> None:
    pace = Pace(32)
    for size in (1, 2, 4, 8, 16, 32):
        pace.ran(size, fixed + each * size)
    assert pace.efficient == efficient


@given(st.lists(st.tuples(st.integers(1, 32), st.floats(0, 1)), max_size=20), st.integers(1, 64))
def test_estimates_stay_within_what_was_measured_and_efficient_within_the_batch(ran: list[tuple[int, float]], size: int) -> None:
    pace = Pace(32)
    for batch, seconds in ran:
        pace.ran(batch, seconds)
    assert 1 <= pace.efficient <= 32
    most = max((seconds for _, seconds in ran), default=0.0)
    assert 0 <= pace.seconds(size) <= most * max(size, 1) + 1e-9
