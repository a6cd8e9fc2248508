"""Step 3: each exit's classifier, trained on cached statistics of the frozen backbone and calibrated (paper, section 4.1).

The held-out images fall into two parts here. The fit part picks weight decay, dropout and epoch and sets the temperature, and
later trains the routers; the select part is left alone until operating points are chosen on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from offramp_model.conv_trunk import ConvTrunk
from offramp_model.network import Head, select_parts
from offramp_training.assembly import Standardiser, load_backbone, load_joint_heads, through_half
from offramp_training.cache import Features, open_features
from offramp_training.calibration import fit_temperature, quality
from offramp_training.candidates import CHUNK, Candidate, ExitPart, Lesson, choose, random_views, train_candidate
from offramp_training.config import JobConfig, JobError
from offramp_training.data import derive_seed, split_held_out
from offramp_training.run_directory import RunDirectory, progress_bar, read_json, say, write_json

STEP = "heads"
STANDARDISED_ON = 10_000
"""At most this many training images tell mean and deviation of a head's inputs."""


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
    classifier = load_backbone(job, run).classifier
    reports = train_exits(job, train, held_out, classifier, folder, load_joint_heads(job, run))
    full = quality(classifier(held_out.plain(select_N)[-1]), held_out.labels_N[select_N])
    run.finish(STEP, job, started, fit_images=len(fit_N), select_images=len(select_N), full_select=full.rounded(), exits=reports)


def train_exits(
    job: JobConfig, train: Features, held_out: Features, classifier: nn.Module, folder: Path, joint: Sequence[Head] = ()
) -> list[dict[str, Any]]:
    """Train and calibrate the heads from the first to the last into heads.safetensors; a report of each exit.

    An exit whose exit<k>.json is in the folder is not trained again. `classifier` is the plain full network's, frozen, whose
    softmax is distilled. `joint`, the heads that were trained with the backbone, are candidates too. Raises JobError where the
    cache holds fewer views than wanted.
    """
    views, network = training_views(job, train), job.network
    fit_N, select_N = fit_and_select(job, held_out)
    sources = [_some(train, slice(None), views), _some(held_out, fit_N, 1), _some(held_out, select_N, 1)]
    earlier = [torch.zeros(len(source.labels_N), source.views, 0, network.classes) for source in sources]
    teacher_NVC = torch.cat([classifier(chunk.float()) for chunk in torch.split(sources[0].statistics[-1], CHUNK)])

    reports: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    epochs = len(job.heads.weight_decays) * len(job.heads.dropouts) * job.heads.epochs
    with progress_bar(f"{folder.name}, epochs", network.exits * epochs) as advance:
        for exit, width in enumerate(network.widths, start=1):
            weights, figures = folder / f"exit{exit}.safetensors", folder / f"exit{exit}.json"
            head, finished = Head(network, exit), figures.exists()
            feeds_others = network.head_cascade and exit < network.exits
            if feeds_others or not finished:
                train_part, fit, select = parts = [
                    ExitPart(select_parts(source.statistics[exit - 1], width, head.parts), earlier_NVEC, source.labels_N)
                    for source, earlier_NVEC in zip(sources, earlier, strict=True)
                ]
            if finished:
                advance(epochs)
            else:
                head, report = _train_exit(job, exit, train_part, fit, select, teacher_NVC, joint[exit - 1 : exit], advance)
                save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, weights)
                write_json(figures, report)
                _say(folder, report)
            head.load_state_dict(load_file(weights))
            if feeds_others:
                earlier = [torch.cat([part.earlier_NVEC, part.logits(head)[:, :, None]], 2) for part in parts]
            reports.append(read_json(figures))
            tensors |= {f"{exit - 1}.{name}": tensor for name, tensor in head.state_dict().items()}
    save_file(tensors, folder / "heads.safetensors")
    return reports


def training_views(job: JobConfig, train: Features) -> int:
    """How many views of each training image are learned from. Raises JobError where the cache holds fewer than wanted."""
    views = job.heads.views or train.views
    if views > train.views:
        raise JobError(f"heads.views is {views} and cached are {train.views} of each training image")
    return views


def _some(features: Features, rows: slice | Tensor, views: int) -> Features:
    """Some images in their first views, as they are cached."""
    return Features([statistics_NVS[rows, :views] for statistics_NVS in features.statistics], features.labels_N[rows])


def _train_exit(
    job: JobConfig,
    exit: int,
    train: ExitPart,
    fit: ExitPart,
    select: ExitPart,
    teacher_NVC: Tensor,
    joint: Sequence[Head],
    advance: Callable[[int], None],
) -> tuple[Head, dict[str, Any]]:
    """The best candidate's head, folded, at half precision and calibrated, and its report."""
    head, generator = Head(job.network, exit), torch.Generator().manual_seed(derive_seed(job.fit_seed, STEP, exit))
    sample_N = torch.randperm(len(train.labels_N), generator=generator)[:STANDARDISED_ON]
    map_columns = head[0].map_columns if isinstance(head[0], ConvTrunk) else 0
    standardise = Standardiser(train.inputs(head, sample_N, random_views(train, len(sample_N), generator)), map_columns)
    plain_N = torch.zeros_like(fit.labels_N)
    fit_inputs_NI = standardise(fit.inputs(head, torch.arange(len(plain_N)), plain_N))
    lesson = Lesson(train, teacher_NVC, standardise, fit_inputs_NI, fit.labels_N)
    candidates = [
        train_candidate(job, exit, lesson, decay, dropout, advance)
        for decay, dropout in product(job.heads.weight_decays, job.heads.dropouts)
    ]
    candidates += [_as_it_came(head, lesson) for head in joint]
    best = choose(candidates)
    head = best.head.requires_grad_(False)
    standardise.fold_into(head)
    head.load_state_dict(through_half(head.state_dict()))  # calibrated and reported is what will be served
    before = quality(select.logits(head)[:, 0], select.labels_N)
    temperature = torch.tensor(fit_temperature(fit.logits(head)[:, 0], fit.labels_N))
    head.temperature.copy_(temperature.half())
    after = quality(select.logits(head)[:, 0], select.labels_N)
    return head, {
        "exit": exit,
        **best.report(),
        "temperature": round(float(head.temperature), 4),
        "select_before": before.rounded(),
        "select_after": after.rounded(),
        "candidates": [candidate.report() for candidate in candidates],
    }


def _as_it_came(head: Head, lesson: Lesson) -> Candidate:
    lesson.standardise.unfold_from(head)
    return Candidate(0.0, 0.0, 0, lesson.fit_losses(head), head)


def _say(folder: Path, report: dict[str, Any]) -> None:
    before, after = report["select_before"], report["select_after"]
    sureness = "–" if after["auroc"] is None else f"{after['auroc']:.3f}"
    say(
        folder.name,
        f"exit {report['exit']}: accuracy {after['accuracy']:.4f}, nll {before['nll']:.3f} → {after['nll']:.3f}, "
        f"ece {before['ece']:.3f} → {after['ece']:.3f}, auroc {sureness}, temperature {report['temperature']:.2f}, "
        f"weight decay {report['weight_decay']:g}, dropout {report['dropout']:g}, epoch {report['epoch']}",
    )
