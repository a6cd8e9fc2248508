"""EM climbs: on tables with exact closed-form steps, and with neural routers on a small table."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp_model import latent
from offramp_training.em import Table, complete_log_likelihood, iterate, log_prior, objective, uniform_banks
from offramp_training.sections import RoutersConfig

COST_K = torch.tensor([0.28, 0.52, 0.76, 1.0])
LAMBDA_L = torch.tensor([0.0, 0.5, 2.0, 20.0])


def random_likelihoods(frames: int, exits: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log(torch.rand(frames, exits, generator=generator, dtype=torch.double) * 0.98 + 0.01)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(2, 5), st.integers(1, 4), st.floats(0, 20), st.integers(0, 2**31))
def test_exact_em_on_a_table_never_falls(frames: int, exits: int, cells: int, lambda_: float, seed: int) -> None:
    """Tabular routers: frames share a cell, and a cell's exact M-step is the mean posterior of its frames."""
    log_likelihood = random_likelihoods(frames, exits, seed)
    cell_N = torch.randint(cells, (frames,), generator=torch.Generator().manual_seed(seed + 1))
    members = torch.nn.functional.one_hot(cell_N, cells).double()
    cost = torch.linspace(0.25, 1, exits, dtype=torch.double)
    prior = torch.full((frames, exits), -math.log(exits), dtype=torch.double)
    objectives = []
    for _ in range(12):
        objectives.append(float(latent.evidence(log_likelihood, prior, lambda_, cost).mean()))
        posterior = latent.posterior(log_likelihood, prior, lambda_, cost)
        mean_by_cell = members.T @ posterior / members.sum(0).clamp_min(1)[:, None]
        # through the routers' logits and back, as halting probabilities would hold it
        logits = latent.halting_logits(mean_by_cell.clamp_min(1e-300).log())
        prior = latent.log_exit_distribution(logits)[cell_N]
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(objectives))


def small_table(seed: int, frames: int = 60) -> Table:
    """Exit 1 is right where the first feature is positive; deeper exits more often."""
    generator = torch.Generator().manual_seed(seed)
    pooled = [torch.randn(frames, width, generator=generator) for width in (3, 4, 5)]
    right = torch.stack([pooled[0][:, 0] > 0, pooled[1][:, 0] > -0.7, pooled[2][:, 0] > -1.2, torch.ones(frames) > 0], 1)
    return Table(pooled, torch.where(right, 0.95, 0.02).log())


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.02, 1.0]))
def test_neural_em_never_falls_even_with_an_unruly_rate(seed: int, rate: float) -> None:
    table = small_table(seed)
    banks = uniform_banks((3, 4, 5, 6), 4, len(LAMBDA_L), torch.Generator().manual_seed(seed))
    config = RoutersConfig(lambdas=tuple(LAMBDA_L.tolist()), iterations=4, m_epochs=4, rate=rate, tolerance=1e-9)
    before = objective(banks, table, LAMBDA_L, COST_K)
    for iteration in iterate(banks, table, LAMBDA_L, COST_K, config):
        assert bool((iteration.objective_L >= before - 1e-5).all()), iteration
        before = iteration.objective_L


def test_the_first_prior_is_uniform() -> None:
    banks = uniform_banks((3, 4, 5, 6), 4, 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(log_prior(banks, small_table(0).pooled).exp(), torch.full((2, 60, 4), 0.25))


def test_routers_learn_who_may_leave_and_heed_lambda() -> None:
    table = small_table(3, frames=400)
    banks = uniform_banks((3, 4, 5, 6), 8, len(LAMBDA_L), torch.Generator().manual_seed(0))
    config = RoutersConfig(lambdas=tuple(LAMBDA_L.tolist()), iterations=5, m_epochs=20, rate=0.05)
    list(iterate(banks, table, LAMBDA_L, COST_K, config))
    at_first_LN = log_prior(banks, table.pooled)[..., 0].exp().detach()
    easy_N = table.pooled[0][:, 0] > 0
    middle = at_first_LN[2]
    assert float(middle[easy_N].mean()) > 0.8
    assert float(middle[~easy_N].mean()) < 0.3
    assert bool((at_first_LN[3] > 0.9).all()), "a large λ sends everybody out at exit 1"


def test_a_lambda_that_would_fall_keeps_its_routers() -> None:
    table = small_table(5)
    banks = uniform_banks((3, 4, 5, 6), 4, len(LAMBDA_L), torch.Generator().manual_seed(0))
    config = RoutersConfig(lambdas=tuple(LAMBDA_L.tolist()), iterations=1, m_epochs=1, rate=1e4)  # leaps off the map
    before = [parameter.clone() for bank in banks for parameter in bank.parameters()]
    iteration = next(iterate(banks, table, LAMBDA_L, COST_K, config))
    kept = iteration.kept_L
    assert bool(kept.any())
    for old, new in zip(before, (p for bank in banks for p in bank.parameters()), strict=True):
        assert torch.equal(old.view(len(kept), -1)[kept], new.view(len(kept), -1)[kept])


def test_the_unweighted_m_step_is_another_one() -> None:
    table = small_table(7)
    logits = []
    for m_step in ("exact", "unweighted"):
        banks = uniform_banks((3, 4, 5, 6), 4, len(LAMBDA_L), torch.Generator().manual_seed(0))
        config = RoutersConfig(lambdas=tuple(LAMBDA_L.tolist()), iterations=2, m_epochs=15, rate=0.05, m_step=m_step)
        list(iterate(banks, table, LAMBDA_L, COST_K, config))
        logits.append(log_prior(banks, table.pooled))
    assert not torch.allclose(logits[0], logits[1], atol=0.05)


def test_a_uniform_prior_converges_to_the_mean_posterior() -> None:
    """One cell (constant features): the router can only learn the mean of the posteriors under the uniform prior."""
    log_likelihood = random_likelihoods(50, 4, 1).float()
    table = Table([torch.zeros(50, 2)] * 3, log_likelihood)
    banks = uniform_banks((2, 2, 2, 2), 4, len(LAMBDA_L), torch.Generator().manual_seed(0))
    config = RoutersConfig(
        lambdas=tuple(LAMBDA_L.tolist()), prior="uniform", iterations=8, m_epochs=25, rate=0.1, weight_decay=0, tolerance=1e-7
    )
    list(iterate(banks, table, LAMBDA_L, COST_K, config))
    uniform = torch.full((4,), -math.log(4))
    expected = latent.posterior(log_likelihood, uniform, LAMBDA_L[:, None, None], COST_K).mean(1)
    torch.testing.assert_close(log_prior(banks, table.pooled)[:, 0].exp(), expected, atol=0.01, rtol=0.05)
    posterior = latent.posterior(log_likelihood, uniform, LAMBDA_L[:, None, None], COST_K)
    assert complete_log_likelihood(banks, table.pooled, posterior).shape == (4,)
