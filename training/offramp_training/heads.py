"""Step 3: each exit's classifier, trained on cached statistics of the frozen backbone and calibrated (paper, section 4.1).

The held-out images fall into two parts here. The fit part picks weight decay, dropout and epoch and sets the temperature, and
later trains the routers; the select part is left alone until operating points are chosen on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from offramp_model.conv_trunk import ConvTrunk
from offramp_model.network import Head, select_parts
from offramp_training.assembly import Standardiser, load_backbone, load_joint_heads, through_half
from offramp_training.cache import Features, open_features
from offramp_training.calibration import fit_temperature, quality
from offramp_training.config import JobConfig, JobError
from offramp_training.data import derive_seed, split_held_out
from offramp_training.run_directory import RunDirectory, progress_bar, read_json, say, write_json

STEP = "heads"
CHUNK = 1000
"""Images that are turned to single precision at a time."""
STANDARDISED_ON = 10_000
"""At most this many training images tell mean and deviation of a head's inputs."""


@dataclass(frozen=True, slots=True)
class ExitPart:
    """N images in V views as one exit's head sees them: kept as they were cached, single precision a batch at a time."""

    statistics_NVS: Tensor
    """Of the pooling parts that the head looks at."""
    earlier_NVEC: Tensor
    """Calibrated class logits of the exits before; none outside a cascade."""
    labels_N: Tensor

    def inputs(self, head: Head, rows_N: Tensor, view_N: Tensor) -> Tensor:
        """What the head gets of one view each of these images, shape (rows, inputs), in memory of its own."""
        return head.inputs(self.statistics_NVS[rows_N, view_N].float(), self.earlier_NVEC[rows_N, view_N])

    @torch.no_grad()
    def logits(self, head: Head) -> Tensor:
        """Class logits of every view, shape (N, V, classes)."""
        chunks = zip(torch.split(self.statistics_NVS, CHUNK), torch.split(self.earlier_NVEC, CHUNK), strict=True)
        return torch.cat([head(head.inputs(statistics.float(), earlier)) for statistics, earlier in chunks])


@dataclass(frozen=True, slots=True)
class Lesson:
    """What every candidate for one exit learns from and is judged by."""

    train: ExitPart
    teacher_NVC: Tensor
    """The plain full network's class logits of every training view."""
    standardise: Standardiser
    fit_inputs_NI: Tensor
    """The fit part's plain views, standardised."""
    fit_labels_N: Tensor

    def fit_losses(self, head: Head) -> Tensor:
        """Nats of every frame of the fit part at the temperature that is best there, since the head will get one."""
        with torch.no_grad():
            logits_NC = head(self.fit_inputs_NI)
        temperature = fit_temperature(logits_NC, self.fit_labels_N)
        return F.cross_entropy(logits_NC / temperature, self.fit_labels_N, reduction="none")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A head for standardised inputs, trained with one weight decay and one dropout, as it was after its best epoch.

    One that was trained with the backbone, and not since, has epoch 0.
    """

    weight_decay: float
    dropout: float
    epoch: int
    fit_losses_N: Tensor
    """See Lesson.fit_losses."""
    head: Head

    @property
    def fit_nll(self) -> float:
        """Nats a frame on the fit part."""
        return float(self.fit_losses_N.mean())

    def report(self) -> dict[str, Any]:
        """For a result file."""
        nll = round(self.fit_nll, 5)
        return {"weight_decay": self.weight_decay, "dropout": self.dropout, "epoch": self.epoch, "fit_nll": nll}


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The likeliest on the fit part, but where one came with the backbone and is not a standard error behind: that one.

    It has seen far more views of every image than are cached, and the best of many epochs on a few thousand frames may be so by
    chance: the one-standard-error rule (Breiman et al. 1984, section 3.4.3), of the paired difference.
    """
    best = min(candidates, key=lambda candidate: candidate.fit_nll)
    for candidate in candidates:
        gain_N = candidate.fit_losses_N - best.fit_losses_N
        if candidate.epoch == 0 and float(gain_N.mean()) <= float(gain_N.std()) / len(gain_N) ** 0.5:
            return candidate
    return best


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


