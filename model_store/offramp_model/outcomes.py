"""Outcomes in place of λ: the frontier that a bundle carries, and the λ that a wanted mean cost or accuracy drop calls for.

Derivation and limits: docs/outcomes.md. Learn-then-test: Angelopoulos et al. 2021 (arXiv 2110.01052), fixed-sequence testing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice, pairwise, takewhile
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

DEFAULT_CONFIDENCE = 0.95

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]


class UnreachableError(Exception):
    """No λ of the frontier gives the outcome; `nearest` is the value nearest to it that one does give."""

    def __init__(self, nearest: float) -> None:
        super().__init__(f"no λ reaches this: the nearest feasible value is {nearest:g}")
        self.nearest = nearest


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FrontierPoint(_Part):
    """What one λ gave on the calibration frames."""

    lambda_: NonNegative
    mean_cost: NonNegative
    """Over the full network's MACs."""
    accuracy: Fraction
    exit_fractions: tuple[Fraction, ...]
    """Share of frames that left at each exit, from the first."""
    losses: NonNegativeInt
    """Frames on which the plain full network is right and the answer at this λ is wrong."""


class Frontier(_Part):
    """What the default control's router gives over λ, on calibration frames that had no part in making model or grid."""

    points: Annotated[tuple[FrontierPoint, ...], Field(min_length=1)]
    """From λ = 0 upwards."""
    frames: PositiveInt
    """Number of calibration frames."""

    @model_validator(mode="after")
    def _consistent(self) -> Frontier:
        if self.points[0].lambda_ != 0:
            raise ValueError("a frontier begins at lambda 0")
        if any(upper.lambda_ <= lower.lambda_ for lower, upper in pairwise(self.points)):
            raise ValueError("a frontier's lambdas must be strictly ascending")
        if any(point.losses > self.frames for point in self.points):
            raise ValueError(f"a frontier can't lose more than its {self.frames} frames")
        return self


def lambda_for_cost(frontier: Frontier, max_mean_cost: float) -> float:
    """The smallest λ from which on every point's mean cost is within `max_mean_cost` (a fraction of the full network's MACs).

    Raises UnreachableError where the largest λ costs more.
    """
    affordable = list(takewhile(lambda point: point.mean_cost <= max_mean_cost, reversed(frontier.points)))
    if not affordable:
        raise UnreachableError(frontier.points[-1].mean_cost)
    return affordable[-1].lambda_


def lambda_for_drop(frontier: Frontier, max_accuracy_drop: float, confidence: float = DEFAULT_CONFIDENCE) -> float:
    """The largest λ certified to lose at most `max_accuracy_drop` of accuracy against the plain full network.

    λ is certified while P[Bin(n, max_accuracy_drop) ≤ losses] ≤ 1 − confidence for it and for every smaller λ. Both arguments
    lie in (0, 1). Raises UnreachableError with the least drop that can be certified at this confidence, where λ = 0 fails.
    """
    losses = [point.losses for point in frontier.points]
    allowed = _allowed_losses(frontier.frames, max(losses), max_accuracy_drop, confidence)
    certified = list(takewhile(lambda point: point.losses <= allowed, frontier.points))
    if not certified:
        raise UnreachableError(upper_limit(frontier.frames, losses[0], confidence))
    return certified[-1].lambda_


def upper_limit(frames: int, losses: int, confidence: float) -> float:
    """Clopper–Pearson: the least risk that `losses` in `frames` certify at `confidence`, never under it and at most a billionth
    part over it; 1 where every frame is lost."""
    low, high = 0.0, 1.0
    while losses < frames and high - low > 1e-9 * high:
        middle = (low + high) / 2
        if _allowed_losses(frames, losses, middle, confidence) == losses:
            high = middle
        else:
            low = middle
    return high


def _allowed_losses(frames: int, most: int, risk: float, confidence: float) -> int:
    """The largest number of losses, at most `most`, of which P[Bin(frames, risk) ≤ losses] ≤ 1 − confidence; −1 for none."""
    tails = islice(_tails(frames, risk), most + 1)
    return sum(1 for _ in takewhile(lambda tail: tail <= 1 - confidence, tails)) - 1


def _tails(frames: int, risk: float) -> Iterator[float]:
    """P[Bin(frames, risk) ≤ losses] for losses = 0, 1, …, frames; each term in log space, since its factors overflow."""
    log_win, log_odds, log_orders = math.log1p(-risk), math.log(risk) - math.log1p(-risk), math.lgamma(frames + 1)
    tail = 0.0
    for losses in range(frames + 1):
        log_ways = log_orders - math.lgamma(losses + 1) - math.lgamma(frames - losses + 1)
        tail += math.exp(log_ways + frames * log_win + losses * log_odds)
        yield tail
