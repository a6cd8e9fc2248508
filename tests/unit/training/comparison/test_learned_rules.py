"""Rules that are fitted: learned scores, the halting network, the FiLM router, backward induction."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp_model.latent import posterior, survival
from offramp_model.routers import exit_signals
from offramp_training.comparison.at_cost import at_costs
from offramp_training.comparison.film import FilmRouter
from offramp_training.comparison.fitting import Fitting, draw_prices, lambda_grid, price_position
from offramp_training.comparison.halting import HaltingNetwork
from offramp_training.comparison.induction import BackwardInduction
from offramp_training.comparison.rules import ConfidenceThreshold, EntropyThreshold, ExitRule
from offramp_training.comparison.scores import LearnedScores, geometric_shares, quantile_thresholds
from offramp_training.comparison.table import ExitTable
from offramp_training.utilities import log_likelihoods
from tests.unit.training.comparison.tables import COST_K, QUICK, easy_hard_hopeless, table_of


@pytest.fixture(scope="module", params=["scores", "halting", "film", "induction"])
def two_kinds(request: pytest.FixtureRequest) -> tuple[str, ExitRule]:
    """A rule fitted on easy and hard frames."""
    fit, _ = easy_hard_hopeless(600, (0.5, 0.5, 0), seed=1)
    select, _ = easy_hard_hopeless(600, (0.5, 0.5, 0), seed=2)
    return request.param, make(request.param, fit, select)


def make(name: str, fit: ExitTable, select: ExitTable, seed: int = 0) -> ExitRule:
    if name == "scores":
        return LearnedScores(fit, select, seed, QUICK)
    makers: dict[str, Callable[[ExitTable, int, Fitting], ExitRule]] = {
        "halting": HaltingNetwork,
        "film": FilmRouter,
        "induction": BackwardInduction,
    }
    return makers[name](fit, seed, QUICK)


def test_easy_frames_leave_at_once_and_hard_ones_last(two_kinds: tuple[str, ExitRule]) -> None:
    name, rule = two_kinds
    select, _ = easy_hard_hopeless(600, (0.5, 0.5, 0), seed=2)
    test, kind_N = easy_hard_hopeless(600, (0.5, 0.5, 0), seed=3)
    if name == "scores":  # whose shares at three exits follow from the mean cost, so that some hard frames leave at exit 2
        result = at_costs(rule, select, test, [0.625])[0]
        assert result is not None
        exit_N = rule.exits(test, result.settings[0][0])
        assert float(exit_N[kind_N == 0].double().mean()) + 0.8 < float(exit_N[kind_N == 1].double().mean())
    else:
        exit_N = rule.exits(test, 2.3 if name == "film" else 0.5)  # nats, or accuracy
        assert float((exit_N == torch.where(kind_N == 0, 1, 3)).double().mean()) > 0.98


def test_large_prices_send_everybody_out_at_once(two_kinds: tuple[str, ExitRule]) -> None:
    name, rule = two_kinds
    test, _ = easy_hard_hopeless(200, (0.5, 0.5, 0), seed=3)
    cheapest = rule.knobs(test)[0 if name == "scores" else -1]
    assert float((rule.exits(test, cheapest) == 1).double().mean()) > 0.98


def test_rules_that_look_ahead_let_hopeless_frames_go() -> None:
    """Optimal at cost .5: hard frames alone go on. Whoever sends the least sure ones on first wastes it all on hopeless ones."""
    parts = [easy_hard_hopeless(900, (1, 1, 1), seed)[0] for seed in (1, 2, 3)]
    fit, select, test = parts
    accuracy = {}
    for name in ("scores", "halting", "film", "induction"):
        result = at_costs(make(name, fit, select), select, test, [0.5])[0]
        assert result is not None
        accuracy[name] = result.test.accuracy
    for rule in (EntropyThreshold(), ConfidenceThreshold()):
        result = at_costs(rule, select, test, [0.5])[0]
        assert result is not None
        accuracy[rule.name] = result.test.accuracy
    assert min(accuracy["halting"], accuracy["film"], accuracy["induction"]) > 0.62, accuracy
    assert max(accuracy["Entropy"], accuracy["Max-softmax"]) < 0.45, accuracy


def test_a_seed_gives_the_same_rule_again() -> None:
    fit, _ = easy_hard_hopeless(200, (1, 1, 1), seed=1)
    config = Fitting(hidden=4, batch=100, steps=5)
    for build in (
        lambda seed: HaltingNetwork(fit, seed, config).halting_logits(fit, 0.3),
        lambda seed: FilmRouter(fit, seed, config).halting_logits(fit, 0.3),
        lambda seed: LearnedScores(fit, fit, seed, config).scores(fit),
    ):
        assert torch.equal(build(3), build(3))
        assert not torch.equal(build(3), build(4))


# --- learned scores ---------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=2, max_size=6), st.floats(0.001, 0.999))
def test_geometric_shares_have_the_mean_cost(steps: list[int], position: float) -> None:
    cost_K = torch.tensor(steps, dtype=torch.double).cumsum(0) / 100
    target = float(torch.lerp(cost_K[0], cost_K[-1], position))
    share_K = geometric_shares(cost_K, target)
    assert float(share_K @ cost_K) == pytest.approx(target, abs=1e-6)
    assert float(share_K.sum()) == pytest.approx(1)
    ratio = share_K[1:] / share_K[:-1]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


def test_quantile_thresholds_send_the_shares_out() -> None:
    score_NE = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    share_K = torch.tensor([0.3, 0.0, 0.45, 0.25], dtype=torch.double)
    threshold_E = quantile_thresholds(score_NE, share_K)
    stays_N = score_NE[:, 0] < threshold_E[0]
    assert int((~stays_N).sum()) == 300
    assert float(threshold_E[1]) == torch.inf
    assert int((score_NE[stays_N][:, 2] >= threshold_E[2]).sum()) == 450


def test_learned_scores_meet_the_cost_they_aim_at_on_select() -> None:
    fit, _ = easy_hard_hopeless(300, (1, 1, 1), seed=1)
    select, _ = easy_hard_hopeless(1000, (1, 1, 1), seed=2)
    rule = LearnedScores(fit, select, 0, Fitting(hidden=8, steps=20))
    for knob in (0.25, 0.31, 0.5, 0.8, 1.0):
        assert select.outcome(select.leaving(rule.exits(select, knob))).mean_cost == pytest.approx(knob, abs=0.003)


# --- backward induction -----------------------------------------------------------------------------------------------


def discrete_table(seed: int, frames: int = 1500) -> ExitTable:
    """Confidences take two values an exit, and tell something of this and of later exits."""
    generator = torch.Generator().manual_seed(seed)
    sure_NK = torch.rand(frames, 3, generator=generator) < 0.5
    chance_N3 = torch.stack(
        [0.3 + 0.5 * sure_NK[:, 0], 0.4 + 0.3 * sure_NK[:, 0] + 0.25 * sure_NK[:, 1], 0.95 - 0.5 * sure_NK[:, 1]], 1
    )
    right_NK = torch.rand(frames, 3, generator=generator) < chance_N3
    return table_of(torch.where(sure_NK, 0.9, 0.5), right_NK, COST_K, seed)


def optimal_value(table: ExitTable, lambda_: float) -> float:
    """Dynamic programming over what exits can tell apart, on the very frames of the table."""
    value_N = table.right[:, -1].double() - lambda_ * table.cost_K[-1]
    for k in (1, 0):
        cell_N = cells(table, k)
        stop_N = table.right[:, k].double() - lambda_ * table.cost_K[k]
        value_N = torch.where(mean_by(cell_N, stop_N) >= mean_by(cell_N, value_N), stop_N, value_N)
    return float(value_N.mean())


def cells(table: ExitTable, k: int) -> Tensor:
    """Which frames exit k+1 can't tell apart, shape (N,)."""
    seen_NS = exit_signals(table.logits_NKC[:, : k + 1].float())
    return torch.unique((seen_NS * 1000).round(), dim=0, return_inverse=True)[1]


