"""The maths of routing, against direct computations and over random inputs."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from offramp_model import latent, routing
from offramp_model.routing import BankRule, Controls, ForecastRule, Policy

EXITS = st.integers(2, 5)
SEEDS = st.integers(0, 2**31)


def random_simplex(shape: tuple[int, ...], seed: int, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(spread * torch.randn(shape, generator=generator, dtype=torch.double), -1)


def uniform_controls(count: int, exits: int, policy: Policy, lambda_: float = 0.0, threshold: float = 0.5) -> Controls:
    return Controls(
        policy_N=torch.full((count,), policy),
        lambda_N=torch.tensor([lambda_] * count),
        threshold_NE=torch.full((count, exits - 1), threshold),
        min_exit_N=torch.ones(count, dtype=torch.long),
        max_exit_N=torch.full((count,), exits),
    )


@given(EXITS, SEEDS, st.floats(0, 50))
def test_posterior_is_bayes_rule_with_costs(exits: int, seed: int, lambda_: float) -> None:
    likelihood, prior = random_simplex((7, exits), seed), random_simplex((7, exits), seed + 1)
    cost = torch.linspace(0.25, 1, exits, dtype=torch.double)
    joint = likelihood * prior * torch.exp(-lambda_ * cost)
    posterior = latent.posterior(likelihood.log(), prior.log(), lambda_, cost)
    torch.testing.assert_close(posterior, joint / joint.sum(-1, keepdim=True))
    torch.testing.assert_close(posterior.sum(-1), torch.ones(7, dtype=torch.double))


def test_posterior_of_a_whole_grid_equals_one_lambda_at_a_time() -> None:
    likelihood, prior = random_simplex((7, 4), 0).log(), random_simplex((7, 4), 1).log()
    cost, grid = torch.linspace(0.25, 1, 4, dtype=torch.double), torch.tensor([0.0, 1.0, 5.0], dtype=torch.double)
    together = latent.posterior(likelihood, prior, grid[:, None, None], cost)
    for index, lambda_ in enumerate(grid):
        torch.testing.assert_close(together[index], latent.posterior(likelihood, prior, float(lambda_), cost))


@given(EXITS, SEEDS)
def test_targets_and_exit_distribution_are_inverses(exits: int, seed: int) -> None:
    posterior = random_simplex((9, exits), seed)
    logits = torch.logit(latent.halting_targets(posterior))
    torch.testing.assert_close(latent.log_exit_distribution(logits).exp(), posterior, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(latent.halting_logits(posterior.log()), logits, rtol=1e-5, atol=1e-7)


@given(EXITS, SEEDS)
def test_exit_distribution_sums_to_one(exits: int, seed: int) -> None:
    logits = 20 * torch.randn(9, exits - 1, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(latent.log_exit_distribution(logits).exp().sum(-1), torch.ones(9))


def test_targets_stay_finite_where_no_mass_is_left() -> None:
    targets = latent.halting_targets(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]))
    assert targets.tolist() == [[1, 1, 1], [0, 0, 0]]


@given(EXITS, SEEDS)
def test_survival_weighted_bce_is_the_expected_log_prior(exits: int, seed: int) -> None:
    posterior, prior = random_simplex((5, exits), seed), random_simplex((5, exits), seed + 1)
    halting = torch.sigmoid(latent.halting_logits(prior.log()))
    targets, weights = latent.halting_targets(posterior), latent.survival(posterior)[..., :-1]
    bce = weights * (targets * halting.log() + (1 - targets) * torch.log1p(-halting))
    torch.testing.assert_close(bce.sum(-1), (posterior * prior.log()).sum(-1))


@given(SEEDS, st.lists(st.floats(0, 30), min_size=1, max_size=6, unique=True), st.floats(0, 60))
def test_interpolation_hits_the_grid_and_lies_between_neighbours(seed: int, lambdas: list[float], wanted: float) -> None:
    grid = sorted(lambdas)
    logits = torch.randn(3, len(grid), generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    for index, value in enumerate(grid):
        at_grid = routing.interpolate_router_logits(logits, grid, torch.full((3,), value, dtype=torch.double), 0.24)
        torch.testing.assert_close(at_grid, logits[:, index])
    lambda_N = torch.full((3,), wanted, dtype=torch.double)
    found = routing.interpolate_router_logits(logits, grid, lambda_N, 0.24)
    if wanted <= grid[0]:
        torch.testing.assert_close(found, logits[:, 0])
    elif wanted >= grid[-1]:
        torch.testing.assert_close(found, logits[:, -1] + (wanted - grid[-1]) * 0.24)
    else:
        upper = bisect_left(grid, wanted)
        pair = logits[:, upper - 1 : upper + 1]
        assert bool(((found >= pair.amin(1) - 1e-9) & (found <= pair.amax(1) + 1e-9)).all())


def test_a_very_large_lambda_sends_everybody_out_at_the_first_exit() -> None:
    costs = (0.275, 0.517, 0.758, 1.0)
    controls = uniform_controls(50, 4, Policy.ROUTER, lambda_=1e6)
    stubborn = -30 + torch.randn(50, 3, generator=torch.Generator().manual_seed(0))  # routers that want to stay
    decision = routing.decide(1, torch.randn(50, 10), stubborn, controls, BankRule(costs, (0.0, 1.0, 20.0)))
    assert bool(decision.leaves_N.all())


def test_everybody_leaves_at_the_last_exit_and_nobody_by_policy() -> None:
    controls = uniform_controls(5, 4, Policy.FIXED)
    decision = routing.decide(4, torch.randn(5, 10), None, controls, BankRule((0.25, 0.5, 0.75, 1.0), ()))
    assert bool(decision.leaves_N.all())
    assert not bool(decision.by_policy_N.any())
    assert decision.halting_N.tolist() == [1] * 5


@pytest.mark.parametrize(
    ("policy", "threshold", "logits", "leaves"),
    [
        (Policy.CONFIDENCE, 0.9, [9.0, 0, 0], True),
        (Policy.CONFIDENCE, 0.9, [0.1, 0, 0], False),
        (Policy.ENTROPY, 0.1, [9.0, 0, 0], True),
        (Policy.ENTROPY, 0.1, [0.1, 0, 0], False),
        (Policy.FIXED, 0.5, [9.0, 0, 0], False),
    ],
)
def test_heuristic_policies(policy: Policy, threshold: float, logits: list[float], leaves: bool) -> None:
    controls = uniform_controls(1, 4, policy, threshold=threshold)
    decision = routing.decide(1, torch.tensor([logits]), None, controls, BankRule((0.25, 0.5, 0.75, 1.0), ()))
    assert bool(decision.leaves_N) is leaves


def test_min_and_max_exit_bound_the_policy() -> None:
    controls = Controls(
        policy_N=torch.tensor([Policy.CONFIDENCE, Policy.FIXED]),
        lambda_N=torch.zeros(2),
        threshold_NE=torch.full((2, 3), 0.01),
        min_exit_N=torch.tensor([2, 1]),
        max_exit_N=torch.tensor([4, 1]),
    )
    decision = routing.decide(1, torch.zeros(2, 3), None, controls, BankRule((0.25, 0.5, 0.75, 1.0), ()))
    assert decision.leaves_N.tolist() == [False, True]
    assert decision.by_policy_N.tolist() == [False, False]


@given(SEEDS, st.integers(1, 3))
def test_a_row_does_not_depend_on_its_batch_mates(seed: int, exit: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count, rule = 16, BankRule((0.275, 0.517, 0.758, 1.0), (0.0, 0.5, 2.0))
    logits, router = 3 * torch.randn(count, 10, generator=generator), 2 * torch.randn(count, 3, generator=generator)
    controls = Controls(
        policy_N=torch.randint(1, 5, (count,), generator=generator),
        lambda_N=5 * torch.rand(count, generator=generator),
        threshold_NE=torch.rand(count, 3, generator=generator),
        min_exit_N=torch.randint(1, 4, (count,), generator=generator),
        max_exit_N=torch.randint(1, 5, (count,), generator=generator),
    )
    together = routing.decide(exit, logits, router, controls, rule)
    for row in range(count):
        one = slice(row, row + 1)
        own = Controls(
            controls.policy_N[one],
            controls.lambda_N[one],
            controls.threshold_NE[one],
            controls.min_exit_N[one],
            controls.max_exit_N[one],
        )
        alone = routing.decide(exit, logits[one], router[one], own, rule)
        assert bool(alone.leaves_N[0]) == bool(together.leaves_N[row])
        assert bool(alone.by_policy_N[0]) == bool(together.by_policy_N[row])
        torch.testing.assert_close(alone.halting_N[0], together.halting_N[row])


@given(SEEDS, st.integers(1, 4), st.sampled_from([0.0, 0.3, 1e4, 1e30, math.inf]), st.booleans())
def test_numpy_and_torch_decide_alike(seed: int, exit: int, lambda_: float, forecast: bool) -> None:
    """A server decides by the one, training by the other; neither warns, which the settings would make an error."""
    generator, costs, count = torch.Generator().manual_seed(seed), (0.275, 0.517, 0.758, 1.0), 16
    rule = ForecastRule(costs, 0.03) if forecast else BankRule(costs, (0.0, 0.5, 2.0))
    width = 5 - exit if forecast else 3
    logits = 30 * torch.randn(count, 10, generator=generator)
    router = torch.rand(count, width, generator=generator) if exit < 4 else None
    controls = Controls(
        policy_N=torch.randint(1, 5, (count,), generator=generator),
        lambda_N=torch.where(torch.rand(count, generator=generator) < 0.5, lambda_, 0.1),
        threshold_NE=torch.full((count, 3), 0.5),
        min_exit_N=torch.randint(1, 4, (count,), generator=generator),
        max_exit_N=torch.randint(1, 5, (count,), generator=generator),
    )
    arrays = Controls(*(getattr(controls, field.name).numpy() for field in fields(controls)))
    theirs = routing.decide(exit, logits, router, controls, rule)
    ours = routing.decide(exit, logits.numpy(), None if router is None else router.numpy(), arrays, rule)
    np.testing.assert_allclose(ours.probabilities_NC, theirs.probabilities_NC, atol=1e-6)
    np.testing.assert_allclose(ours.halting_N, theirs.halting_N, atol=1e-5)
    clear = (theirs.halting_N - 0.5).abs() > 1e-4  # a score within rounding of its threshold may fall either way
    assert (ours.leaves_N == theirs.leaves_N.numpy())[clear.numpy()].all()


def test_entropy_is_normalised() -> None:
    probabilities = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0]])
    torch.testing.assert_close(routing.normalised_entropy(probabilities), torch.tensor([1.0, 0.0]))
    assert math.isclose(float(routing.confidence(probabilities)[0]), 0.25)


# --- forecast routers -------------------------------------------------------------------------------------------------


def forecasts(count: int, exits: int, seed: int) -> tuple[list[Tensor], ForecastRule]:
    """Random forecasts of every router, m_kj in (0, 1), over random ascending costs at a random temperature."""
    generator = torch.Generator().manual_seed(seed)
    cost = (0.05 + torch.rand(exits, generator=generator)).cumsum(0)
    utilities = [torch.rand(count, exits - exit + 1, generator=generator) for exit in range(1, exits)]
    return utilities, ForecastRule(tuple((cost / cost[-1]).tolist()), float(0.003 + torch.rand((), generator=generator)))


def exits_taken(utilities: list[Tensor], rule: ForecastRule, lambda_: float, threshold: float) -> Tensor:
    count, exits = len(utilities[0]), len(rule.costs)
    controls = uniform_controls(count, exits, Policy.ROUTER, lambda_, threshold)
    exit_N = torch.full((count,), exits)
    for exit in range(exits - 1, 0, -1):
        exit_N[routing.decide(exit, torch.zeros(count, 3), utilities[exit - 1], controls, rule).leaves_N] = exit
    return exit_N


@given(EXITS, SEEDS, st.floats(0, 5))
def test_a_forecast_logit_is_the_posteriors_with_forecasts_for_likelihoods(exits: int, seed: int, lambda_: float) -> None:
    utilities, rule = forecasts(9, exits, seed)
    lambda_N = torch.full((9,), lambda_, dtype=torch.double)  # divided by a small temperature, a rounded one would show
    for exit in range(1, exits):
        m_NJ, costs = utilities[exit - 1].double(), rule.costs[exit - 1 :]
        posterior = torch.softmax((m_NJ - lambda_ * torch.tensor(costs, dtype=torch.double)) / rule.temperature, -1)
        expected = posterior[:, 0].log() - posterior[:, 1:].sum(-1).log()
        found = routing.forecast_halting_logit(m_NJ, lambda_N, costs, rule.temperature)
        torch.testing.assert_close(found[expected.isfinite()], expected[expected.isfinite()], rtol=1e-6, atol=1e-6)


@given(EXITS, SEEDS, st.lists(st.floats(0, 20), min_size=2, max_size=6), st.floats(0.01, 1.0))
def test_with_a_forecast_router_no_frame_goes_deeper_as_lambda_rises(
    exits: int, seed: int, lambdas: list[float], threshold: float
) -> None:
    utilities, rule = forecasts(40, exits, seed)
    taken = [exits_taken(utilities, rule, lambda_, threshold) for lambda_ in sorted(lambdas)]
    for shallower, deeper in zip(taken[1:], taken, strict=False):
        assert bool((shallower <= deeper).all())
        cost_K = torch.tensor(rule.costs)
        assert float(cost_K[shallower - 1].mean()) <= float(cost_K[deeper - 1].mean()) + 1e-6


@pytest.mark.parametrize("lambda_", [1e3, 1e30, 1e300])
def test_a_huge_lambda_sends_every_frame_of_a_forecast_router_out_at_the_first_exit(lambda_: float) -> None:
    utilities, rule = forecasts(40, 4, 0)
    assert exits_taken(utilities, rule, lambda_, 0.99).tolist() == [1] * 40


def test_a_forecast_router_goes_on_where_a_deeper_exit_is_worth_its_price() -> None:
    rule = ForecastRule((0.3, 0.6, 1.0), temperature=0.01)
    # the second frame gains nothing before exit 3, so looking one exit ahead would not be enough
    utilities = [torch.tensor([[0.9, 0.9, 0.9], [0.3, 0.3, 0.9]]), torch.tensor([[0.9, 0.9], [0.3, 0.9]])]
    assert exits_taken(utilities, rule, 0.5, 0.5).tolist() == [1, 3]
    assert exits_taken(utilities, rule, 1.0, 0.5).tolist() == [1, 1]
