"""The exit as a latent variable (paper, section 4): posterior, targets and objective, as pure functions on torch's tensors.

Equation numbers are the paper's. N frames, K exits, L grid values of λ; exits count from 1 outside tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
