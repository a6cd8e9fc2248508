"""One exit's heads as they are tried: trained with one weight decay and one dropout each, and judged by held-out likelihood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from offramp_model.network import Head
from offramp_training.assembly import Standardiser
from offramp_training.calibration import fit_temperature
from offramp_training.config import JobConfig
from offramp_training.data import derive_seed
from offramp_training.distillation import distilled_loss

CHUNK = 1000
"""Images that are turned to single precision at a time."""


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


def train_candidate(
    job: JobConfig, exit: int, lesson: Lesson, decay: float, dropout: float, advance: Callable[[int], None]
) -> Candidate:
    """Train a head of this exit; it stays as it was after the epoch that is likeliest on the fit part."""
    head, config = Head(job.network, exit), job.heads
    generator = torch.Generator().manual_seed(derive_seed(job.fit_seed, "heads", exit, str(decay), str(dropout)))
    _initialise(head, generator)
    train, standardise = lesson.train, lesson.standardise
    count = len(train.labels_N)
    size = min(config.batch_size, count)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.peak_rate, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.peak_rate, total_steps=config.epochs * (count // size) + 1)
    best_epoch, best_N, best_state = 0, torch.full(lesson.fit_labels_N.shape, torch.inf), deepcopy(head.state_dict())
    for epoch in range(1, config.epochs + 1):
        order_N = torch.randperm(count, generator=generator)
        view_N = random_views(train, count, generator)  # one view of each image an epoch
        for batch_N in torch.split(order_N, size)[: count // size]:
            inputs_NI = train.inputs(head, batch_N, view_N[batch_N]).sub_(standardise.mean_C).div_(standardise.deviation_C)
            logits_NC = _with_dropout(head, inputs_NI, dropout, generator)
            labels_N, teacher_NC = train.labels_N[batch_N], lesson.teacher_NVC[batch_N, view_N[batch_N]]
            losses_B = distilled_loss(logits_NC, labels_N, teacher_NC, config.distillation, config.distillation_temperature)
            optimizer.zero_grad()
            losses_B.mean().backward()  # type: ignore[no-untyped-call]
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


def random_views(part: ExitPart, count: int, generator: Generator) -> Tensor:
    """One view of each of `count` images."""
    return torch.randint(part.statistics_NVS.shape[1], (count,), generator=generator)


def _initialise(head: Head, generator: Generator) -> None:
    """Kaiming-uniform weights, zero biases, from a recorded seed."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
