"""A router conditioned on λ by FiLM (Perez et al. 2018, arXiv 1709.07871), trained for every λ at once as YOTO is (ICLR 2020)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from offramp_model.latent import halting_targets, posterior, survival
from offramp_training.comparison.fitting import Fitting, draw_prices, lambda_grid, minimise, price_position, small_network
from offramp_training.comparison.inputs import ExitInputs
from offramp_training.comparison.rules import first_exit
from offramp_training.comparison.table import ExitTable
from offramp_training.utilities import SPAN, log_likelihoods


class FilmNetwork(nn.Module):
    """A two-layer MLP whose hidden layer is scaled and shifted by a small network of λ; gives zeros at first."""

    def __init__(self, inputs: int, config: Fitting, generator: Generator) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(inputs, config.hidden), nn.Linear(config.hidden, 1)
        self.modulation = small_network(1, 2 * config.hidden, config, generator)
        nn.init.kaiming_uniform_(self.hidden.weight, nonlinearity="relu", generator=generator)
        for parameter in (self.hidden.bias, self.output.weight, self.output.bias):
            nn.init.zeros_(parameter)

    def forward(self, inputs_NS: Tensor, position_N1: Tensor) -> Tensor:
        """s_k of each frame, shape (N, 1), with λ as its position in the range of prices."""
        scale_NH, shift_NH = self.modulation(position_N1).chunk(2, 1)
        logit_N1: Tensor = self.output(F.silu((1 + scale_NH) * self.hidden(inputs_NS) + shift_NH))
        return logit_N1


class FilmRouter:
    """Leave at exit k where σ(s_k) ≥ 0.5; the knob is λ, in nats for one full network's compute.

    The paper's routers imitate the E-step's posterior r_k, one network for each λ. Here one network an exit does so for all:
    λ is drawn anew for every frame in every step, evenly in its logarithm, and the loss is the exact M-step's, binary
    cross-entropy on r_k / Σ_{j≥k} r_j weighted by the survival Σ_{j≥k} r_j, with the uniform prior and likelihoods of at
    least LEAST_LIKELIHOOD. Nothing makes s_k rise with λ; it learns to.
    """

    name = "FiLM router (YOTO)"
    continuous = True

    def __init__(self, fit: ExitTable, seed: int, config: Fitting | None = None) -> None:
        config = config or Fitting(steps=800)
        generator = torch.Generator().manual_seed(seed)
        self._inputs = ExitInputs(fit)
        # at the largest, the posterior prefers exit 1 though every later exit be sure and it be wrong
        self._lambda_L = lambda_grid(fit.cost_K)[1:] * (SPAN + math.log(fit.exits))
        inputs, cost_K = self._inputs(fit)[:-1], fit.cost_K.float()
        log_likelihood_NK, uniform_K = log_likelihoods(fit.logits_NKC, fit.labels_N), torch.zeros(fit.exits)
        self._networks = [FilmNetwork(inputs_NS.shape[1], config, generator) for inputs_NS in inputs]

        def loss(rows_N: Tensor) -> Tensor:
            lambda_N1 = draw_prices(self._lambda_L, len(rows_N), generator)
            posterior_NK = posterior(log_likelihood_NK[rows_N], uniform_K, lambda_N1, cost_K)
            logits_NE = self._logits([x_NS[rows_N] for x_NS in inputs], lambda_N1)
            target_NE, weight_NE = halting_targets(posterior_NK), survival(posterior_NK)[:, :-1]
            return F.binary_cross_entropy_with_logits(logits_NE, target_NE, weight_NE, reduction="sum") / len(rows_N)

        minimise(loss, len(fit.labels_N), self._networks, config, generator)

    def _logits(self, inputs: list[Tensor], lambda_N1: Tensor) -> Tensor:
        position_N1 = price_position(self._lambda_L, lambda_N1)
        return torch.cat([network(x_NS, position_N1) for network, x_NS in zip(self._networks, inputs, strict=True)], 1)

    def halting_logits(self, table: ExitTable, lambda_: float) -> Tensor:
        """s_k of every exit but the last, shape (N, K−1)."""
        return self._logits(self._inputs(table)[:-1], torch.full((len(table.labels_N), 1), lambda_))

    def knobs(self, select: ExitTable) -> list[float]:
        """The range of λ that it was trained for."""
        return self._lambda_L.tolist()

    def exits(self, table: ExitTable, knob: float) -> Tensor:
        """Exits at λ = knob, shape (N,)."""
        return first_exit(self.halting_logits(table, knob) >= 0)