def head_loss(logits_NC: Tensor, labels_N: Tensor, teacher_NC: Tensor, weight: float, temperature: float) -> Tensor:
    """(1 − w)·cross-entropy + w·T²·KL(teacher at T ‖ head at T), nats a frame; from logits (Hinton et al. 2015, section 2)."""
    student_NC, target_NC = (logits_NC / temperature).log_softmax(1), (teacher_NC / temperature).log_softmax(1)
    divergence = F.kl_div(student_NC, target_NC, reduction="batchmean", log_target=True)
    return (1 - weight) * F.cross_entropy(logits_NC, labels_N) + weight * temperature**2 * divergence


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
    standardise = Standardiser(train.inputs(head, sample_N, _random_views(train, len(sample_N), generator)), map_columns)
    plain_N = torch.zeros_like(fit.labels_N)
    fit_inputs_NI = standardise(fit.inputs(head, torch.arange(len(plain_N)), plain_N))
    lesson = Lesson(train, teacher_NVC, standardise, fit_inputs_NI, fit.labels_N)
    candidates = [
        _train_candidate(job, exit, lesson, decay, dropout, advance)
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


def _train_candidate(
    job: JobConfig, exit: int, lesson: Lesson, decay: float, dropout: float, advance: Callable[[int], None]
) -> Candidate:
    head, config = Head(job.network, exit), job.heads
    generator = torch.Generator().manual_seed(derive_seed(job.fit_seed, STEP, exit, str(decay), str(dropout)))
    _initialise(head, generator)
    train, standardise = lesson.train, lesson.standardise
    count = len(train.labels_N)
    size = min(config.batch_size, count)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.peak_rate, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.peak_rate, total_steps=config.epochs * (count // size) + 1)
    best_epoch, best_N, best_state = 0, torch.full(lesson.fit_labels_N.shape, torch.inf), deepcopy(head.state_dict())
    for epoch in range(1, config.epochs + 1):
        order_N = torch.randperm(count, generator=generator)
        view_N = _random_views(train, count, generator)  # one view of each image an epoch
        for batch_N in torch.split(order_N, size)[: count // size]:
            inputs_NI = train.inputs(head, batch_N, view_N[batch_N]).sub_(standardise.mean_C).div_(standardise.deviation_C)
            logits_NC = _with_dropout(head, inputs_NI, dropout, generator)
            labels_N, teacher_NC = train.labels_N[batch_N], lesson.teacher_NVC[batch_N, view_N[batch_N]]
            loss = head_loss(logits_NC, labels_N, teacher_NC, config.distillation, config.distillation_temperature)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        losses_N = lesson.fit_losses(head)
        if losses_N.mean() < best_N.mean():
            best_epoch, best_N, best_state = epoch, losses_N, deepcopy(head.state_dict())
        advance(1)
    head.load_state_dict(best_state)
    return Candidate(decay, dropout, best_epoch, best_N, head)


def _with_dropout(head: Head, inputs_NI: Tensor, share: float, generator: Generator) -> Tensor:
    """Class logits with a share of the inputs and of the hidden units left out, which serving never does."""
    hidden, activation, output = head
    logits_NC: Tensor = output(drop(activation(hidden(drop(inputs_NI, share, generator))), share, generator))
    return logits_NC


def drop(values_NI: Tensor, share: float, generator: Generator) -> Tensor:
    """Zero each value with this probability, in steps of 1/256, and scale the others up (Srivastava et al. 2014)."""
    if not share:
        return values_NI
    # a byte a value, eight bytes a draw: Bernoulli draws would take longer than the layer that follows
    words = torch.empty(-(-values_NI.numel() // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    bytes_NI = words.view(torch.uint8)[: values_NI.numel()].view_as(values_NI)
    kept = max(round((1 - share) * 256), 1)
    return values_NI * (bytes_NI < kept) * (256 / kept)


def _random_views(part: ExitPart, count: int, generator: Generator) -> Tensor:
    return torch.randint(part.statistics_NVS.shape[1], (count,), generator=generator)


def _initialise(head: Head, generator: Generator) -> None:
    """Kaiming-uniform weights, zero biases, from a recorded seed."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _say(folder: Path, report: dict[str, Any]) -> None:
    before, after = report["select_before"], report["select_after"]
    sureness = "–" if after["auroc"] is None else f"{after['auroc']:.3f}"
    say(
        folder.name,
        f"exit {report['exit']}: accuracy {after['accuracy']:.4f}, nll {before['nll']:.3f} → {after['nll']:.3f}, "
        f"ece {before['ece']:.3f} → {after['ece']:.3f}, auroc {sureness}, temperature {report['temperature']:.2f}, "
        f"weight decay {report['weight_decay']:g}, dropout {report['dropout']:g}, epoch {report['epoch']}",
    )
