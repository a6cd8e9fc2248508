"""Cross-fitting (Chernozhukov et al. 2018, arXiv 1608.00060): every held-out image teaches, and none judges who has seen it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from offramp_model.routers import exit_signals
from offramp_model.routing import ForecastRule
from offramp_training.comparison.table import ExitTable
from offramp_training.comparison.trained import RouterRule
from offramp_training.config import JobConfig
from offramp_training.forecast import choose_temperature, cross_validate
from offramp_training.utilities import utilities


def cross_fitted(job: JobConfig, fit: ExitTable, views: int, select: ExitTable, others: Sequence[ExitTable]) -> RouterRule:
    """Forecast routers fitted on the fit and the select part together, in folds of images.

    The forecast of a select frame is that of the one router an exit that has not seen its image, and on these λ is chosen;
    frames of other tables get the mean of all folds' forecasts. So no image is kept back from the routers, and still none
    has a hand in the forecast that it is used to judge. `fit` holds the views of each image one after the other.
    """
    logits_NKC = torch.cat([fit.logits_NKC, select.logits_NKC])
    labels_N = torch.cat([fit.labels_N, select.labels_N])
    images = len(fit.labels_N) // views
    image_N = torch.cat([torch.arange(images).repeat_interleave(views), images + torch.arange(len(select.labels_N))])
    utility_NK = utilities(job.forecast.utility, logits_NKC, labels_N)
    tried = [
        cross_validate(job, exit, exit_signals(logits_NKC[:, :exit]), utility_NK[:, exit - 1 :], image_N)
        for exit in range(1, fit.exits)
    ]
    unseen = [each.utility_NJ for each in tried]
    temperature, _ = choose_temperature(job, logits_NKC, labels_N, unseen)

    def averaged(table: ExitTable) -> list[Tensor]:
        return [
            torch.stack([router(None, table.logits_NKC[:, :exit]) for router in each.routers]).mean(0)
            for exit, each in enumerate(tried, start=1)
        ]

    outputs = [(select, [utility_NJ[len(fit.labels_N) :] for utility_NJ in unseen])]
    outputs += [(table, averaged(table)) for table in others]
    return RouterRule("Forecast, cross-fitted", ForecastRule(tuple(fit.cost_K.tolist()), temperature), outputs)
