"""The forecast routers: what each exit can tell of itself and of the exits beyond it (docs/routing.md).

Router k learns, by binary cross-entropy on the fit part of the held-out images, the utility of leaving at exit j, for every
j ≥ k. λ takes no part in it. Held-out images, because on those that it was trained on the backbone is right too often. Weight
decay and temperature are chosen by cross-validation inside the fit part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from offramp_model.bundle import Control
from offramp_model.config import NetworkConfig
from offramp_model.costs import cost_table
from offramp_model.routers import ForecastRouter, exit_signals
from offramp_model.routing import ForecastRule
from offramp_training.assembly import Standardiser, load_with_heads
from offramp_training.cache import open_features
from offramp_training.config import JobConfig
from offramp_training.data import derive_seed
from offramp_training.heads import fit_and_select
from offramp_training.policies import Frames, area_under, run_policy
from offramp_training.run_directory import RunDirectory, progress_bar, say
from offramp_training.sections import ForecastConfig
from offramp_training.utilities import utilities

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
    select_utility_NK = utilities(job.forecast.utility, select_logits_NKC, held_out.labels_N[select_N])
    image_N = torch.arange(len(fit_N)).repeat_interleave(held_out.views)
    with progress_bar("forecast routers", network.config.exits - 1) as advance:
        fitted = fit_forecasts(job, fit_logits_NKC, fit_labels_N, image_N, advance)
    reports = []
    for exit, (router, tried) in enumerate(zip(fitted.routers, fitted.tried, strict=True), start=1):
        with torch.no_grad():
            utility_NJ = router(None, select_logits_NKC[:, :exit])
        loss = F.binary_cross_entropy(utility_NJ, select_utility_NK[:, exit - 1 :])
        reports.append(
            {"exit": exit, "weight_decay": tried.decay, "folds_nats": tried.losses, "select_nats": round(float(loss), 5)}
        )
    save_file(nn.ModuleList(fitted.routers).state_dict(), folder / "routers.safetensors")
    parameters = [sum(p.numel() for p in router.parameters()) for router in fitted.routers]
    say(
        STEP,
        f"forecasts of exits 1…{len(reports)}: {', '.join(str(r['select_nats']) for r in reports)} nats on select, "
        f"temperature {fitted.temperature:g}, {max(parameters):,} parameters at most",
    )
    figures = {"routers": reports, "temperature": fitted.temperature, "temperature_areas": fitted.areas, "parameters": parameters}
    run.finish(STEP, job, started, **figures)


@dataclass(frozen=True, slots=True)
class CrossValidated:
    """The weight decays tried for one exit, the views of an image in one fold."""

    decay: float
    """The one with the least loss."""
    losses: dict[str, float]
    """Nats a forecast of each candidate, on the images that its routers had not seen."""
    utility_NJ: Tensor
    """What routers with the chosen decay forecast of frames that they had not seen."""
    routers: tuple[ForecastRouter, ...]
    """Those routers, one a fold."""


@dataclass(frozen=True, slots=True)
class Forecasts:
    """Routers of every exit but the last, fitted on all frames, and what cross-validation chose for them."""

    routers: list[ForecastRouter]
    tried: list[CrossValidated]
    temperature: float
    areas: dict[str, float]
    """Area under the curve of accuracy over cost of each candidate for the temperature."""


def fit_forecasts(
    job: JobConfig, logits_NKC: Tensor, labels_N: Tensor, image_N: Tensor, advance: Callable[[int], None] = lambda _: None
) -> Forecasts:
    """Fit routers on frames of known labels; `image_N` says of which image, 0, 1, …, each frame is a view."""
    seed, utility_NK = derive_seed(job.fit_seed, STEP), utilities(job.forecast.utility, logits_NKC, labels_N)
    routers: list[ForecastRouter] = []
    tried: list[CrossValidated] = []
    for exit in range(1, job.network.exits):
        signals_NS, utility_NJ = exit_signals(logits_NKC[:, :exit]), utility_NK[:, exit - 1 :]
        tried.append(cross_validate(job, exit, signals_NS, utility_NJ, image_N))
        routers.append(fit_router(job.network, job.forecast, exit, signals_NS, utility_NJ, tried[-1].decay, seed))
        advance(1)
    temperature, areas = choose_temperature(job, logits_NKC, labels_N, [each.utility_NJ for each in tried])
    return Forecasts(routers, tried, temperature, areas)


def fit_router(
    network: NetworkConfig, config: ForecastConfig, exit: int, signals_NS: Tensor, utility_NJ: Tensor, decay: float, seed: int
) -> ForecastRouter:
    """Train the router of one exit on its signals; `utility_NJ` says what leaving at exits k…K is worth, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    router = ForecastRouter(exit, network.exits, network.classes, network.router_hidden)
    nn.init.kaiming_uniform_(router.hidden.weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(router.hidden.bias)
    nn.init.zeros_(router.output.weight)
    with torch.no_grad():
        router.output.bias.copy_(utility_NJ.mean(0).clamp(0.01, 0.99).logit())
    standardise = Standardiser(signals_NS)
    inputs_NS = standardise(signals_NS)
    optimizer = torch.optim.AdamW(router.parameters(), lr=config.rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.rate, total_steps=config.steps + 1)
    size = min(config.batch_size, len(inputs_NS))
    for _ in range(config.steps):
        batch_N = torch.randint(len(inputs_NS), (size,), generator=generator)
        loss = F.binary_cross_entropy_with_logits(router.forecast(inputs_NS[batch_N]), utility_NJ[batch_N])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    standardise.fold_into(router)
    return router.requires_grad_(False)


def cross_validate(job: JobConfig, exit: int, signals_NS: Tensor, utility_NJ: Tensor, image_N: Tensor) -> CrossValidated:
    """Fit one exit's router on all folds but one, for each fold and each candidate of weight decay."""
    config, seed = job.forecast, derive_seed(job.fit_seed, STEP)
    images = int(image_N.max()) + 1
    fold_N = torch.randperm(images, generator=torch.Generator().manual_seed(seed))[image_N] % config.folds
    forecasts: dict[float, Tensor] = {}
    routers: dict[float, list[ForecastRouter]] = {}
    for decay in config.weight_decays:
        forecast_NJ = torch.empty_like(utility_NJ)
        routers[decay] = []
        for fold in range(config.folds):
            inside_N, outside_N = fold_N != fold, fold_N == fold
            router = fit_router(job.network, config, exit, signals_NS[inside_N], utility_NJ[inside_N], decay, seed)
            forecast_NJ[outside_N] = router.forecast(signals_NS[outside_N])
            routers[decay].append(router)
        forecasts[decay] = forecast_NJ
    losses = {decay: float(F.binary_cross_entropy_with_logits(value, utility_NJ)) for decay, value in forecasts.items()}
    best = min(losses, key=losses.__getitem__)
    rounded = {f"{decay:g}": round(loss, 5) for decay, loss in losses.items()}
    return CrossValidated(best, rounded, forecasts[best].sigmoid(), tuple(routers[best]))


def choose_temperature(
    job: JobConfig, logits_NKC: Tensor, labels_N: Tensor, forecasts: Sequence[Tensor]
) -> tuple[float, dict[str, float]]:
    """The τ_s whose curve of accuracy over cost, λ from 0 to very large, has the largest area.

    On forecasts of frames that their router had not seen, so that the select part has no hand in the routers at all: what is
    certified on it later (docs/outcomes.md) would be worth less otherwise.
    """
    costs = cost_table(job.network.model_copy(update={"router_temperature": 1.0}))  # the same at every temperature
    areas = {}
    for temperature in job.forecast.temperatures:
        rule = ForecastRule(costs.ratios, temperature)
        frames = Frames(logits_NKC, list(forecasts), logits_NKC[:, -1], labels_N, rule, costs)
        outcomes = [run_policy(frames, Control(policy="router", lambda_=value)) for value in (0, *np.logspace(-3, 1, 41))]
        points = [(outcome.mean_cost, outcome.accuracy) for outcome in outcomes]
        areas[f"{temperature:g}"] = round(area_under(points, costs.ratios[0], costs.ratios[-1]), 6)
    return max(job.forecast.temperatures, key=lambda temperature: areas[f"{temperature:g}"]), areas
