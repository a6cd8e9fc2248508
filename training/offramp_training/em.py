"""Expectation–maximisation for the routers of a whole λ grid at once (paper, sections 4.3 and 4.4); no files here.

For each λ, EM climbs J = mean log Σ_k π_k(x) p(y|x,z=k) e^{−λ c_k}, where π is the exit distribution that the routers'
halting probabilities induce. The expected complete log-likelihood of a posterior r splits by stick-breaking into
Σ_k r_k log π_k = Σ_{k<K} R_k [t_k log σ(s_k) + (1 − t_k) log σ(−s_k)], so the exact M-step is a BCE at each router weighted
by the survival mass R_k. Gradient steps make it a generalised EM: a λ whose steps did not raise the expected complete
log-likelihood keeps its old routers, so that J never falls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp_model.latent import evidence, halting_logits, halting_targets, log_exit_distribution, posterior, survival
from offramp_model.routers import RouterBank
from offramp_training.sections import RoutersConfig


@dataclass(frozen=True, slots=True)
class Table:
    """What EM sees of N frames: standardised pooled features of every exit but the last, and log p(y|x,z=k) in nats."""

    pooled: Sequence[Tensor]
    log_likelihood_NK: Tensor


@dataclass(frozen=True, slots=True)
class Iteration:
    """State after one E- and M-step: J of every λ in nats a frame, and which λ kept their old routers."""

    number: int
    objective_L: Tensor
    kept_L: Tensor


def uniform_banks(widths: Sequence[int], hidden: int, lambdas: int, generator: torch.Generator) -> list[RouterBank]:
    """Routers of every exit but the last whose induced exit distribution is uniform: the initial p(z|x) = 1/K."""
    banks = [RouterBank(width, hidden, lambdas) for width in widths[:-1]]
    for bank in banks:
        nn.init.kaiming_uniform_(bank.hidden.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(bank.hidden.bias)
    make_uniform(banks)
    return banks


def make_uniform(banks: Sequence[RouterBank]) -> None:
    """Set the output layers so that the induced exit distribution is uniform; hidden layers stay."""
    exits = len(banks) + 1
    start = halting_logits(torch.full((exits,), -math.log(exits)))
    for bank, logit in zip(banks, start, strict=True):
        nn.init.zeros_(bank.weight_LH1)
        nn.init.constant_(bank.bias_L11, float(logit))


def log_prior(banks: Sequence[RouterBank], pooled: Sequence[Tensor]) -> Tensor:
    """log π_k(x) of every λ, shape (L, N, K)."""
    logits = [bank(features_NC) for bank, features_NC in zip(banks, pooled, strict=True)]
    return log_exit_distribution(torch.stack(logits, -1).transpose(0, 1))


def objective(banks: Sequence[RouterBank], table: Table, lambda_L: Tensor, cost_K: Tensor) -> Tensor:
    """J of every λ, in nats a frame, shape (L,)."""
    with torch.no_grad():
        return evidence(table.log_likelihood_NK, log_prior(banks, table.pooled), lambda_L[:, None, None], cost_K).mean(-1)


def iterate(
    banks: Sequence[RouterBank], table: Table, lambda_L: Tensor, cost_K: Tensor, config: RoutersConfig, first: int = 1
) -> Iterator[Iteration]:
    """Improve the routers in place, one E- and M-step each, until no λ gains more than the tolerance."""
    exits = len(cost_K)
    uniform_K = torch.full((exits,), -math.log(exits))
    before_L = objective(banks, table, lambda_L, cost_K)
    for number in range(first, config.iterations + 1):
        with torch.no_grad():
            prior = log_prior(banks, table.pooled) if config.prior == "learned" else uniform_K
            posterior_LNK = posterior(table.log_likelihood_NK, prior, lambda_L[:, None, None], cost_K)
        kept_L = _m_step(banks, table.pooled, posterior_LNK, config)
        after_L = objective(banks, table, lambda_L, cost_K)
        yield Iteration(number, after_L, kept_L)
        if float((after_L - before_L).abs().max()) < config.tolerance:
            return
        before_L = after_L


def complete_log_likelihood(banks: Sequence[RouterBank], pooled: Sequence[Tensor], posterior_LNK: Tensor) -> Tensor:
    """The part of the expected complete log-likelihood that routers can change, Σ_k r_k log π_k, shape (L,)."""
    with torch.no_grad():
        return (posterior_LNK * log_prior(banks, pooled)).sum(-1).mean(-1)


def _m_step(banks: Sequence[RouterBank], pooled: Sequence[Tensor], posterior_LNK: Tensor, config: RoutersConfig) -> Tensor:
    """Gradient steps on the soft-target BCE; returns which λ kept their old routers, shape (L,)."""
    target_LNE = halting_targets(posterior_LNK)
    weight_LNE = survival(posterior_LNK)[..., :-1] if config.m_step == "exact" else torch.ones_like(target_LNE)
    parameters = [parameter for bank in banks for parameter in bank.parameters() if parameter.requires_grad]
    old = [parameter.detach().clone() for parameter in parameters]
    before_L = complete_log_likelihood(banks, pooled, posterior_LNK)
    optimizer = torch.optim.AdamW(parameters, lr=config.rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.m_epochs, eta_min=config.rate / 10)
    for _ in range(config.m_epochs):
        optimizer.zero_grad()
        # routers of different exits and λ share no parameter, so one sum trains each of them on its own loss
        for exit, (bank, features_NC) in enumerate(zip(banks, pooled, strict=True)):
            logits_LN = bank(features_NC).T
            loss = F.binary_cross_entropy_with_logits(logits_LN, target_LNE[..., exit], weight_LNE[..., exit], reduction="sum")
            (loss / len(features_NC)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    if config.m_step == "unweighted":
        return torch.zeros(len(before_L), dtype=torch.bool)  # this wording of the M-step climbs another objective
    kept_L = complete_log_likelihood(banks, pooled, posterior_LNK) < before_L
    with torch.no_grad():
        for parameter, old_values in zip(parameters, old, strict=True):
            # every parameter of a bank is laid out λ by λ
            by_lambda = parameter.view(len(kept_L), -1)
            by_lambda[kept_L] = old_values.view(len(kept_L), -1)[kept_L]
    return kept_L
