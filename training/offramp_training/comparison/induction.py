"""Optimal stopping by backward induction, one exit at a time from the last, after Bolukbasi et al. 2017 (arXiv 1702.07811)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp_training.comparison.fitting import Fitting, lambda_grid, minimise, small_network
from offramp_training.comparison.inputs import ExitInputs
from offramp_training.comparison.rules import first_exit
from offramp_training.comparison.table import ExitTable


class BackwardInduction:
    """Leave at exit k where m_kk − λ c_k ≥ E[V_{k+1} | what exit k sees]; the knob is λ, in accuracy for one full network.

    V_{k+1} = 1[right] − λ c at the exit where the rules of exits k+1…K, fitted before exit k's, would let the frame go. Its
    expectation is that of two bounded things, for every λ of a grid at once: whether the answer will be right, and what it
    will have cost. Between two λ of the grid both are interpolated. Bolukbasi et al. learn the sign of m_kk − λ c_k − V_{k+1}
    for one λ by weighted classification; here both sides are regressed, so that one network an exit serves every λ.
    """

    name = "Backward induction"
    continuous = True

    def __init__(self, fit: ExitTable, seed: int, config: Fitting | None = None, lambda_L: Tensor | None = None) -> None:
        config = config or Fitting()
        generator = torch.Generator().manual_seed(seed)
        self._inputs = ExitInputs(fit)
        self._cost_K = fit.cost_K.float()
        self._lambda_L = lambda_grid(fit.cost_K) if lambda_L is None else lambda_L
        inputs, right_NK = self._inputs(fit), fit.right.float()
        grid = len(self._lambda_L)
        self._networks: list[nn.Sequential] = []
        right_NL = right_NK[:, -1:].expand(-1, grid)
        cost_NL = self._cost_K[-1].expand_as(right_NL)
        for k in range(fit.exits - 2, -1, -1):
            network = small_network(inputs[k].shape[1], 1 + 2 * grid, config, generator)
            target_NT = torch.cat([right_NK[:, k : k + 1], right_NL, self._share_of_cost(k, cost_NL)], 1)
            minimise(_loss(network, inputs[k], target_NT, grid), len(target_NT), [network], config, generator)
            self._networks.insert(0, network)
            now_N1, later_NL, later_cost_NL = self._forecast(k, network, inputs[k])
            stops_NL = now_N1 - self._lambda_L * self._cost_K[k] >= later_NL - self._lambda_L * later_cost_NL
            right_NL = torch.where(stops_NL, right_NK[:, k : k + 1], right_NL)
            cost_NL = torch.where(stops_NL, self._cost_K[k], cost_NL)

    def _share_of_cost(self, k: int, cost_NL: Tensor) -> Tensor:
        """Costs between those of the next exit and of the last as numbers from 0 to 1."""
        span = self._cost_K[-1] - self._cost_K[k + 1]
        return ((cost_NL - self._cost_K[k + 1]) / span.clamp_min(1e-9)).clamp(0, 1)

    def _forecast(self, k: int, network: nn.Sequential, inputs_NS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """P(right now), shape (N, 1); P(right in the end) and the mean cost then if the frame goes on, shape (N, L)."""
        grid = len(self._lambda_L)
        forecast_NT = torch.sigmoid(network(inputs_NS))
        cost_NL = torch.lerp(self._cost_K[k + 1], self._cost_K[-1], forecast_NT[:, grid + 1 :])
        return forecast_NT[:, :1], forecast_NT[:, 1 : grid + 1], cost_NL

    def knobs(self, select: ExitTable) -> list[float]:
        """The grid of λ."""
        return self._lambda_L.tolist()

    def exits(self, table: ExitTable, knob: float) -> Tensor:
        """Exits at λ = knob, shape (N,)."""
        leaves = []
        for k, (network, inputs_NS) in enumerate(zip(self._networks, self._inputs(table), strict=False)):
            now_N1, later_NL, cost_NL = self._forecast(k, network, inputs_NS)
            later_N, cost_N = (self._between(value_NL, knob) for value_NL in (later_NL, cost_NL))
            leaves.append(now_N1.squeeze(1) - knob * self._cost_K[k] >= later_N - knob * cost_N)
        return first_exit(torch.stack(leaves, 1))

    def _between(self, value_NL: Tensor, lambda_: float) -> Tensor:
        """Interpolated at λ; the nearest end outside the grid, shape (N,)."""
        grid_L = self._lambda_L
        if len(grid_L) == 1:
            return value_NL[:, 0]
        upper = int(torch.searchsorted(grid_L, lambda_).clamp(1, len(grid_L) - 1))
        weight = float(((lambda_ - grid_L[upper - 1]) / (grid_L[upper] - grid_L[upper - 1])).clamp(0, 1))
        return torch.lerp(value_NL[:, upper - 1], value_NL[:, upper], weight)


def _loss(network: nn.Sequential, inputs_NS: Tensor, target_NT: Tensor, grid: int) -> Callable[[Tensor], Tensor]:
    # the grid's two forecasts weigh as much as the one of now
    weight_T = torch.tensor([1.0] + [1 / grid] * (2 * grid))

    def loss(rows_N: Tensor) -> Tensor:
        logits_NT = network(inputs_NS[rows_N])
        return F.binary_cross_entropy_with_logits(logits_NT, target_NT[rows_N], weight_T, reduction="sum") / len(rows_N)

    return loss
