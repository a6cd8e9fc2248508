"""Step 2: the pooled statistics of every exit on disk, one memory-mapped file an exit (paper, section 4.2)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from offramp_model.network import MultiExitNetwork
from offramp_training.assembly import load_backbone
from offramp_training.config import JobConfig
from offramp_training.convolution import choose_convolution
from offramp_training.data import LabelledImages, derive_seed, load_images, normalise, random_crop_flip
from offramp_training.run_directory import RunDirectory, progress_bar, read_json, say, write_json

STEP = "cache"


@dataclass(frozen=True, slots=True)
class Features:
    """Statistics of N images in V views, as `MultiExitNetwork.statistics` gives them: for each exit (N, V, statistics).

    Lazily read; `labels_N` int64.
    """

    statistics: list[Tensor]
    labels_N: Tensor

    def plain(self, rows_N: Tensor) -> list[Tensor]:
        """The unchanged view of some images, float32: for each exit (rows, statistics)."""
        return [statistics_NVS[rows_N, 0].float() for statistics_NVS in self.statistics]

    def all_views(self, rows_N: Tensor) -> list[Tensor]:
        """Every view of some images as a row of its own, float32: for each exit (rows·V, statistics)."""
        return [statistics_NVS[rows_N].flatten(0, 1).float() for statistics_NVS in self.statistics]

    @property
    def views(self) -> int:
        """V, the views of each image."""
        return self.statistics[0].shape[1]


def cache_features(job: JobConfig, run: RunDirectory) -> None:
    """Write the features of the training and the held-out images; the test split stays unread here."""
    started = time.time()
    folder = run.folder(STEP)
    network = load_backbone(job, run)
    data = load_images(job.data, "train", job.network.input_size)
    split = np.load(run.root / "backbone" / "split.npz")
    parts = (("train", job.cache.train_views), ("held_out", job.cache.held_out_views))
    for part, views in parts:
        rows_N = torch.from_numpy(split[part])
        chosen = LabelledImages(data.images_NCHW[rows_N], data.labels_N[rows_N], data.classes)
        write_features(job, run, network, chosen, folder, part, views)
    seconds = sum(read_json(folder / f"{part}.json")["seconds"] for part, _ in parts)
    run.finish(STEP, job, started, earlier_seconds=max(0.0, seconds - (time.time() - started)))


@torch.no_grad()
def write_features(
    job: JobConfig, run: RunDirectory, network: MultiExitNetwork, data: LabelledImages, folder: Path, part: str, views: int
) -> None:
    """Write <part>-exit<k>.npy and <part>-labels.npy; goes on after the last whole chunk of a cut-off attempt."""
    backbone = run.result("backbone")
    progress = folder / f"{part}.json"
    state: dict[str, Any] = read_json(progress) if progress.exists() else {"images": 0, "seconds": 0.0}
    done: int = state["images"]
    if done:
        say(folder.name, f"{part}: resuming after {done:,} of {len(data):,} images")
    files = [
        np.lib.format.open_memmap(
            folder / f"{part}-exit{exit}.npy",
            mode="r+" if done else "w+",
            dtype=np.dtype(job.cache.stored_as),
            shape=(len(data), views, columns),
        )
        for exit, columns in enumerate(network.statistics_columns(job.cache.feature_maps), start=1)
    ]
    np.save(folder / f"{part}-labels.npy", data.labels_N.numpy())
    fabric = Fabric(accelerator=job.backbone.accelerator, devices=1, precision=job.cache.precision)
    fabric.to_device(network)
    choose_convolution(network, job, job.cache.precision, fabric.device)
    begun = time.time() - state["seconds"]
    with progress_bar(f"features, {part}", len(data) * views) as advance:
        advance(done * views)
        for first in range(done, len(data), job.cache.batch_size):
            rows = slice(first, first + job.cache.batch_size)
            for view in range(views):
                seed = derive_seed(job.seed, STEP, part, first, view)
                images = _view(data.images_NCHW[rows], view, job.backbone.crop_padding, seed)
                with fabric.autocast():
                    normalised = normalise(images, backbone["mean"], backbone["std"]).to(fabric.device)
                    statistics = network.statistics(normalised, job.cache.feature_maps)
                for file, statistics_NS in zip(files, statistics, strict=True):
                    file[rows, view] = statistics_NS.float().cpu().numpy()
                advance(len(images))
            for file in files:
                file.flush()
            write_json(progress, {"images": min(rows.stop, len(data)), "seconds": round(time.time() - begun, 1)})
    say(folder.name, f"{part}: {len(data):,} images in {views} view{'s' * (views > 1)}, {time.time() - begun:.0f} s")


def open_features(folder: Path, part: str, exits: int) -> Features:
    """Map the files that write_features left."""
    # copy-on-write, since torch wants memory that it might write to
    statistics = [torch.from_numpy(np.load(folder / f"{part}-exit{exit}.npy", mmap_mode="c")) for exit in range(1, exits + 1)]
    return Features(statistics, torch.from_numpy(np.load(folder / f"{part}-labels.npy")))


def _view(images_NCHW: Tensor, view: int, padding: int, seed: int) -> Tensor:
    """View 0 is the image as it is, 1 its mirror; those after are random crops, half of them mirrored."""
    if view == 0:
        return images_NCHW
    if view == 1:
        return images_NCHW.flip(-1)
    return random_crop_flip(images_NCHW, padding, True, torch.Generator().manual_seed(seed))
