"""The λ under overload, over arbitrary tables: monotone, bounded, and none where there is no pressure."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp_server.engine.overload import PriceTable, pressure, price_table

tables = st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 1.2)), max_size=12).map(price_table)
prices = st.floats(0, 200)
pressures = st.floats(0, 1)


def test_half_of_the_places_are_free_of_pressure() -> None:
    assert [pressure(in_flight, 100) for in_flight in (0, 50, 75, 100, 125)] == [0, 0, 0.5, 1, 1]
    assert pressure(1, 1) == 1


@given(st.integers(1, 10_000), st.lists(st.integers(0, 20_000), min_size=2))
def test_pressure_is_monotone_and_bounded(most: int, loads: list[int]) -> None:
    values = [pressure(load, most) for load in sorted(loads)]
    assert all(0 <= low <= high <= 1 for low, high in pairwise(values))


def test_the_cost_goes_in_equal_steps() -> None:
    table = price_table([(0.0, 1.0), (1.0, 0.6), (10.0, 0.2)])
    assert [table.raise_lambda(0.0, p) for p in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx([0, 0.5, 1, 5.5, 10])
    assert table.raise_lambda(1.0, 0.5) == pytest.approx(5.5)
    assert table.raise_lambda(20.0, 1.0) == 20.0


def test_points_that_are_dearer_at_a_larger_lambda_are_left_out() -> None:
    assert price_table([(2.0, 0.5), (0.0, 0.9), (1.0, 0.95), (2.0, 0.4), (3.0, 0.5)]) == PriceTable((0.0, 2.0), (0.9, 0.4))


@given(tables, prices, pressures, pressures)
def test_it_rises_with_the_pressure_from_the_callers_own(table: PriceTable, own: float, one: float, other: float) -> None:
    low, high = (table.raise_lambda(own, p) for p in sorted((one, other)))
    assert table.raise_lambda(own, 0.0) == own
    assert own <= low <= high + 1e-9 * max(high, 1)
    assert high <= max(own, *table.lambdas, 0.0)


@given(tables, prices, prices, pressures)
def test_who_asked_for_cheaper_stays_cheaper(table: PriceTable, one: float, other: float, p: float) -> None:
    low, high = (table.raise_lambda(own, p) for own in sorted((one, other)))
    assert low <= high + 1e-9 * max(high, 1)
