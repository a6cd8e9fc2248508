"""A run whose backbone is untrained and whose cache is made by hand: enough for the steps after the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from offramp_model.config import MAP
from offramp_model.network import MultiExitResNet
from offramp_training.cache import Features
from offramp_training.config import JobConfig, load_config
from offramp_training.run_directory import RunDirectory

CLASSES = 3
WIDTHS = (2, 3, 4)
NETWORK = f"network={{widths: {list(WIDTHS)}, blocks: [1, 1, 1], classes: {CLASSES}, input_size: 8, head_hidden: 16}}"


def tiny_job(*overrides: str) -> JobConfig:
    """Three exits, three classes, heads that train in a moment."""
    return load_config("smoke", [NETWORK, "heads.epochs=6", "heads.batch_size=20", "heads.peak_rate=0.03", *overrides])


def make_features(
    count: int, views: int, telling: Sequence[int], seed: int, strength: float = 6.0, maps: bool = False
) -> Features:
    """Noise in half precision, in which the statistics of the exits in `telling` (1…K), and their maps, carry the label."""
    generator = torch.Generator().manual_seed(seed)
    columns = MultiExitResNet(tiny_job().network).statistics_columns(maps)
    labels_N = torch.arange(count) % CLASSES
    statistics = []
    for exit, width in enumerate(columns, start=1):
        noise_NVS = torch.randn(count, views, width, generator=generator)
        direction_CS = torch.eye(CLASSES, width)
        if maps and exit < len(WIDTHS):  # class c fires channel c, in its even cells
            cells = WIDTHS[exit - 1] * MAP * MAP
            direction_CS[:, -cells:] = torch.eye(CLASSES, WIDTHS[exit - 1]).repeat_interleave(MAP * MAP, 1)
            direction_CS[:, -cells + 1 :: 2] = 0
        direction_CS *= strength * (exit in telling)
        # scales and offsets such as cached statistics have
        statistics.append(((noise_NVS + direction_CS[labels_N][:, None]) * 0.05 + 0.4).half())
    return Features(statistics, labels_N)


def make_run(root: Path, job: JobConfig, train: Features, held_out: Features) -> RunDirectory:
    """Files as the backbone and cache steps leave them."""
    run = RunDirectory(root)
    torch.manual_seed(0)
    save_file(MultiExitResNet(job.network).state_dict(), run.folder("backbone") / "backbone.safetensors")
    for part, features in (("train", train), ("held_out", held_out)):
        for exit, statistics_NVS in enumerate(features.statistics, start=1):
            np.save(run.folder("cache") / f"{part}-exit{exit}.npy", statistics_NVS.numpy())
        np.save(run.folder("cache") / f"{part}-labels.npy", features.labels_N.numpy())
    for step in ("backbone", "cache"):
        run.finish(step, job, 0.0)
    return run


def accuracy(logits_NC: Tensor, labels_N: Tensor) -> float:
    """Share of the frames that are right."""
    return float((logits_NC.argmax(-1) == labels_N).double().mean())
