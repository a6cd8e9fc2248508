"""The maths of routing as pure functions on tensors, shared by training and serving.

Equation numbers are the paper's. N frames, K exits, L grid values of λ; exits count from 1 outside tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp_model.network import NetworkConfig


class Policy(IntEnum):
    """How exits are chosen; the numbers are the wire's."""

    ROUTER = 1
    ENTROPY = 2
    CONFIDENCE = 3
    FIXED = 4


class ExitReason(IntEnum):
    """Why a frame left where it did; the numbers are the wire's."""

    POLICY = 1
    LAST_EXIT = 2
    MAX_EXIT = 3
    MAX_COST = 4
    DEADLINE = 5


# --- the E-step and its targets ---------------------------------------------------------------------------------------


def posterior(log_likelihood_NK: Tensor, log_prior_NK: Tensor, lambda_: Tensor | float, cost_K: Tensor) -> Tensor:
    """E-step in log space (equation 2): r_k = softmax_k(log p(y|x,z=k) + log p(z=k|x) − λ c_k), shape (…, K).

    `lambda_` is a number, or a tensor whose shape broadcasts against (…, K), such as (L, 1, 1) for a whole grid.
    """
    return torch.softmax(log_likelihood_NK + log_prior_NK - lambda_ * cost_K, dim=-1)


def survival(posterior_NK: Tensor) -> Tensor:
    """R_k = Σ_{j≥k} r_j: the posterior mass that reaches exit k, shape (…, K)."""
    return posterior_NK.flip(-1).cumsum(-1).flip(-1)


def halting_targets(posterior_NK: Tensor) -> Tensor:
    """Stick-breaking targets t_k = r_k / Σ_{j≥k} r_j of every router (section 4.4), shape (…, K−1).

    Where no mass is left to divide, any target is right, since its exact weight is zero; 1 is given there.
    """
    reaching = survival(posterior_NK)[..., :-1]
    tiny = torch.finfo(posterior_NK.dtype).tiny
    return torch.where(reaching > tiny, posterior_NK[..., :-1] / reaching.clamp_min(tiny), 1.0).clamp(0, 1)


def log_exit_distribution(halting_logits: Tensor) -> Tensor:
    """log π_k of the sequential process: leave at k with σ(s_k), given that no earlier exit was taken.

    Halting logits (…, K−1) → log-probabilities (…, K), which sum to one over exits.
    """
    stay = F.logsigmoid(-halting_logits).cumsum(-1)
    zero = torch.zeros_like(halting_logits[..., :1])
    return torch.cat([F.logsigmoid(halting_logits), zero], -1) + torch.cat([zero, stay], -1)


def halting_logits(log_distribution: Tensor) -> Tensor:
    """Inverse of `log_exit_distribution`: s_k = log π_k − log Σ_{j>k} π_j, shape (…, K−1)."""
    beyond = log_distribution.flip(-1).logcumsumexp(-1).flip(-1)
    return log_distribution[..., :-1] - beyond[..., 1:]


def evidence(log_likelihood_NK: Tensor, log_prior_NK: Tensor, lambda_: Tensor | float, cost_K: Tensor) -> Tensor:
    """log Σ_k π_k(x) p(y|x,z=k) e^{−λ c_k} in nats, shape (…): what EM climbs, summed over frames."""
    return torch.logsumexp(log_likelihood_NK + log_prior_NK - lambda_ * cost_K, dim=-1)


# --- scores and the halting rule --------------------------------------------------------------------------------------


def interpolate_router_logits(router_logits_NL: Tensor, grid_L: Tensor, lambda_N: Tensor, cost_step: float) -> Tensor:
    """Halting logit of each frame at its own λ ≥ 0, from the logits of the two neighbouring routers of the grid.

    Linear in λ between neighbours; below the grid the first router holds. Above it the logit rises from the last router's
    with slope `cost_step` = c_{k+1} − c_k, which is the least slope of the E-step's own logit there, so that a very
    large λ sends every frame out at exit 1 (section 5.5). Returns shape (N,).
    """
    lambda_N = lambda_N.to(router_logits_NL.dtype)
    inside_N = lambda_N.clamp(grid_L[0], grid_L[-1])
    if len(grid_L) == 1:
        logit_N = router_logits_NL[:, 0]
    else:
        upper_N = torch.searchsorted(grid_L, inside_N).clamp(1, len(grid_L) - 1)
        low_N, high_N = grid_L[upper_N - 1], grid_L[upper_N]
        weight_N = (inside_N - low_N) / (high_N - low_N)
        pair_N2 = router_logits_NL.gather(1, torch.stack([upper_N - 1, upper_N], 1))
        logit_N = torch.lerp(pair_N2[:, 0], pair_N2[:, 1], weight_N)
    return logit_N + (lambda_N - grid_L[-1]).clamp_min(0) * cost_step


