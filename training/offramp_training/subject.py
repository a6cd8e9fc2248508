"""A finished run on the bench: its network as published, some test images, and what its bundle says of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from offramp_model.bundle import Control
from offramp_model.drift import DriftReference
from offramp_model.network import MultiExitNetwork
from offramp_model.outcomes import Frontier
from offramp_training.assembly import load_whole
from offramp_training.cache import open_features
from offramp_training.config import JobConfig
from offramp_training.convolution import choose_convolution
from offramp_training.data import LabelledImages, derive_seed, load_images, normalise
from offramp_training.drift import drift_scores, exits_and_confidences
from offramp_training.evaluate import STEP as EVALUATE
from offramp_training.evaluate import measure_frontier
from offramp_training.heads import fit_and_select
from offramp_training.policies import Frames, choose_exits, full_network, run_exits
from offramp_training.run_directory import RunDirectory, read_json
from offramp_training.steps import NAMES, check_config

BATCH = 250

Change = Callable[[Tensor, int], Tensor]
"""uint8 images (N, C, H, W) and the row of the first among all → what becomes of them."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is put to the test."""

    network: MultiExitNetwork
    data: LabelledImages
    """Of the test split."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    control: Control
    """The bundle's default."""
    frontier: Frontier
    """Measured on the select part, as the bundle's."""
    reference: DriftReference
    """Measured on the select part, as the bundle's."""

    @torch.no_grad()
    def run(self, change: Change, advance: Callable[[int], None]) -> Frames:
        """The whole network on every image after a change, in batches."""
        parts = []
        for first in range(0, len(self.data), BATCH):
            images = change(self.data.images_NCHW[first : first + BATCH], first)
            statistics = self.network.statistics(normalise(images, self.mean, self.std))
            parts.append(run_exits(self.network, statistics, self.data.labels_N[first : first + BATCH]))
            advance(len(images))
        return _join(parts)

    def measure(self, frames: Frames, control: Control) -> dict[str, Any]:
        """What a control gives on frames that `run` gave, beside the plain full network, and the drift scores that a server
        would show if this were its default control."""
        exit_N = choose_exits(frames, control)
        return {
            "control": control.model_dump(mode="json"),
            **frames.outcome(exit_N).rounded(),
            "full_accuracy": round(full_network(frames).accuracy, 5),
            "losses": round(loss_rate(frames, exit_N), 5),
            "drift": drift_scores(exits_and_confidences(frames, exit_N), self.reference),
        }


def loss_rate(frames: Frames, exit_N: Tensor) -> float:
    """Share of frames on which the plain full network is right and the answer at these exits (1…K) is wrong."""
    full_right_N = frames.full_logits_NC.argmax(1) == frames.labels_N
    right_N = frames.right.gather(1, exit_N[:, None] - 1).squeeze(1)
    return float((full_right_N & ~right_N).double().mean())


def load_subject(job: JobConfig, run: RunDirectory, images: int | None = None) -> Subject:
    """Put a run to the test whose evaluation has finished, on so many test images drawn at random, or on all.

    Raises JobError where a step is missing or was run with another configuration.
    """
    for name in NAMES[: NAMES.index(EVALUATE) + 1]:
        check_config(job, run, name)
    run.result(EVALUATE)
    backbone, metrics = run.result("backbone"), read_json(run.root / EVALUATE / "metrics.json")
    network, control = load_whole(job, run), Control.model_validate(metrics["default_control"])
    held_out = open_features(run.root / "cache", "held_out", job.network.exits)
    _, select_N = fit_and_select(job, held_out)
    select = run_exits(network, held_out.plain(select_N), held_out.labels_N[select_N])
    choose_convolution(network, job, "32-true", torch.device("cpu"))
    return Subject(
        network=network,
        data=_draw(load_images(job.data, "test", job.network.input_size), images, derive_seed(job.seed, "subject")),
        mean=tuple(backbone["mean"]),
        std=tuple(backbone["std"]),
        control=control,
        frontier=measure_frontier(select, control),
        reference=exits_and_confidences(select, choose_exits(select, control)),
    )


def _draw(data: LabelledImages, count: int | None, seed: int) -> LabelledImages:
    """Some of the images, in their order."""
    if count is None or count >= len(data):
        return data
    rows_N = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    return LabelledImages(data.images_NCHW[rows_N], data.labels_N[rows_N], data.classes)


def _join(parts: Sequence[Frames]) -> Frames:
    return replace(
        parts[0],
        logits_NKC=torch.cat([part.logits_NKC for part in parts]),
        router_outputs=[torch.cat(outputs) for outputs in zip(*(part.router_outputs for part in parts), strict=True)],
        full_logits_NC=torch.cat([part.full_logits_NC for part in parts]),
        labels_N=torch.cat([part.labels_N for part in parts]),
    )
