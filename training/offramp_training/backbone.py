"""Step 1: train the plain network; everything after it keeps it frozen (paper, section 4.1)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from offramp_model.network import MultiExitResNet
from safetensors.torch import save_file
from torch import Tensor

from offramp_training.config import BackboneConfig, JobConfig
from offramp_training.data import (
    LabelledImages,
    channel_statistics,
    load_images,
    normalise,
    random_crop_flip,
    resize,
    split_held_out,
)
from offramp_training.run_directory import RunDirectory, progress_bar, say

STEP = "backbone"


def train_backbone(job: JobConfig, run: RunDirectory) -> None:
    """Write backbone.safetensors and split.npz; a checkpoint an epoch makes a cut-off run resumable."""
    started = time.time()
    config, folder = job.backbone, run.folder(STEP)
    data = load_images(job.data, "train", job.network.input_size)
    if len(data.classes) != job.network.classes:
        raise ValueError(f"the data has {len(data.classes)} classes and network.classes is {job.network.classes}: make them agree")
    train_N, held_out_N = split_held_out(data.labels_N, job.data.held_out_fraction, job.seed)
    np.savez(folder / "split.npz", train=train_N.numpy(), held_out=held_out_N.numpy())
    mean, std = channel_statistics(data.images_NCHW[train_N])

    fabric = Fabric(accelerator=config.accelerator, devices=config.devices, precision=config.precision)
    fabric.launch()
    fabric.seed_everything(job.seed, verbose=False)
    model, optimizer = fabric.setup(
        *_model_and_optimizer(job),
        move_to_device=True,
    )
    sizes = [phase.size for phase in config.phases for _ in range(phase.epochs)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config.peak_rate,
        total_steps=len(sizes) * (len(train_N) // config.batch_size) + 1,
        pct_start=config.warmup_fraction,
        anneal_strategy="linear",
        cycle_momentum=False,
        final_div_factor=1e3,
    )
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule, "history": [], "seconds": 0.0}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        fabric.load(checkpoint, state)
        say(STEP, f"resuming after epoch {len(state['history'])} of {len(sizes)}")

    for epoch in range(len(state["history"]), len(sizes)):
        size = sizes[epoch]
        begun = time.time()
        generator = torch.Generator().manual_seed(hash((job.seed, epoch)) % 2**63)
        loss = _train_epoch(fabric, model, optimizer, schedule, data, train_N, (mean, std), size, config, generator)
        accuracy = _accuracy(fabric, model, data, held_out_N, (mean, std), size)
        state["history"].append({"epoch": epoch + 1, "size": size, "loss": loss, "held_out_accuracy": accuracy})
        state["seconds"] += time.time() - begun
        _save(fabric, checkpoint, state)
        say(
            STEP,
            f"epoch {epoch + 1}/{len(sizes)} at {size} px: loss {loss:.3f}, held-out {accuracy:.4f}, {time.time() - begun:.0f} s",
        )

    if fabric.is_global_zero:
        save_file({k: v.contiguous().cpu() for k, v in model.module.state_dict().items()}, folder / "backbone.safetensors")
        accuracy = _accuracy(fabric, model, data, held_out_N, (mean, std), job.network.input_size)
        run.finish(
            STEP,
            job,
            started,
            earlier_seconds=max(0.0, state["seconds"] - (time.time() - started)),
            classes=data.classes,
            mean=mean,
            std=std,
            held_out_accuracy=accuracy,
            history=state["history"],
        )
        say(STEP, f"done: held-out accuracy of the full network {accuracy:.4f}")


def _model_and_optimizer(job: JobConfig) -> tuple[MultiExitResNet, torch.optim.Optimizer]:
    model = MultiExitResNet(job.network).to(memory_format=torch.channels_last)
    model.heads.requires_grad_(False)
    # no decay on norms and biases (Goyal et al. 2017, section 5.3)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": job.backbone.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return model, torch.optim.SGD(groups, lr=job.backbone.peak_rate, momentum=job.backbone.momentum, nesterov=True)


def _save(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    beside = path.with_suffix(".partial")
    fabric.save(beside, state)
    if fabric.is_global_zero:
        beside.replace(path)
    fabric.barrier()


def _train_epoch(
    fabric: Fabric,
    model: Any,
    optimizer: Any,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    data: LabelledImages,
    train_N: Tensor,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    size: int,
    config: BackboneConfig,
    generator: torch.Generator,
) -> float:
    """One pass over the training images; every device takes its share of each batch. Returns the mean loss in nats."""
    model.train()
    order = train_N[torch.randperm(len(train_N), generator=generator)]
    batches = order.split(config.batch_size)[: len(order) // config.batch_size]
    total = torch.zeros((), device=fabric.device)
    with progress_bar(f"backbone at {size} px", len(batches) * config.batch_size) as advance:
        for batch_N in batches:
            images = random_crop_flip(data.images_NCHW[batch_N], config.crop_padding, config.flip, generator)
            share = slice(fabric.global_rank, None, fabric.world_size)
            images = resize(normalise(images[share], *statistics), size).to(fabric.device)
            labels = data.labels_N[batch_N[share]].to(fabric.device)
            loss = F.cross_entropy(model(images).float(), labels, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.detach()
            advance(config.batch_size)
    return float(fabric.all_reduce(total, reduce_op="mean")) / len(batches)


@torch.no_grad()
def _accuracy(
    fabric: Fabric,
    model: Any,
    data: LabelledImages,
    indices_N: Tensor,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    size: int,
) -> float:
    model.eval()
    right = 0
    for batch_N in indices_N.split(500):
        images = resize(normalise(data.images_NCHW[batch_N], *statistics), size).to(fabric.device)
        right += int((model(images).argmax(1).cpu() == data.labels_N[batch_N]).sum())
    return right / len(indices_N)