def forecast_halting_logit(utility_NJ: Tensor, lambda_N: Tensor, cost_J: Tensor, temperature: float) -> Tensor:
    """The E-step's halting logit with each exit's likelihood replaced by its forecast utility, and a uniform prior.

    s_k(λ) = (m_kk − λ c_k)/τ_s − log Σ_{j>k} exp((m_kj − λ c_j)/τ_s), shape (N,), from utilities m_kj and costs c_j of the
    exits j = k…K. It never falls as λ rises, since ds_k/dλ = (Σ_{j>k} w_j c_j − c_k)/τ_s with weights w that sum to one.
    """
    beyond_NJ = utility_NJ[:, 1:] - lambda_N.to(utility_NJ.dtype)[:, None] * (cost_J[1:] - cost_J[0])
    return utility_NJ[:, 0] / temperature - (beyond_NJ / temperature).logsumexp(-1)


class HaltingRule(Protocol):
    """How an exit's router output and a frame's λ give its halting logit."""

    @property
    def cost_K(self) -> Tensor:  # noqa: N802  # a tensor's name carries its shape
        """Cost ratio of every exit."""
        ...

    def logit(self, exit: int, router_output: Tensor, lambda_N: Tensor) -> Tensor:
        """s_k of each frame, shape (N,)."""
        ...


@dataclass(frozen=True, slots=True)
class BankRule:
    """Interpolates between the two routers of the grid that are next to a frame's λ."""

    cost_K: Tensor
    grid_L: Tensor

    def logit(self, exit: int, router_output: Tensor, lambda_N: Tensor) -> Tensor:
        """s_k of each frame, shape (N,), from halting logits of shape (N, L)."""
        step = float(self.cost_K[exit] - self.cost_K[exit - 1])
        return interpolate_router_logits(router_output, self.grid_L, lambda_N, step)


@dataclass(frozen=True, slots=True)
class ForecastRule:
    """Puts each frame's λ into the closed form."""

    cost_K: Tensor
    temperature: float

    def logit(self, exit: int, router_output: Tensor, lambda_N: Tensor) -> Tensor:
        """s_k of each frame, shape (N,), from utilities of shape (N, K − k + 1)."""
        return forecast_halting_logit(router_output, lambda_N, self.cost_K[exit - 1 :], self.temperature)


def halting_rule(config: NetworkConfig, costs: Sequence[float], device: torch.device | str = "cpu") -> HaltingRule:
    """The rule of a network whose exits have these cost ratios."""
    cost_K = torch.tensor(costs, device=device)
    if config.router_temperature is not None:
        return ForecastRule(cost_K, config.router_temperature)
    return BankRule(cost_K, torch.tensor(config.router_lambdas, device=device))


def normalised_entropy(probabilities_NC: Tensor) -> Tensor:
    """Shannon entropy over ln(classes), in [0, 1], shape (N,); BranchyNet's score."""
    entropy_N: Tensor = torch.special.entr(probabilities_NC).sum(-1)
    return entropy_N / math.log(max(probabilities_NC.shape[-1], 2))


def confidence(probabilities_NC: Tensor) -> Tensor:
    """The largest class probability, shape (N,)."""
    return probabilities_NC.amax(-1)


def halts(policy_N: Tensor, threshold_N: Tensor, halting_N: Tensor, entropy_N: Tensor, confidence_N: Tensor) -> Tensor:
    """Which frames their own policy lets go here: σ(s_k) ≥ τ, entropy ≤ τ, or confidence ≥ τ; `fixed` never. Bool, (N,)."""
    return (
        ((policy_N == Policy.ROUTER) & (halting_N >= threshold_N))
        | ((policy_N == Policy.ENTROPY) & (entropy_N <= threshold_N))
        | ((policy_N == Policy.CONFIDENCE) & (confidence_N >= threshold_N))
    )


@dataclass(frozen=True, slots=True)
class Controls:
    """The resolved controls of N frames as tensors, one row a frame."""

    policy_N: Tensor
    lambda_N: Tensor
    threshold_NE: Tensor
    """One threshold for each exit but the last, shape (N, K−1)."""
    min_exit_N: Tensor
    max_exit_N: Tensor


@dataclass(frozen=True, slots=True)
class Decision:
    """What exit k decides about N frames: who leaves, class probabilities, and σ(s_k) (1 at the last exit)."""

    leaves_N: Tensor
    by_policy_N: Tensor
    probabilities_NC: Tensor
    halting_N: Tensor


def decide(exit: int, logits_NC: Tensor, router_output: Tensor | None, controls: Controls, rule: HaltingRule) -> Decision:
    """Decide row by row at exit k; nothing in a row depends on any other row.

    A frame leaves where its policy says so at or after its min_exit, at its max_exit, and at the last exit.
    """
    probabilities_NC = torch.softmax(logits_NC.float(), -1)
    everyone = torch.ones(len(logits_NC), dtype=torch.bool, device=logits_NC.device)
    if exit == len(rule.cost_K):
        return Decision(everyone, ~everyone, probabilities_NC, everyone.float())
    if router_output is None:
        halting_N = torch.zeros_like(probabilities_NC[:, 0])
    else:
        halting_N = torch.sigmoid(rule.logit(exit, router_output.float(), controls.lambda_N))
    by_policy_N = (exit >= controls.min_exit_N) & halts(
        controls.policy_N,
        controls.threshold_NE[:, exit - 1],
        halting_N,
        normalised_entropy(probabilities_NC),
        confidence(probabilities_NC),
    )
    return Decision(by_policy_N | (exit >= controls.max_exit_N), by_policy_N, probabilities_NC, halting_N)
