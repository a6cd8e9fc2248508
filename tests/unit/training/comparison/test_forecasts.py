"""Other ways to fit a forecast router: cross-fitted, and with another utility."""

from __future__ import annotations

import pytest
import torch

from offramp_training.comparison.at_cost import at_costs
from offramp_training.comparison.crossfitting import cross_fitted
from offramp_training.comparison.table import ExitTable
from offramp_training.comparison.utility import other_utility
from offramp_training.config import JobConfig, load_config
from tests.unit.training.comparison.tables import easy_hard_hopeless

NETWORK = "network={widths: [2, 3, 4], blocks: [1, 1, 1], classes: 4, router_kind: forecast, router_hidden: 12}"
FORECAST = "forecast={steps: 60, batch_size: 512, rate: 0.03, weight_decays: [0.01], folds: 3, temperatures: [0.01, 0.1]}"


def job(*overrides: str) -> JobConfig:
    return load_config("smoke", [NETWORK, FORECAST, *overrides])


def two_views(table: ExitTable) -> ExitTable:
    """Each frame twice, one after the other."""
    return table.rows(torch.arange(len(table.labels_N)).repeat_interleave(2))


@pytest.mark.parametrize("utility", ["probability", "log_likelihood"])
def test_both_let_hopeless_frames_go(utility: str) -> None:
    """Optimal at cost .5: hard frames alone go on, as backward induction has it."""
    fit, select, test = (easy_hard_hopeless(600, (1, 1, 1), seed)[0] for seed in (1, 2, 3))
    chosen = job(f"forecast.utility={utility}")
    for rule in (
        cross_fitted(chosen, two_views(fit), 2, select, [test]),
        other_utility(chosen, two_views(fit), 2, [select, test]),
    ):
        result = at_costs(rule, select, test, [0.5])[0]
        assert result is not None
        assert result.test.accuracy > 0.62, rule.name
        assert result.test.mean_cost == pytest.approx(0.5, abs=0.06)


def test_the_other_utility_is_the_one_that_is_not_published() -> None:
    fit = easy_hard_hopeless(60, (1, 1, 1), 1)[0]
    names = [
        other_utility(job(f"forecast.utility={utility}", "forecast.steps=1"), fit, 1, [fit]).name
        for utility in ("probability", "log_likelihood")
    ]
    assert names == ["Forecast of log-likelihood", "Forecast of being right"]
