"""The forecast router with another utility than the published one's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from offramp_model.routing import ForecastRule
from offramp_training.comparison.table import ExitTable
from offramp_training.comparison.trained import RouterRule
from offramp_training.config import JobConfig
from offramp_training.forecast import fit_forecasts
from offramp_training.utilities import Utility

NAMES: dict[Utility, str] = {"probability": "Forecast of being right", "log_likelihood": "Forecast of log-likelihood"}


def other_utility(job: JobConfig, fit: ExitTable, views: int, tables: Sequence[ExitTable]) -> RouterRule:
    """Fitted on the fit part as the published routers are; `fit` holds the views of each image one after the other."""
    other: Utility = "probability" if job.forecast.utility == "log_likelihood" else "log_likelihood"
    job = job.model_copy(update={"forecast": job.forecast.model_copy(update={"utility": other})})
    image_N = torch.arange(len(fit.labels_N) // views).repeat_interleave(views)
    fitted = fit_forecasts(job, fit.logits_NKC, fit.labels_N, image_N)
    outputs = [
        (table, [router(None, table.logits_NKC[:, :exit]) for exit, router in enumerate(fitted.routers, start=1)])
        for table in tables
    ]
    return RouterRule(NAMES[other], ForecastRule(tuple(fit.cost_K.tolist()), fitted.temperature), outputs)
