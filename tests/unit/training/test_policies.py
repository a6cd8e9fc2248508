"""Policies over many frames, mixtures of fixed exits, calibration."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp_model.bundle import Control
from offramp_model.costs import CostTable
from offramp_model.routing import BankRule
from offramp_training.calibration import expected_calibration_error, fit_temperature, quality
from offramp_training.evaluate import pick, verdict
from offramp_training.policies import (
    Frames,
    Outcome,
    area_under,
    choose_exits,
    on_hull,
    oracle,
    random_exits,
    run_policy,
    upper_hull,
)
from offramp_training.sections import EvaluateConfig

COSTS = CostTable(full_macs=1000, exit_macs=(280, 520, 760, 1000))


def make_frames() -> Frames:
    """Three frames of class 0: right from exit 1 on, right at exit 3 alone, never right."""
    right, wrong = [4.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    rows = ([right] * 4, [wrong, wrong, right, wrong], [wrong] * 4)
    logits_NKC = torch.tensor(rows)
    router_logits = [torch.tensor([[3.0, 9.0], [-3.0, 9.0], [-3.0, 9.0]]) for _ in range(3)]
    rule = BankRule(torch.tensor(COSTS.ratios), torch.tensor([0.0, 10.0]))
    return Frames(logits_NKC, router_logits, logits_NKC[:, 3], torch.zeros(3, dtype=torch.long), rule, COSTS)


def test_router_exits_and_their_outcome() -> None:
    frames = make_frames()
    assert choose_exits(frames, Control(policy="router", lambda_=0)).tolist() == [1, 4, 4]
    assert choose_exits(frames, Control(policy="router", lambda_=10)).tolist() == [1, 1, 1]
    outcome = run_policy(frames, Control(policy="router", lambda_=0))
    assert outcome.accuracy == pytest.approx(1 / 3)
    assert outcome.mean_cost == pytest.approx((0.28 + 2) / 3)
    assert outcome.nominal_cost == pytest.approx((0.25 + 2) / 3)
    assert outcome.exit_fractions == pytest.approx((1 / 3, 0, 0, 2 / 3))


def test_fixed_exits_and_heuristics() -> None:
    frames = make_frames()
    assert choose_exits(frames, Control(policy="fixed", max_exit=3)).tolist() == [3, 3, 3]
    assert choose_exits(frames, Control(policy="fixed")).tolist() == [4, 4, 4]
    assert choose_exits(frames, Control(policy="confidence", threshold=0.9)).tolist() == [1, 3, 4]
    assert choose_exits(frames, Control(policy="entropy", threshold=0.3)).tolist() == [1, 3, 4]


def test_oracle_leaves_where_it_is_first_right_and_else_at_once() -> None:
    outcome = oracle(make_frames())
    assert outcome.accuracy == pytest.approx(2 / 3)
    assert outcome.exit_fractions == pytest.approx((2 / 3, 0, 1 / 3, 0))


def test_random_routing_is_the_mean_of_the_exits() -> None:
    outcome = random_exits(make_frames())
    assert outcome.accuracy == pytest.approx((1 + 1 + 2 + 1) / 12)
    assert outcome.mean_cost == pytest.approx(0.64)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8))
def test_hull_covers_every_point_and_is_concave(hundredths: list[tuple[int, int]]) -> None:
    points = [(cost / 100, accuracy / 100) for cost, accuracy in hundredths]
    hull = upper_hull(points)
    assert set(hull) <= set(points)
    for cost, accuracy in points:
        assert on_hull(hull, cost) >= accuracy - 1e-9
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(hull)]
    assert all(early >= late - 1e-6 * abs(early) for early, late in pairwise(slopes))


def test_pick_takes_the_cheapest_that_is_good_enough_and_else_the_best() -> None:
    frames = make_frames()
    exits = [Control(policy="fixed", max_exit=exit) for exit in (1, 2, 3, 4)]
    for tolerated_loss, exit in ((0, 1), (-0.3, 3), (-0.9, 3)):  # the full network has a third
        assert pick(frames, exits, EvaluateConfig(tolerated_loss=tolerated_loss)).max_exit == exit


@pytest.mark.parametrize(("copies", "exit"), [(2, 4), (40, 3)])
def test_pick_is_as_sure_as_it_is_told_to_be(copies: int, exit: int) -> None:
    """Exit 3 is right on a third more of the frames than the full network, which six frames hardly tell and 120 do."""
    one = make_frames()
    frames = replace(
        one,
        logits_NKC=one.logits_NKC.repeat(copies, 1, 1),
        full_logits_NC=one.full_logits_NC.repeat(copies, 1),
        labels_N=one.labels_N.repeat(copies),
        router_outputs=[output.repeat(copies, 1) for output in one.router_outputs],
    )
    exits = [Control(policy="fixed", max_exit=exit) for exit in (3, 4)]
    assert pick(frames, exits, EvaluateConfig(tolerated_loss=0, confidence=0.95)).max_exit == exit


def test_verdict_names_a_collapse() -> None:
    control = Control(policy="router", lambda_=2)
    collapsed = verdict("EM routing (best)", control, Outcome(0.9, 0.76, 0.75, (0.0, 0.01, 0.99, 0.0)), 0.91)
    assert "has collapsed: it sends 99.0% of the test frames out at exit 3" in collapsed
    assert "1.00 points below the best mixture" in collapsed
    assert "spreads" in verdict("EM routing (best)", control, Outcome(0.9, 0.7, 0.7, (0.3, 0.3, 0.2, 0.2)), 0.88)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.3, 4), st.integers(0, 2**31))
def test_temperature_is_recovered_and_calibrates(temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    found = fit_temperature(logits * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.12)
    assert expected_calibration_error(logits * temperature / found, labels) < 0.05


def test_quality_of_a_perfect_and_of_a_clueless_classifier() -> None:
    labels = torch.tensor([0, 1])
    perfect = quality(torch.tensor([[50.0, 0.0], [0.0, 50.0]]), labels)
    assert (perfect.accuracy, perfect.ece) == pytest.approx((1, 0))
    clueless = quality(torch.zeros(2, 2), labels)
    assert clueless.nll == pytest.approx(0.6931, abs=1e-4)
    assert 0 < fit_temperature(torch.tensor([[50.0, 0.0], [0.0, 50.0]]), labels) <= 1


def test_area_is_the_mean_accuracy_of_the_best_mixtures_over_cost() -> None:
    assert area_under([(0.2, 0.5), (1.0, 0.9)], 0.2, 1.0) == pytest.approx(0.7)
    # a point under the line between two others changes nothing, one above it does
    assert area_under([(0.2, 0.5), (0.6, 0.6), (1.0, 0.9)], 0.2, 1.0) == pytest.approx(0.7)
    assert area_under([(0.2, 0.5), (0.6, 0.9), (1.0, 0.9)], 0.2, 1.0) == pytest.approx(0.8)
    # dearer points than the best one add nothing: who can have it more cheaply stays there
    assert area_under([(0.2, 0.5), (0.6, 0.9), (1.0, 0.8)], 0.2, 1.0) == pytest.approx(0.8)
