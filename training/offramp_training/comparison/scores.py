"""Learned exit scores with quantile thresholds, after EENet (Ilhan et al. 2024, arXiv 2301.07099)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp_training.comparison.fitting import Fitting, minimise, small_network
from offramp_training.comparison.inputs import ExitInputs
from offramp_training.comparison.rules import first_exit
from offramp_training.comparison.table import ExitTable


class LearnedScores:
    """Leave at exit k where a learned score reaches the exit's threshold; the knob is the mean cost aimed at.

    As in EENet, a small network an exit scores the chance that its guess is right, from the class probabilities, measures of
    confidence and the scores of earlier exits; thresholds are the quantiles of the scores that send the wanted share of the
    frames out at each exit. Simplified: the shares come from EENet's one-parameter family, proportional to ρ^k with ρ set by
    the mean cost, rather than from a second network trained jointly for each budget; so frames weigh the same in the scores'
    loss. The scores see what the other learned rules see, through a hidden layer where EENet's are linear.
    """

    name = "Learned scores (EENet)"
    continuous = True

    def __init__(self, fit: ExitTable, select: ExitTable, seed: int, config: Fitting | None = None) -> None:
        config = config or Fitting()
        generator = torch.Generator().manual_seed(seed)
        self._inputs = ExitInputs(fit)
        self._networks: list[nn.Sequential] = []
        earlier_NE = torch.empty(len(fit.labels_N), 0)
        for inputs_NS, right_N in zip(self._inputs(fit)[:-1], fit.right.float().T, strict=False):
            seen_NS = torch.cat([inputs_NS, earlier_NE], 1)
            network = small_network(seen_NS.shape[1], 1, config, generator)
            minimise(_loss(network, seen_NS, right_N), len(right_N), [network], config, generator)
            self._networks.append(network)
            earlier_NE = torch.cat([earlier_NE, torch.sigmoid(network(seen_NS))], 1)
        self._select_NE = self.scores(select)
        self._cost_K = fit.cost_K

    def scores(self, table: ExitTable) -> Tensor:
        """Chance that each exit but the last is right, shape (N, K−1)."""
        score_NE = torch.empty(len(table.labels_N), 0)
        for network, inputs_NS in zip(self._networks, self._inputs(table), strict=False):
            score_NE = torch.cat([score_NE, torch.sigmoid(network(torch.cat([inputs_NS, score_NE], 1)))], 1)
        return score_NE

    def knobs(self, select: ExitTable) -> list[float]:
        """Mean costs from exit 1's to exit K's."""
        return torch.linspace(float(self._cost_K[0]), float(self._cost_K[-1]), 33, dtype=torch.double).tolist()

    def exits(self, table: ExitTable, knob: float) -> Tensor:
        """Exits under the thresholds that give the mean cost on the select part, shape (N,)."""
        share_K = geometric_shares(self._cost_K, knob)
        return first_exit(self.scores(table) >= quantile_thresholds(self._select_NE, share_K))


def _loss(network: nn.Sequential, inputs_NS: Tensor, right_N: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda rows_N: F.binary_cross_entropy_with_logits(network(inputs_NS[rows_N]).squeeze(1), right_N[rows_N])


def geometric_shares(cost_K: Tensor, mean_cost: float) -> Tensor:
    """Shares of the frames at each exit, proportional to ρ^k, whose mean cost is the given one, shape (K,).

    Everyone at the first or the last exit where the cost lies outside theirs.
    """
    k_K = torch.arange(len(cost_K), dtype=torch.double)
    low, high = -50.0, 50.0  # log ρ; the mean cost rises with it
    for _ in range(60):
        middle = (low + high) / 2
        if float(torch.softmax(middle * k_K, 0) @ cost_K) < mean_cost:
            low = middle
        else:
            high = middle
    return torch.softmax((low + high) / 2 * k_K, 0)


def quantile_thresholds(score_NE: Tensor, share_K: Tensor) -> Tensor:
    """Thresholds that send these shares of the frames out at each exit, those with the highest scores first, shape (K−1,)."""
    frames, exits = len(score_NE), len(share_K)
    gone = 0
    thresholds = torch.full((exits - 1,), torch.inf)
    for k, reached in enumerate((share_K.cumsum(0)[:-1] * frames).round().long().tolist()):
        descending_N = score_NE[:, k].sort(descending=True).values
        if reached > gone:
            thresholds[k] = descending_N[reached - gone - 1]
            stays_N = score_NE[:, k] < thresholds[k]
            score_NE = score_NE[stays_N]
            gone = frames - len(score_NE)
    return thresholds
