"""A halting network trained by expected loss plus cost, after ACT (arXiv 1603.08983) and PonderNet (arXiv 2107.05407)."""

from __future__ import annotations

import torch
from torch import Tensor

from offramp_model.latent import log_exit_distribution
from offramp_training.comparison.fitting import Fitting, draw_prices, lambda_grid, minimise, price_position, small_network
from offramp_training.comparison.inputs import ExitInputs
from offramp_training.comparison.rules import first_exit
from offramp_training.comparison.table import ExitTable

KL_WEIGHT = 0.1
"""β in the first step, beside losses between 0 and 1."""


class HaltingNetwork:
    """Leave at exit k where the halting probability σ(s_k) ≥ 0.5; the knob is λ, in accuracy for one full network's compute.

    The halting probabilities induce an exit distribution π by stick-breaking, as in PonderNet, and are trained end to end on
    Σ_k π_k (1[exit k is wrong] + λ c_k) + β KL(π ‖ uniform). λ prices the real cost, as ACT's ponder cost does and where
    PonderNet has a geometric prior; of that prior's pull there is left one towards the uniform, whose weight β falls to zero
    over the steps: without it halting probabilities saturate before they have learned. The expectation is over losses as in
    PonderNet, not over outputs as in ACT. One network an exit serves every λ: log λ is one of its inputs, and every frame meets
    another λ in every step.
    """

    name = "Halting network (PonderNet)"
    continuous = True

    def __init__(self, fit: ExitTable, seed: int, config: Fitting | None = None) -> None:
        config = config or Fitting(steps=800)
        generator = torch.Generator().manual_seed(seed)
        self._inputs = ExitInputs(fit)
        self._lambda_L = lambda_grid(fit.cost_K)[1:]
        inputs, wrong_NK = self._inputs(fit)[:-1], (~fit.right).float()
        cost_K = (fit.cost_K - fit.cost_K[0]).float()
        self._networks = [small_network(inputs_NS.shape[1] + 1, 1, config, generator) for inputs_NS in inputs]
        weights = iter(torch.linspace(KL_WEIGHT, 0, config.steps))

        def loss(rows_N: Tensor) -> Tensor:
            lambda_N1 = draw_prices(self._lambda_L, len(rows_N), generator)
            log_leaving_NK = log_exit_distribution(self._logits([x_NS[rows_N] for x_NS in inputs], lambda_N1))
            # each λ has an objective of its own, which no scale changes: this one evens out their sizes
            loss_NK = (wrong_NK[rows_N] + lambda_N1 * cost_K) / (1 + lambda_N1 * cost_K[-1])
            objective_N: Tensor = (log_leaving_NK.exp() * (loss_NK + next(weights) * log_leaving_NK)).sum(1)
            return objective_N.mean()

        minimise(loss, len(wrong_NK), self._networks, config, generator)

    def _logits(self, inputs: list[Tensor], lambda_N1: Tensor) -> Tensor:
        position_N1 = price_position(self._lambda_L, lambda_N1)
        return torch.cat(
            [network(torch.cat([x_NS, position_N1], 1)) for network, x_NS in zip(self._networks, inputs, strict=True)], 1
        )

    def halting_logits(self, table: ExitTable, lambda_: float) -> Tensor:
        """s_k of every exit but the last, shape (N, K−1)."""
        lambda_N1 = torch.full((len(table.labels_N), 1), lambda_)
        return self._logits(self._inputs(table)[:-1], lambda_N1)

    def knobs(self, select: ExitTable) -> list[float]:
        """The range of λ that it was trained for."""
        return self._lambda_L.tolist()

    def exits(self, table: ExitTable, knob: float) -> Tensor:
        """Exits at λ = knob, shape (N,)."""
        return first_exit(self.halting_logits(table, knob) >= 0)
