"""Rules held to a mean cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp_training.comparison.at_cost import TOLERANCE, at_costs, sweep
from offramp_training.comparison.rules import ConfidenceThreshold, EntropyThreshold, ExitRule, FixedExit, Patience
from offramp_training.comparison.table import ExitTable
from offramp_training.policies import on_hull, upper_hull
from tests.unit.training.comparison.tables import COST_K, random_table, table_of

RULES: list[ExitRule] = [EntropyThreshold(), ConfidenceThreshold(), Patience(), FixedExit()]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(RULES), st.floats(0.26, 0.99), st.integers(0, 2**31))
def test_select_cost_is_met(rule: ExitRule, target: float, seed: int) -> None:
    select, test = random_table(300, 4, seed), random_table(200, 4, seed + 1)
    result = at_costs(rule, select, test, [target])[0]
    assert result is not None
    assert result.select.mean_cost == pytest.approx(target, abs=TOLERANCE + 1e-9)
    assert sum(share for _, share in result.settings) == pytest.approx(1)
    assert result.right_N.shape == result.cost_N.shape == (200,)
    assert float(result.right_N.mean()) == pytest.approx(result.test.accuracy)
    assert float(result.cost_N.mean()) == pytest.approx(result.test.mean_cost)
    assert sum(result.test.exit_fractions) == pytest.approx(1)


def test_targets_out_of_reach_are_none() -> None:
    table = random_table(300, 4, seed=0)
    for rule in RULES:
        cheap, dear = at_costs(rule, table, table, [0.24, 1.01])
        assert cheap is None
        assert dear is None
        ends = at_costs(rule, table, table, [0.2485, 0.25, 1.0])
        assert all(end is not None for end in ends), "the ends themselves, and what lies within the tolerance of them"


def test_nothing_is_chosen_on_test() -> None:
    select = random_table(300, 4, seed=0)
    first, second = (at_costs(ConfidenceThreshold(), select, random_table(80, 4, seed), [0.4, 0.6]) for seed in (1, 2))
    for a, b in zip(first, second, strict=True):
        assert a is not None
        assert b is not None
        assert (a.settings, a.select) == (b.settings, b.select)
        assert a.test != b.test


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.26, 0.9))
def test_fixed_mixtures_lie_on_the_hull(seed: int, target: float) -> None:
    select = random_table(200, 4, seed)
    points = [(p.outcome.mean_cost, p.outcome.accuracy) for p in sweep(FixedExit(), select, [1, 2, 3, 4])]
    result = at_costs(FixedExit(), select, select, [target], tolerance=1e-9)[0]
    assert result is not None
    hull = upper_hull(points)
    if target <= hull[-1][0]:
        assert result.select.accuracy == pytest.approx(on_hull(hull, target))
    assert result.select.mean_cost == pytest.approx(target)


def test_a_jump_over_the_target_is_mixed() -> None:
    """Half of the frames are as sure as each other at exit 1, so a threshold moves them all at once."""
    confidence_NK = torch.tensor([[0.9, 0.3, 0.9], [0.6, 0.3, 0.9]])  # exit 2 is never a reason to leave
    right_NK = torch.tensor([[True, True, True], [False, False, True]])
    table = table_of(confidence_NK, right_NK, COST_K, seed=0).rows(torch.arange(400) % 2)
    result = at_costs(ConfidenceThreshold(), table, table, [0.8])[0]
    assert result is not None
    (cheap, cheap_share), (dear, dear_share) = result.settings
    assert cheap < dear
    assert (cheap_share, dear_share) == pytest.approx((0.2 / 0.375, 0.175 / 0.375))
    assert (result.test.mean_cost, result.test.accuracy) == pytest.approx((0.8, 1))
    low = at_costs(ConfidenceThreshold(), table, table, [0.4])[0]
    assert low is not None
    assert low.right_N.tolist() == pytest.approx([1, 0.15 / 0.375] * 200)


class ThereAndBack:
    """Costs rise with the knob, then fall again; on the way back exit 2, which is always right, takes the place of exit 1."""

    name = "there and back"
    continuous = True

    def knobs(self, select: ExitTable) -> list[float]:
        return [0.0, 1.0, 2.0]

    def exits(self, table: ExitTable, knob: float) -> Tensor:
        position_N = torch.arange(len(table.labels_N)) / len(table.labels_N)
        return torch.where(position_N < min(knob, 2 - knob), 3, 1 if knob <= 1 else 2)


def test_of_several_ways_to_a_cost_the_more_accurate_is_taken() -> None:
    right_NK = torch.tensor([[False, True, True]]).expand(1000, 3)
    table = table_of(torch.full((1000, 3), 0.7), right_NK, COST_K, seed=0)
    result = at_costs(ThereAndBack(), table, table, [0.7])[0]
    assert result is not None
    assert len(result.settings) == 1
    assert result.settings[0][0] == pytest.approx(1.6, abs=0.01)
    assert result.test.accuracy == 1
