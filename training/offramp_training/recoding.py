"""What one more generation of JPEG coding costs: the test images coded once more, through the very same network."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from offramp_model.bundle import Control
from offramp_training.assembly import load_backbone, load_whole
from offramp_training.cache import open_features, write_features
from offramp_training.config import JobConfig
from offramp_training.data import LabelledImages
from offramp_training.policies import Frames, full_network, run_exits, run_policy
from offramp_training.run_directory import RunDirectory


def recode(images_NCHW: Tensor, quality: int) -> Tensor:
    """RGB images coded as JPEG with 4:2:0 chroma and decoded again, uint8, shape (N, 3, H, W)."""
    decoded = [_recode(image_HWC, quality) for image_HWC in images_NCHW.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()


def _recode(image_HWC: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def measure_recoded(
    job: JobConfig, run: RunDirectory, folder: Path, data: LabelledImages, test: Frames, control: Control, quality: int
) -> dict[str, Any]:
    """Accuracy and cost of the full network, of one control and of each exit alone, on the test images and on them recoded."""
    recoded = LabelledImages(recode(data.images_NCHW, quality), data.labels_N, data.classes)
    write_features(job, run, load_backbone(job, run), recoded, folder, "recoded", views=1)
    features = open_features(folder, "recoded", job.network.exits)
    frames = run_exits(load_whole(job, run), features.plain(torch.arange(len(data))), data.labels_N)
    return {
        "quality": quality,
        "full": {"test": full_network(test).rounded(), "recoded": full_network(frames).rounded()},
        "default": {"test": run_policy(test, control).rounded(), "recoded": run_policy(frames, control).rounded()},
        "exits": [
            {"exit": exit, "test": round(before, 5), "recoded": round(after, 5)}
            for exit, (before, after) in enumerate(zip(_accuracies(test), _accuracies(frames), strict=True), start=1)
        ],
    }


def _accuracies(frames: Frames) -> list[float]:
    accuracies: list[float] = frames.right.double().mean(0).tolist()
    return accuracies


def recoded_markdown(metrics: dict[str, Any]) -> str:
    """One paragraph; empty where it was not measured."""
    found = metrics.get("recoded")
    if not found:
        return ""
    full, default = found["full"], found["default"]
    exits = ", ".join(f"{exit['test']:.4f} → {exit['recoded']:.4f}" for exit in found["exits"])
    return f"""\
Coded as JPEG once more (quality {found["quality"]}, 4:2:0 chroma), the test images cost the full network \
{100 * (full["test"]["accuracy"] - full["recoded"]["accuracy"]):+.2f} points of accuracy
({full["test"]["accuracy"]:.4f} → {full["recoded"]["accuracy"]:.4f}), and the default \
{100 * (default["test"]["accuracy"] - default["recoded"]["accuracy"]):+.2f} ({default["test"]["accuracy"]:.4f} → \
{default["recoded"]["accuracy"]:.4f}, at cost {default["test"]["mean_cost"]:.4f} → {default["recoded"]["mean_cost"]:.4f}).
Exits alone: {exits}. Where images were coded so before, a second coding finds most of its work done:
what the first one cost is not measured by this.

"""
