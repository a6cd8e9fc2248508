"""The routers of every λ of the grid, by EM on held-out likelihoods (paper, sections 4.3 and 4.4).

Held-out, because on its own training images the backbone is right almost always: there the cheapest saturated exit would
look good enough for everybody. But held-out images are few, and the hidden layers have many weights. So these may be learned
by EM on training images, which tell hard from easy well enough; EM on the held-out images then starts from the uniform prior
with the hidden layers frozen, and sets the output layers alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from offramp_model.costs import cost_table
from offramp_model.network import MultiExitNetwork, select_parts
from offramp_model.routers import RouterBank
from offramp_training.assembly import Standardiser, load_with_heads
from offramp_training.cache import open_features
from offramp_training.config import JobConfig
from offramp_training.data import derive_seed
from offramp_training.em import Table, iterate, make_uniform, objective, uniform_banks
from offramp_training.heads import fit_and_select
from offramp_training.run_directory import RunDirectory, progress_bar, read_json, say, write_json
from offramp_training.sections import RoutersConfig

STEP = "routers"


def train_bank(job: JobConfig, run: RunDirectory) -> None:
    """Write routers.safetensors and the objective of every iteration; goes on after the last iteration of a cut-off run."""
    started = time.time()
    network, folder = load_with_heads(job, run), run.folder(STEP)
    held_out = open_features(run.root / "cache", "held_out", job.network.exits)
    fit_N, select_N = fit_and_select(job, held_out)
    fit_labels_N = held_out.labels_N[fit_N].repeat_interleave(held_out.views)
    train = open_features(run.root / "cache", "train", job.network.exits)
    generator = torch.Generator().manual_seed(derive_seed(job.fit_seed, STEP))
    rows_N = torch.randperm(len(train.labels_N), generator=generator)[: job.routers.training_images]
    seen = train.plain(rows_N)
    standardisers = [Standardiser(average_NC) for average_NC in _averages(network, seen)]
    fit = _table(network, held_out.all_views(fit_N), fit_labels_N, standardisers)
    select = _table(network, held_out.plain(select_N), held_out.labels_N[select_N], standardisers)

    lambda_L = torch.tensor(job.routers.lambdas)
    cost_K = torch.tensor(router_costs(job))
    banks = uniform_banks(job.network.widths, job.network.router_hidden, len(lambda_L), generator)
    state = nn.ModuleList(banks)
    log_path, state_path = folder / "em.json", folder / "em.safetensors"
    log: list[dict[str, Any]] = [_entry(0, objective(banks, fit, lambda_L, cost_K), objective(banks, select, lambda_L, cost_K))]
    if log_path.exists():
        log = read_json(log_path)["iterations"]
        state.load_state_dict(load_file(state_path))
        say(STEP, f"resuming after iteration {len(log) - 1}")
    if job.routers.hidden_layers == "training":
        if len(log) == 1:
            table = _table(network, seen, train.labels_N[rows_N], standardisers)
            _learn_hidden_layers(banks, table, lambda_L, cost_K, job.routers)
        for bank in banks:
            bank.hidden.requires_grad_(False)
    with progress_bar("EM iterations", job.routers.iterations) as advance:
        advance(len(log) - 1)
        for iteration in iterate(banks, fit, lambda_L, cost_K, job.routers, first=len(log)):
            on_select_L = objective(banks, select, lambda_L, cost_K)
            log.append(_entry(iteration.number, iteration.objective_L, on_select_L))
            save_file(state.state_dict(), state_path)
            write_json(log_path, {"lambdas": job.routers.lambdas, "iterations": log})
            say(
                STEP,
                f"iteration {iteration.number}: J {float(iteration.objective_L.mean()):.4f} (select "
                f"{float(on_select_L.mean()):.4f}) nats over the grid, {int(iteration.kept_L.sum())} λ kept",
            )
            advance(1)
    for bank, standardise in zip(banks, standardisers, strict=True):
        standardise.fold_into(bank)
    save_file(state.state_dict(), folder / "routers.safetensors")
    run.finish(STEP, job, started, iterations=len(log) - 1, lambdas=job.routers.lambdas, objective=log)


def _learn_hidden_layers(
    banks: Sequence[RouterBank], table: Table, lambda_L: Tensor, cost_K: Tensor, config: RoutersConfig
) -> None:
    """EM on training images; the output layers then go back to the uniform prior."""
    config = config.model_copy(update={"iterations": config.training_iterations})
    with progress_bar("hidden layers, iterations", config.iterations) as advance:
        for iteration in iterate(banks, table, lambda_L, cost_K, config):
            say(
                STEP,
                f"hidden layers, iteration {iteration.number}: J {float(iteration.objective_L.mean()):.4f} on training images",
            )
            advance(1)
    make_uniform(banks)


def router_costs(job: JobConfig) -> tuple[float, ...]:
    """c_k of the network as it is served, with the whole bank of routers on the way."""
    return cost_table(job.network.model_copy(update={"router_lambdas": job.routers.lambdas})).ratios


@torch.no_grad()
def _table(network: MultiExitNetwork, statistics: list[Tensor], labels_N: Tensor, standardisers: list[Standardiser]) -> Table:
    """log p(y|x,z=k) under the calibrated heads, and the routers' standardised inputs."""
    logits_NKC, _ = network.exits(statistics)
    log_likelihood_NK = (
        logits_NKC.log_softmax(-1).gather(2, labels_N[:, None, None].expand(-1, logits_NKC.shape[1], 1)).squeeze(2)
    )
    averages = zip(standardisers, _averages(network, statistics), strict=True)
    return Table([standardise(average_NC) for standardise, average_NC in averages], log_likelihood_NK)


def _averages(network: MultiExitNetwork, statistics: Sequence[Tensor]) -> list[Tensor]:
    """The pooled features that the bank sees, of every exit but the last."""
    return [select_parts(s_NS, width, ("average",)) for s_NS, width in zip(statistics[:-1], network.config.widths, strict=False)]


def _entry(number: int, fit_L: Tensor, select_L: Tensor) -> dict[str, Any]:
    return {
        "iteration": number,
        "objective": [round(value, 6) for value in fit_L.tolist()],
        "select_objective": [round(value, 6) for value in select_L.tolist()],
    }
