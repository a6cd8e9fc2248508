"""Outcomes: the look-up by cost, and a certificate that is held against exact arithmetic and against its own promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from offramp_model.outcomes import Frontier, FrontierPoint, UnreachableError, lambda_for_cost, lambda_for_drop, upper_limit


def frontier(costs: list[float] | None = None, losses: list[int] | None = None, frames: int = 100) -> Frontier:
    """λ = 0, 1, 2, … with these costs or these losses."""
    length = len(costs or losses or [])
    rows = zip(costs or [0.5] * length, losses or [0] * length, strict=True)
    return Frontier(
        points=tuple(
            FrontierPoint(lambda_=index, mean_cost=cost, accuracy=0.5, exit_fractions=(0.5, 0.5), losses=lost)
            for index, (cost, lost) in enumerate(rows)
        ),
        frames=frames,
    )


def exact_tail(frames: int, losses: int, risk: float) -> float:
    """P[Bin(frames, risk) ≤ losses], in whole numbers and rounded once."""
    lost, of = risk.as_integer_ratio()
    ways = sum(math.comb(frames, k) * lost**k * (of - lost) ** (losses - k) for k in range(losses + 1))
    return ways * (of - lost) ** (frames - losses) / of**frames


def sought(find: Callable[..., float], *arguments: Any) -> float | UnreachableError:
    try:
        return find(*arguments)
    except UnreachableError as error:
        return error


# --- the format -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"points": ()}, "at least 1 item"),
        ({"frames": 0}, "greater than 0"),
        ({"frames": 4}, "more than its 4 frames"),
        ({"lambdas": (0.1, 1.0)}, "begins at lambda 0"),
        ({"lambdas": (0.0, 0.0)}, "strictly ascending"),
        ({"lambdas": (0.0, math.inf)}, "finite"),
        ({"lambdas": (0.0, math.nan)}, "finite"),
        ({"lambdas": (0.0, -1.0)}, "greater than or equal to 0"),
    ],
)
def test_a_malformed_frontier_is_refused(change: dict[str, Any], reason: str) -> None:
    lambdas = change.pop("lambdas", (0.0, 1.0))
    point = {"mean_cost": 0.5, "accuracy": 0.9, "exit_fractions": (1.0,), "losses": 5}
    fields = {"points": [point | {"lambda_": value} for value in lambdas], "frames": 10} | change
    with pytest.raises(ValidationError, match=reason):
        Frontier.model_validate(fields)


def test_a_frontier_comes_back_from_json() -> None:
    made = frontier(losses=[1, 2, 3])
    assert Frontier.model_validate_json(made.model_dump_json()) == made


# --- mean cost --------------------------------------------------------------------------------------------------------


def test_the_smallest_affordable_lambda_is_found() -> None:
    table = frontier(costs=[0.9, 0.6, 0.4, 0.3])
    assert [lambda_for_cost(table, budget) for budget in (2.0, 0.9, 0.89, 0.6, 0.5, 0.3)] == [0, 0, 1, 1, 2, 3]


def test_where_cost_rises_again_only_what_stays_affordable_counts() -> None:
    table = frontier(costs=[0.9, 0.4, 0.6, 0.3])
    assert [lambda_for_cost(table, budget) for budget in (0.6, 0.5, 0.35)] == [1, 3, 3]


costs = st.lists(st.floats(0.2, 1.1), min_size=1, max_size=8)


@given(costs, st.floats(0.1, 1.2))
def test_what_is_found_is_affordable_from_there_on_and_the_refusal_names_what_is(given_costs: list[float], budget: float) -> None:
    table = frontier(costs=given_costs)
    found = sought(lambda_for_cost, table, budget)
    if isinstance(found, UnreachableError):
        assert budget < found.nearest
        assert lambda_for_cost(table, found.nearest) <= len(given_costs) - 1
        return
    assert all(point.mean_cost <= budget for point in table.points if point.lambda_ >= found)
    assert found == 0 or table.points[int(found) - 1].mean_cost > budget


@given(costs, st.floats(0.1, 1.2), st.floats(0.1, 1.2))
def test_a_larger_budget_never_raises_lambda(given_costs: list[float], one: float, other: float) -> None:
    table = frontier(costs=given_costs)
    lean = sought(lambda_for_cost, table, min(one, other))
    assert isinstance(lean, UnreachableError) or lambda_for_cost(table, max(one, other)) <= lean


# --- accuracy drop ----------------------------------------------------------------------------------------------------

counts = st.lists(st.integers(0, 30), min_size=1, max_size=8)
drops = st.floats(0.001, 0.999)
confidences = st.floats(0.01, 0.999)
NEARLY = 1e-9


@given(counts, st.integers(30, 200), drops, confidences)
def test_the_certificate_is_the_exact_binomial_tail(losses: list[int], frames: int, drop: float, confidence: float) -> None:
    table, refusal = frontier(losses=losses, frames=frames), 1 - confidence
    found = sought(lambda_for_drop, table, drop, confidence)
    if isinstance(found, UnreachableError):
        assert exact_tail(frames, losses[0], drop) > refusal * (1 - NEARLY)
        assert found.nearest >= drop
        assert found.nearest == 1 or lambda_for_drop(table, found.nearest, confidence) >= 0
        return
    certified = int(found) + 1
    assert all(exact_tail(frames, lost, drop) <= refusal * (1 + NEARLY) for lost in losses[:certified])
    assert all(exact_tail(frames, lost, drop) > refusal * (1 - NEARLY) for lost in losses[certified : certified + 1])


def test_a_failure_ends_the_sequence_even_where_a_later_lambda_would_pass() -> None:
    assert lambda_for_drop(frontier(losses=[0, 0, 90, 0]), 0.1, 0.95) == 1


@given(counts, drops, drops, confidences, confidences)
def test_asking_for_less_never_lowers_lambda(losses: list[int], drop: float, drop2: float, sure: float, sure2: float) -> None:
    table = frontier(losses=losses)
    strict = sought(lambda_for_drop, table, min(drop, drop2), max(sure, sure2))
    assert isinstance(strict, UnreachableError) or lambda_for_drop(table, max(drop, drop2), min(sure, sure2)) >= strict


def test_lambda_zero_may_lose_frames_and_then_bounds_what_can_be_promised() -> None:
    table = frontier(losses=[30, 60], frames=1000)
    with pytest.raises(UnreachableError) as caught:
        lambda_for_drop(table, 0.035, 0.95)
    assert caught.value.nearest == pytest.approx(0.040472237, rel=1e-8)  # the beta quantile at 31 and 970
    assert lambda_for_drop(table, 0.0407, 0.95) == 0
    with pytest.raises(UnreachableError) as caught:
        lambda_for_drop(frontier(losses=[100]), 0.99, 0.95)
    assert caught.value.nearest == 1


@given(st.integers(1, 120), st.data(), confidences)
def test_the_upper_limit_is_where_the_tail_meets_the_level(frames: int, data: st.DataObject, confidence: float) -> None:
    losses = data.draw(st.integers(0, frames - 1))
    limit = upper_limit(frames, losses, confidence)
    refusal = 1 - confidence
    assert exact_tail(frames, losses, limit) <= refusal * (1 + NEARLY)
    assert exact_tail(frames, losses, limit * (1 - 1e-6)) > refusal


def test_no_losses_at_all_have_a_closed_form() -> None:
    assert upper_limit(10_000, 0, 0.95) == pytest.approx(1 - 0.05 ** (1 / 10_000), rel=1e-8)


def test_ten_thousand_frames_are_exact_too() -> None:
    limit = upper_limit(10_000, 137, 0.99)
    assert exact_tail(10_000, 137, limit) == pytest.approx(0.01, rel=1e-6)


def test_the_promise_is_kept_as_often_as_it_says() -> None:
    """The largest λ of true risk below 0.1 is the third; certify over and over on fresh frames, count the broken promises."""
    frames, draws, confidence, drop = 200, 2000, 0.9, 0.1
    risks = np.array([0.05, 0.08, 0.0999, 0.1001, 0.12, 0.2])
    random = np.random.default_rng(7)
    broken = 0
    for _ in range(draws):
        lost_at = random.random(frames)[:, None] < risks  # nested, as one frame at several λ is
        found = sought(lambda_for_drop, frontier(losses=lost_at.sum(0).tolist(), frames=frames), drop, confidence)
        broken += not isinstance(found, UnreachableError) and risks[int(found)] > drop
    allowed = 1 - confidence
    assert broken / draws <= allowed + 3 * math.sqrt(allowed * confidence / draws)
    assert broken / draws > allowed / 3  # nor is it bought by never certifying


def test_the_promise_holds_where_losses_are_not_nested() -> None:
    frames, draws, confidence, drop = 200, 1000, 0.9, 0.1
    risks = np.array([0.04, *[0.1001] * 5])  # testing each for itself would break four promises in ten
    random = np.random.default_rng(8)
    broken = 0
    for losses in random.binomial(frames, risks, (draws, len(risks))):
        found = sought(lambda_for_drop, frontier(losses=losses.tolist(), frames=frames), drop, confidence)
        broken += not isinstance(found, UnreachableError) and risks[int(found)] > drop
    assert broken / draws <= 1 - confidence + 3 * math.sqrt((1 - confidence) * confidence / draws)
