"""The forecast routers: what each exit can tell of itself and of the exits beyond it (docs/routing.md).

Router k learns, by binary cross-entropy on the fit part of the held-out images, the probability that exit j is right, for every
j ≥ k. λ takes no part in it. Held-out images, because on those that it was trained on the backbone is right too often. Weight
decay and temperature are chosen by cross-validation inside the fit part.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from offramp_model.bundle import Control
from offramp_model.costs import cost_table
from offramp_model.network import NetworkConfig
from offramp_model.routers import ForecastRouter, exit_signals
from offramp_model.routing import ForecastRule
from offramp_training.assembly import Standardiser, load_with_heads
from offramp_training.cache import open_features
from offramp_training.config import ForecastConfig, JobConfig
from offramp_training.data import derive_seed
from offramp_training.heads import fit_and_select
from offramp_training.policies import Frames, area_under, run_policy
from offramp_training.run_directory import RunDirectory, progress_bar, say

STEP = "routers"


def train_forecasts(job: JobConfig, run: RunDirectory) -> None:
    """Write routers.safetensors; the result tells the weight decay and the temperature, and how well each forecast does."""
    started = time.time()
    network, folder = load_with_heads(job, run), run.folder(STEP)
    held_out = open_features(run.root / "cache", "held_out", job.network.exits)
    fit_N, select_N = fit_and_select(job, held_out)
    with torch.no_grad():
        fit_logits_NKC, _ = network.exits(held_out.all_views(fit_N))
        select_logits_NKC, _ = network.exits(held_out.plain(select_N))
    fit_labels_N = held_out.labels_N[fit_N].repeat_interleave(held_out.views)
    fit_right_NK = fit_logits_NKC.argmax(-1) == fit_labels_N[:, None]
    select_right_NK = select_logits_NKC.argmax(-1) == held_out.labels_N[select_N][:, None]
    seed = derive_seed(job.fit_seed, STEP)

    image_N = torch.arange(len(fit_N)).repeat_interleave(held_out.views)
    folds_N = torch.randperm(len(fit_N), generator=torch.Generator().manual_seed(seed))[image_N] % job.forecast.folds
    routers, reports, unseen = [], [], []
    with progress_bar("forecast routers", network.config.exits - 1) as advance:
        for exit in range(1, network.config.exits):
            signals_NS, right_NJ = exit_signals(fit_logits_NKC[:, :exit]), fit_right_NK[:, exit - 1 :].float()
            tried = _cross_validate(job, exit, signals_NS, right_NJ, folds_N, seed)
            router = fit_router(job.network, job.forecast, exit, signals_NS, right_NJ, tried.decay, seed)
            with torch.no_grad():
                utility_NJ = router(None, select_logits_NKC[:, :exit])
            loss = F.binary_cross_entropy(utility_NJ, select_right_NK[:, exit - 1 :].float())
            reports.append(
                {"exit": exit, "weight_decay": tried.decay, "folds_nats": tried.losses, "select_nats": round(float(loss), 5)}
            )
            routers.append(router)
            unseen.append(tried.utility_NJ)
            advance(1)
    temperature, areas = _choose_temperature(job, fit_logits_NKC, fit_labels_N, unseen)
    save_file(nn.ModuleList(routers).state_dict(), folder / "routers.safetensors")
    parameters = [sum(p.numel() for p in router.parameters()) for router in routers]
    say(
        STEP,
        f"forecasts of exits 1…{len(routers)}: {', '.join(str(r['select_nats']) for r in reports)} nats on select, "
        f"temperature {temperature:g}, {max(parameters):,} parameters at most",
    )
    figures = {"routers": reports, "temperature": temperature, "temperature_areas": areas, "parameters": parameters}
    run.finish(STEP, job, started, **figures)


def fit_router(
    network: NetworkConfig, config: ForecastConfig, exit: int, signals_NS: Tensor, right_NJ: Tensor, decay: float, seed: int
) -> ForecastRouter:
    """Train the router of one exit on its signals; `right_NJ` says whether exits k…K are right, 1 or 0."""
    generator = torch.Generator().manual_seed(seed)
    router = ForecastRouter(exit, network.exits, network.classes, network.router_hidden)
    nn.init.kaiming_uniform_(router.hidden.weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(router.hidden.bias)
    nn.init.zeros_(router.output.weight)
    with torch.no_grad():
        router.output.bias.copy_(right_NJ.mean(0).clamp(0.01, 0.99).logit())
    standardise = Standardiser(signals_NS)
    inputs_NS = standardise(signals_NS)
    optimizer = torch.optim.AdamW(router.parameters(), lr=config.rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.rate, total_steps=config.steps + 1)
    size = min(config.batch_size, len(inputs_NS))
    for _ in range(config.steps):
        batch_N = torch.randint(len(inputs_NS), (size,), generator=generator)
        loss = F.binary_cross_entropy_with_logits(router.forecast(inputs_NS[batch_N]), right_NJ[batch_N])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    standardise.fold_into(router)
    return router.requires_grad_(False)


@dataclass(frozen=True, slots=True)
class _CrossValidated:
    """Weight decays tried on the fit part, the views of an image in one fold."""

    decay: float
    losses: dict[str, float]
    """Nats a forecast of each candidate, on the images that its routers had not seen."""
    utility_NJ: Tensor
    """What routers with the chosen decay forecast of frames that they had not seen."""


def _cross_validate(
    job: JobConfig, exit: int, signals_NS: Tensor, right_NJ: Tensor, folds_N: Tensor, seed: int
) -> _CrossValidated:
    forecasts = {}
    for decay in job.forecast.weight_decays:
        forecast_NJ = torch.empty_like(right_NJ)
        for fold in range(job.forecast.folds):
            inside_N, outside_N = folds_N != fold, folds_N == fold
            router = fit_router(job.network, job.forecast, exit, signals_NS[inside_N], right_NJ[inside_N], decay, seed)
            forecast_NJ[outside_N] = router.forecast(signals_NS[outside_N])
        forecasts[decay] = forecast_NJ
    losses = {decay: float(F.binary_cross_entropy_with_logits(value, right_NJ)) for decay, value in forecasts.items()}
    best = min(losses, key=losses.__getitem__)
    return _CrossValidated(best, {f"{decay:g}": round(loss, 5) for decay, loss in losses.items()}, forecasts[best].sigmoid())


def _choose_temperature(
    job: JobConfig, logits_NKC: Tensor, labels_N: Tensor, utilities: list[Tensor]
) -> tuple[float, dict[str, float]]:
    """The τ_s whose curve of accuracy over cost, λ from 0 to very large, has the largest area.

    On forecasts of frames that their router had not seen, so that the select part has no hand in the routers at all: what is
    certified on it later (docs/outcomes.md) would be worth less otherwise.
    """
    costs = cost_table(job.network.model_copy(update={"router_temperature": 1.0}))  # the same at every temperature
    areas = {}
    for temperature in job.forecast.temperatures:
        rule = ForecastRule(torch.tensor(costs.ratios), temperature)
        frames = Frames(logits_NKC, utilities, logits_NKC[:, -1], labels_N, rule, costs)
        outcomes = [run_policy(frames, Control(policy="router", lambda_=value)) for value in (0, *np.logspace(-3, 1, 41))]
        points = [(outcome.mean_cost, outcome.accuracy) for outcome in outcomes]
        areas[f"{temperature:g}"] = round(area_under(points, costs.ratios[0], costs.ratios[-1]), 6)
    return max(job.forecast.temperatures, key=lambda temperature: areas[f"{temperature:g}"]), areas
