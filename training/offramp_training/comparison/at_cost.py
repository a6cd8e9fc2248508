"""A rule at a given mean cost: its knob chosen on the select part, what it then gives on the test part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise

from torch import Tensor

from offramp_training.comparison.rules import ExitRule
from offramp_training.comparison.table import ExitTable
from offramp_training.policies import Outcome

TOLERANCE = 0.002
"""A single setting whose mean cost lies this near to the target is good enough."""
BISECTIONS = 50


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a rule and what it gives on some frames."""

    knob: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class AtCost:
    """A rule held to a mean cost."""

    target_cost: float
    settings: tuple[tuple[float, float], ...]
    """(knob, share of the frames): one setting, or two that are mixed at random."""
    select: Outcome
    test: Outcome
    """Its mean cost is the realised one, which may differ from the target."""
    right_N: Tensor
    """Probability over the mixture that each test frame's answer is right, double precision, shape (N,)."""
    cost_N: Tensor
    """Expected cost of each test frame, shape (N,)."""


def sweep(rule: ExitRule, table: ExitTable, knobs: Sequence[float]) -> list[Point]:
    """What each setting gives, in the order of the knobs."""
    return [_point(rule, table, knob) for knob in knobs]


def at_costs(
    rule: ExitRule, select: ExitTable, test: ExitTable, targets: Sequence[float], tolerance: float = TOLERANCE
) -> list[AtCost | None]:
    """The rule at each target mean cost; None where no setting and no mixture of settings has that cost on select.

    A continuous rule is swept, then bisected wherever the sweep passes the target; where its cost jumps over the target, the
    two settings beside the jump are mixed at random. The settings of a discrete rule are mixed in pairs. Of several ways to
    the same cost the one that is most accurate on select is taken. Nothing is chosen on test.
    """
    points = sweep(rule, select, rule.knobs(select))
    return [_at_cost(rule, select, test, points, target, tolerance) for target in targets]


def _at_cost(
    rule: ExitRule, select: ExitTable, test: ExitTable, points: Sequence[Point], target: float, tolerance: float
) -> AtCost | None:
    pairs = pairwise(points) if rule.continuous else combinations_with_replacement(points, 2)
    around = [_by_cost(a, b) for a, b in pairs]
    around = [(low, high) for low, high in around if low.outcome.mean_cost <= target <= high.outcome.mean_cost]
    if rule.continuous:
        around = [_bisect(rule, select, low, high, target, tolerance) for low, high in around]
    if not around:  # the end of the range may still be near enough
        around = [(point, point) for point in points if abs(point.outcome.mean_cost - target) <= tolerance]
    ways = [_mix(low, high, target, tolerance) for low, high in around]
    if not ways:
        return None
    leaving = [_leaving(rule, select, settings) for settings in ways]
    outcomes = [select.outcome(leaving_NK) for leaving_NK in leaving]
    best = max(range(len(ways)), key=lambda way: outcomes[way].accuracy)
    leaving_NK = _leaving(rule, test, ways[best])
    return AtCost(
        target,
        ways[best],
        outcomes[best],
        test.outcome(leaving_NK),
        test.expected_right(leaving_NK),
        leaving_NK @ test.cost_K,
    )


def _point(rule: ExitRule, table: ExitTable, knob: float) -> Point:
    return Point(knob, table.outcome(table.leaving(rule.exits(table, knob))))


def _by_cost(a: Point, b: Point) -> tuple[Point, Point]:
    return (a, b) if a.outcome.mean_cost <= b.outcome.mean_cost else (b, a)


def _bisect(rule: ExitRule, select: ExitTable, low: Point, high: Point, target: float, tolerance: float) -> tuple[Point, Point]:
    """Two settings ever closer to each other, of which one costs at most the target and the other at least that."""
    for _ in range(BISECTIONS):
        if min(abs(end.outcome.mean_cost - target) for end in (low, high)) <= tolerance / 20:
            break
        middle = _point(rule, select, (low.knob + high.knob) / 2)
        if middle.outcome.mean_cost <= target:
            low = middle
        else:
            high = middle
    return low, high


def _mix(low: Point, high: Point, target: float, tolerance: float) -> tuple[tuple[float, float], ...]:
    """The nearer setting where it is near enough, else the mixture of both that has the target cost."""
    nearer = min((low, high), key=lambda end: abs(end.outcome.mean_cost - target))
    if abs(nearer.outcome.mean_cost - target) <= tolerance:
        return ((nearer.knob, 1.0),)
    share = (target - low.outcome.mean_cost) / (high.outcome.mean_cost - low.outcome.mean_cost)
    return ((low.knob, 1 - share), (high.knob, share))


def _leaving(rule: ExitRule, table: ExitTable, settings: Sequence[tuple[float, float]]) -> Tensor:
    """Each frame's distribution over exits, shape (N, K)."""
    knob, share = settings[0]
    leaving_NK = share * table.leaving(rule.exits(table, knob))
    for knob, share in settings[1:]:
        leaving_NK = leaving_NK + share * table.leaving(rule.exits(table, knob))
    return leaving_NK
