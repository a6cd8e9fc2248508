"""Step 3: each exit's classifier, trained on cached features of the frozen backbone and calibrated (paper, section 4.1).

The held-out images fall into two parts here. The fit part picks weight decay and epoch and sets the temperature, and later
trains the routers; the select part is left alone until operating points are chosen on it.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from offramp_model.network import Head
from offramp_training.assembly import Standardiser, load_backbone
from offramp_training.cache import Features, open_features
from offramp_training.calibration import fit_temperature, quality
from offramp_training.config import HeadsConfig, JobConfig
from offramp_training.data import derive_seed, split_held_out
from offramp_training.run_directory import RunDirectory, progress_bar, read_json, say, write_json

STEP = "heads"


def fit_and_select(job: JobConfig, held_out: Features) -> tuple[Tensor, Tensor]:
    """Rows of the held-out features: those to fit on and those to choose on; stratified by class."""
    return split_held_out(held_out.labels_N, job.data.select_fraction, derive_seed(job.seed, "select"))


def train_heads(job: JobConfig, run: RunDirectory) -> None:
    """Write heads.safetensors; an exit that is finished is not trained again."""
    started = time.time()
    run.result("cache")
    folder, exits = run.folder(STEP), job.network.exits
    train = open_features(run.root / "cache", "train", exits)
    held_out = open_features(run.root / "cache", "held_out", exits)
    fit_N, select_N = fit_and_select(job, held_out)
    np.savez(folder / "parts.npz", fit=fit_N.numpy(), select=select_N.numpy())
    fit_labels_N, select_labels_N = held_out.labels_N[fit_N], held_out.labels_N[select_N]
    fit, select = held_out.plain(fit_N), held_out.plain(select_N)

    reports = []
    steps = exits * len(job.heads.weight_decays) * job.heads.epochs
    with progress_bar("heads, epochs", steps) as advance:
        for index in range(exits):
            weights, figures = folder / f"exit{index + 1}.safetensors", folder / f"exit{index + 1}.json"
            if figures.exists():
                reports.append(read_json(figures))
                advance(steps // exits)
                continue
            features_NVC = train.pooled[index].float()
            standardise = Standardiser(features_NVC.flatten(0, 1))
            standardised = standardise(features_NVC), train.labels_N
            candidates = []
            for decay in job.heads.weight_decays:
                seed = derive_seed(job.seed, STEP, index + 1, str(decay))
                head = Head(features_NVC.shape[2], job.network.head_hidden, job.network.classes)
                epoch, nll = _train_head(head, standardised, (standardise(fit[index]), fit_labels_N), job.heads, decay, seed)
                candidates.append((nll, decay, epoch, head))
                advance(job.heads.epochs)
            _, decay, epoch, head = min(candidates, key=lambda candidate: candidate[0])
            standardise.fold_into(head)
            head.requires_grad_(False)
            before = quality(head(select[index]), select_labels_N)
            head.temperature.fill_(fit_temperature(head(fit[index]), fit_labels_N))
            after = quality(head(select[index]), select_labels_N)
            report = {
                "exit": index + 1,
                "weight_decay": decay,
                "epoch": epoch,
                "temperature": round(float(head.temperature), 4),
                "select_before": before.rounded(),
                "select_after": after.rounded(),
            }
            save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, weights)
            write_json(figures, report)
            reports.append(report)
            say(
                STEP,
                f"exit {index + 1}: accuracy {after.accuracy:.4f}, nll {before.nll:.3f} → {after.nll:.3f}, "
                f"ece {before.ece:.3f} → {after.ece:.3f}, temperature {float(head.temperature):.2f}",
            )
    tensors = {
        f"{index}.{name}": tensor
        for index in range(exits)
        for name, tensor in load_file(folder / f"exit{index + 1}.safetensors").items()
    }
    save_file(tensors, folder / "heads.safetensors")
    with torch.no_grad():
        full = quality(load_backbone(job, run).classifier(select[-1]), select_labels_N)
    run.finish(STEP, job, started, fit_images=len(fit_N), select_images=len(select_N), full_select=full.rounded(), exits=reports)


def _train_head(
    head: Head,
    train: tuple[Tensor, Tensor],
    fit: tuple[Tensor, Tensor],
    config: HeadsConfig,
    decay: float,
    seed: int,
) -> tuple[int, float]:
    """Train on features (N, V, C) and labels; returns the best epoch, whose weights are left in `head`, and its held-out nats."""
    (features_NVC, labels_N), (fit_NC, fit_labels_N) = train, fit
    generator = torch.Generator().manual_seed(seed)
    _initialise(head, generator)
    count, views, _ = features_NVC.shape
    size = min(config.batch_size, count)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.peak_rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.peak_rate, total_steps=config.epochs * (count // size) + 1)
    best = (0, float("inf"))
    best_state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    for epoch in range(1, config.epochs + 1):
        order_N = torch.randperm(count, generator=generator)
        view_N = torch.randint(views, (count,), generator=generator)  # one view of each image an epoch
        for batch_N in torch.split(order_N, size)[: count // size]:
            loss = F.cross_entropy(head(features_NVC[batch_N, view_N[batch_N]]), labels_N[batch_N])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            logits_NC = head(fit_NC)
        # judged at its own best temperature, since it will get one: otherwise over-confidence would pick the epoch
        nll = float(F.cross_entropy(logits_NC / fit_temperature(logits_NC, fit_labels_N), fit_labels_N))
        if nll < best[1]:
            best = (epoch, nll)
            best_state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    head.load_state_dict(best_state)
    return best


def _initialise(head: Head, generator: torch.Generator) -> None:
    """Kaiming-uniform weights, zero biases, from a recorded seed."""
    for layer in head:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            torch.nn.init.zeros_(layer.bias)