def mean_by(cell_N: Tensor, value_N: Tensor) -> Tensor:
    total = torch.zeros(int(cell_N.max()) + 1, dtype=torch.double).index_add_(0, cell_N, value_N)
    return (total / torch.bincount(cell_N))[cell_N]


@pytest.mark.parametrize("seed", [0, 1])
def test_backward_induction_finds_the_optimum_of_a_discrete_problem(seed: int) -> None:
    table = discrete_table(seed)
    rule = BackwardInduction(table, seed, Fitting(hidden=16, batch=750, steps=200, rate=0.03), torch.logspace(-1.5, 0.5, 9))
    for lambda_ in (0.0, 0.05, 0.2, 0.5, 1.0, 3.0):
        outcome = table.outcome(table.leaving(rule.exits(table, lambda_)))
        value, best = outcome.accuracy - lambda_ * outcome.mean_cost, optimal_value(table, lambda_)
        assert best - 0.005 <= value <= best + 1e-9, lambda_


# --- the FiLM router --------------------------------------------------------------------------------------------------


def test_the_film_router_learns_the_m_step_of_every_price() -> None:
    """On a discrete problem the weighted BCE's optimum is known: Σ r_k / Σ R_k over the frames that look the same."""
    table = discrete_table(0)
    rule = FilmRouter(table, 0, Fitting(hidden=16, batch=750, steps=400, rate=0.03))
    log_likelihood_NK = log_likelihoods(table.logits_NKC, table.labels_N)
    for lambda_ in (0.3, 1.5, 6.0):
        posterior_NK = posterior(log_likelihood_NK, torch.zeros(3), lambda_, table.cost_K.float()).double()
        halting_NE = rule.halting_logits(table, lambda_).sigmoid()
        for k in (0, 1):
            cell_N = cells(table, k)
            wanted_N = mean_by(cell_N, posterior_NK[:, k]) / mean_by(cell_N, survival(posterior_NK)[:, k])
            torch.testing.assert_close(halting_NE[:, k].double(), wanted_N, atol=0.06, rtol=0)


def test_prices_are_drawn_evenly_in_their_logarithm_and_told_as_a_position() -> None:
    grid_L = torch.tensor([0.01, 0.5, 1.0])
    drawn_N1 = draw_prices(grid_L, 4000, torch.Generator().manual_seed(0))
    position_N1 = price_position(grid_L, drawn_N1)
    assert drawn_N1.shape == (4000, 1)
    assert float(position_N1.abs().max()) <= 1 + 1e-6
    assert float((position_N1 < 0).double().mean()) == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(price_position(grid_L, torch.tensor([[0.01], [0.1], [1.0]])).flatten(), torch.tensor([-1.0, 0, 1]))


def test_the_grid_of_prices_ends_where_no_gain_pays() -> None:
    grid_L = lambda_grid(COST_K)
    assert float(grid_L[0]) == 0
    assert float(grid_L[-1]) == pytest.approx(4)
    assert bool((grid_L.diff() > 0).all())
