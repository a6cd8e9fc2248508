"""Overload: how hard it presses, and the λ at which frames run whose callers would rather have a cheaper answer than none."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

PRESSURE_FROM = 0.5
"""Share of `max_in_flight` up to which there is no overload."""
HEADROOM = 0.25
"""Share of `max_in_flight` by which frames that may be degraded may exceed it, so that refused ones don't crowd them out."""


def pressure(in_flight: int, max_in_flight: int) -> float:
    """From 0, while half of the places are free, to 1, when none is."""
    start = PRESSURE_FROM * max_in_flight
    return min(max((in_flight - start) / (max_in_flight - start), 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class PriceTable:
    """λ against the mean cost that a model's calibration frames had at it: the way from accurate to cheap.

    Built by `price_table`. `lambdas` ascend strictly and `costs`, over the full network's MACs, fall strictly.
    """

    lambdas: tuple[float, ...] = ()
    costs: tuple[float, ...] = ()

    def raise_lambda(self, lambda_: float, pressure: float) -> float:
        """λ under a pressure in [0, 1]: the mean cost goes in equal steps from that of `lambda_` to the least of the table.

        Never below `lambda_`, never above the larger of it and the table's last; rises with the pressure; `lambda_` itself
        at pressure 0, beyond the table, and where there is no table.
        """
        if pressure <= 0 or not self.lambdas or lambda_ >= self.lambdas[-1]:
            return lambda_
        cost = self._cost(lambda_)
        wanted = cost + pressure * (self.costs[-1] - cost)
        return min(max(self._lambda(wanted), lambda_), self.lambdas[-1])

    def _cost(self, lambda_: float) -> float:
        if lambda_ <= self.lambdas[0]:
            return self.costs[0]
        upper = bisect_right(self.lambdas, lambda_)
        return _between(lambda_, self.lambdas[upper - 1 : upper + 1], self.costs[upper - 1 : upper + 1])

    def _lambda(self, cost: float) -> float:
        for index, (high, low) in enumerate(pairwise(self.costs)):
            if cost >= low:
                return _between(cost, (high, low), self.lambdas[index : index + 2])
        return self.lambdas[-1]


def price_table(points: Iterable[tuple[float, float]]) -> PriceTable:
    """A table from measured (λ, mean cost), in any order; a point that is no cheaper than one at a smaller λ is left out."""
    lambdas, costs = list[float](), list[float]()
    for lambda_, cost in sorted(points):
        if not costs or (cost < costs[-1] and lambda_ > lambdas[-1]):
            lambdas.append(lambda_)
            costs.append(cost)
    return PriceTable(tuple(lambdas), tuple(costs))


def _between(x: float, xs: tuple[float, ...], ys: tuple[float, ...]) -> float:
    return ys[0] + (x - xs[0]) / (xs[1] - xs[0]) * (ys[1] - ys[0])
