"""Rules that need no fitting."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp_training.comparison.inputs import ExitInputs
from offramp_training.comparison.rules import ConfidenceThreshold, EntropyThreshold, ExitRule, FixedExit, Patience, first_exit
from offramp_training.comparison.table import ExitTable
from tests.unit.training.comparison.tables import random_table


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([EntropyThreshold(), ConfidenceThreshold()]), st.integers(2, 5), st.integers(0, 2**31))
def test_thresholds_are_nested_and_reach_both_ends(rule: ExitRule, exits: int, seed: int) -> None:
    table = random_table(40, exits, seed)
    knobs = rule.knobs(table)
    assert knobs == sorted(set(knobs))
    exit_NT = torch.stack([rule.exits(table, knob) for knob in knobs], 1)
    steps_NT = exit_NT.diff(dim=1)
    assert bool((steps_NT <= 0).all()) if isinstance(rule, EntropyThreshold) else bool((steps_NT >= 0).all())
    assert exit_NT.amin(0).min() == 1
    assert exit_NT.float().mean(0).max() == exits
    assert exit_NT.float().mean(0).min() == 1


def test_first_exit_and_fixed_exits() -> None:
    leaves = torch.tensor([[False, True, True], [True, False, False], [False, False, False]])
    assert first_exit(leaves).tolist() == [2, 1, 4]
    table = random_table(3, 4, seed=0)
    assert [FixedExit().exits(table, knob).tolist() for knob in FixedExit().knobs(table)] == [[k] * 3 for k in (1, 2, 3, 4)]


def test_patience_counts_exits_that_agree_in_a_row() -> None:
    guesses = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 0], [2, 2, 1, 1], [0, 1, 2, 3]])
    logits_NKC = torch.nn.functional.one_hot(guesses, 4).float()
    table = ExitTable(logits_NKC, guesses[:, 0], torch.linspace(0.25, 1, 4, dtype=torch.double))
    patience = Patience()
    assert patience.knobs(table) == [1, 2, 3, 4]
    assert patience.exits(table, 1).tolist() == [1, 1, 1, 1, 1]
    assert patience.exits(table, 2).tolist() == [2, 3, 4, 2, 4]
    assert patience.exits(table, 3).tolist() == [3, 4, 4, 4, 4]
    assert patience.exits(table, 4).tolist() == [4, 4, 4, 4, 4]


def test_inputs_are_standardised_on_fit_alone() -> None:
    fit, other = random_table(400, 3, seed=0), random_table(50, 3, seed=1)
    inputs = ExitInputs(fit)
    for exit, signals_NS in enumerate(inputs(fit), start=1):
        assert signals_NS.shape == (400, 4 + 3 + 4 * (exit - 1))
        torch.testing.assert_close(signals_NS.mean(0), torch.zeros(signals_NS.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(signals_NS.std(0, correction=0), torch.ones(signals_NS.shape[1]), atol=1e-3, rtol=0)
    assert float(inputs(other)[0].mean(0).abs().max()) > 1e-3
    torch.testing.assert_close(inputs(other)[2][:7], inputs(other.rows(torch.arange(7)))[2])


def test_a_signal_that_never_changes_on_fit_does_not_blow_up_elsewhere() -> None:
    same = random_table(1, 2, seed=0).rows(torch.zeros(10, dtype=torch.long))
    assert float(ExitInputs(same)(random_table(50, 2, seed=1))[1].abs().max()) < 50


def test_names_differ() -> None:
    names = [rule.name for rule in (FixedExit(), EntropyThreshold(), ConfidenceThreshold(), Patience())]
    assert len(set(names)) == 4
