"""Step 1: train the plain network (paper, section 4.1), or network and exits together; whatever comes after keeps it frozen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from offramp_model.costs import cost_table
from offramp_model.network import MultiExitNetwork
from offramp_training.assembly import new_network
from offramp_training.config import JobConfig, JobError
from offramp_training.convolution import backbone_precision, choose_convolution
from offramp_training.data import (
    LabelledImages,
    channel_statistics,
    cut_out,
    load_images,
    normalise,
    random_crop_flip,
    resize,
    split_held_out,
)
from offramp_training.joint import JointNetwork, joint_loss
from offramp_training.pruning import FULL_SHARE, prune
from offramp_training.run_directory import RunDirectory, progress_bar, say
from offramp_training.sections import BackboneConfig
from offramp_training.teacher import TaughtNetwork, taught_loss

STEP = "backbone"


@dataclass(frozen=True, slots=True)
class _Images:
    """The training split in the training device's memory, its two parts, and how its pixels are normalised."""

    data: LabelledImages
    train_N: Tensor
    held_out_N: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Task:
    """What is trained: a module from images to class logits, (N, classes) or (N, outputs, classes), and its losses, (N,).

    Of several outputs the last is the plain full network's. `result` gives the network to keep.
    """

    module: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    result: Callable[[], MultiExitNetwork]


def train_backbone(job: JobConfig, run: RunDirectory) -> None:
    """Write backbone.safetensors and split.npz; a checkpoint an epoch makes a cut-off run resumable."""
    started = time.time()
    config, folder = job.backbone, run.folder(STEP)
    if config.joint is not None and job.network.head_kind == "conv":
        raise JobError("network.head_kind: backbone.joint trains heads of kind `pooled_stats` or `gap_mlp`, not `conv`")
    precision = backbone_precision(config)
    fabric = Fabric(accelerator=config.accelerator, devices=config.devices, precision=precision)
    fabric.launch()
    fabric.seed_everything(job.seed, verbose=False)
    images = _load(job, fabric.device)
    if fabric.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # batches are all alike
        torch.set_float32_matmul_precision("high")  # TF32 for what is not in bfloat16, as cuDNN's convolutions have it anyway
    network = new_network(job.network)
    if config.start_from is not None:
        load_weights(network, config.start_from, "start_from", new_classes=True)
    choose_convolution(network, job, precision, fabric.device)
    task = _task(job, network, fabric.device)
    task.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotations lack it
    if config.compile:
        task.module.compile()
    model, optimizer = fabric.setup(task.module, _optimizer(task.module, config), move_to_device=True)
    sizes = [phase.size for phase in config.phases for _ in range(phase.epochs)]
    losses_N = torch.zeros(len(images.train_N))
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "losses": losses_N, "history": [], "seconds": 0.0}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        fabric.load(checkpoint, state)
        say(STEP, f"resuming after epoch {len(state['history'])} of {len(sizes)}")
    elif fabric.is_global_zero:
        np.savez(folder / "split.npz", train=images.train_N.cpu().numpy(), held_out=images.held_out_N.cpu().numpy())
    earlier_seconds = state["seconds"]

    for epoch in range(len(state["history"]), len(sizes)):
        size, begun = sizes[epoch], time.time()
        generator = torch.Generator().manual_seed(hash((job.seed, epoch)) % 2**63)  # of integers, so alike in every process
        pruning = config.pruning if epoch < (1 - FULL_SHARE) * len(sizes) else 0.0
        positions_P, weight_N = prune(state["losses"], pruning, generator)
        plan = _Epoch(epoch / len(sizes), 1 / len(sizes), size, positions_P, weight_N)
        loss, state["losses"] = _train_epoch(
            fabric, (model, optimizer), task.loss, images, plan, state["losses"], config, generator
        )
        accuracies = _held_out_accuracies(model, images, size)
        seconds, count = time.time() - begun, len(positions_P)
        state["history"].append({"epoch": epoch + 1, "size": size, "images": count, "loss": loss, **_named(accuracies)})
        state["seconds"] += seconds
        _save(fabric, checkpoint, state)
        said = ", ".join(f"{accuracy:.4f}" for accuracy in accuracies)
        seen = f"{count:,} images at {size} px"
        say(STEP, f"epoch {epoch + 1}/{len(sizes)}: {seen}, loss {loss:.3f}, held-out {said}, {seconds:.0f} s")

    if fabric.is_global_zero:
        accuracies = _held_out_accuracies(model, images, job.network.input_size)
        tensors = {name: tensor.contiguous().cpu() for name, tensor in task.result().state_dict().items()}
        save_file(tensors, folder / "backbone.safetensors")
        figures = {
            "earlier_seconds": earlier_seconds,
            "precision": precision,
            "classes": images.data.classes,
            "mean": images.mean,
            "std": images.std,
            **_named(accuracies),
            "history": state["history"],
        }
        run.finish(STEP, job, started, **figures)
        say(STEP, f"done: held-out accuracy of the full network {accuracies[-1]:.4f}")
    fabric.barrier()


def _load(job: JobConfig, device: torch.device) -> _Images:
    data = load_images(job.data, "train", job.network.input_size)
    if len(data.classes) != job.network.classes:
        raise JobError(f"network.classes is {job.network.classes} and the data has {len(data.classes)} classes: make them agree")
    train_N, held_out_N = split_held_out(data.labels_N, job.data.held_out_fraction, job.seed)
    if len(train_N) < job.backbone.batch_size:
        raise JobError(f"backbone.batch_size is {job.backbone.batch_size} and there are {len(train_N)} training images")
    mean, std = channel_statistics(data.images_NCHW[train_N])
    return _Images(data.to(device), train_N.to(device), held_out_N.to(device), mean, std)


def load_weights(network: MultiExitNetwork, path: Path, field: str, *, new_classes: bool = False) -> None:
    """Take over the backbone of a safetensors file, and its classifier; with `new_classes` that only where it has as many.

    Raises JobError, naming the field of the backbone's settings, where the file can't be read or holds another network.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise JobError(f"backbone.{field}: {path} can't be read ({error})") from error
    wanted = {name: t for name, t in network.state_dict().items() if not name.startswith(("heads.", "routers."))}
    unfit = [name for name, tensor in wanted.items() if name not in tensors or tensors[name].shape != tensor.shape]
    if any(not (new_classes and name.startswith("classifier.")) for name in unfit):
        raise JobError(f"backbone.{field}: {path} holds another network: {unfit[0]} is missing or has another shape")
    network.load_state_dict({name: tensors[name] for name in wanted if name not in unfit}, strict=False)


def _task(job: JobConfig, network: MultiExitNetwork, device: torch.device) -> _Task:
    smoothing = job.backbone.label_smoothing
    if (config := job.backbone.joint) is None:
        network.heads.requires_grad_(False)
        if (teaching := job.backbone.teacher) is not None:
            teacher = new_network(job.network)
            load_weights(teacher, teaching.weights, "teacher.weights")
            taught = TaughtNetwork(network, teacher)
            return _Task(taught, partial(taught_loss, config=teaching, label_smoothing=smoothing), lambda: network)
        return _Task(network, partial(F.cross_entropy, reduction="none", label_smoothing=smoothing), lambda: network)
    joint, cost_K = JointNetwork(network), torch.tensor(cost_table(job.network).ratios, device=device)
    return _Task(joint, partial(joint_loss, cost_K=cost_K, config=config, label_smoothing=smoothing), joint.folded)


def _optimizer(module: nn.Module, config: BackboneConfig) -> torch.optim.Optimizer:
    # no decay on norms and biases (Goyal et al. 2017, section 5.3)
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.peak_rate, momentum=config.momentum, nesterov=True)


def _save(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    beside = path.with_suffix(".partial")
    fabric.save(beside, state)
    if fabric.is_global_zero:
        beside.replace(path)
    fabric.barrier()


@dataclass(frozen=True, slots=True)
class _Epoch:
    """Where an epoch lies in the training, as shares of it, and what it sees: positions among the training images."""

    begin: float
    length: float
    size: int
    positions_P: Tensor
    weight_N: Tensor


def _train_epoch(
    fabric: Fabric,
    training: tuple[Any, Any],
    losses_of: Callable[[Tensor, Tensor], Tensor],
    images: _Images,
    plan: _Epoch,
    losses_N: Tensor,
    config: BackboneConfig,
    generator: torch.Generator,
) -> tuple[float, Tensor]:
    """One pass; every device takes its share of each batch. Returns the mean loss in nats and every image's last one."""
    model, optimizer = training
    model.train()
    order_P = plan.positions_P[torch.randperm(len(plan.positions_P), generator=generator)].to(fabric.device)
    batches = torch.split(order_P, config.batch_size)[: len(order_P) // config.batch_size]
    # nothing is read back before the epoch is over: a GPU would wait for the host
    seen_N, weight_N = torch.zeros_like(losses_N, device=fabric.device), plan.weight_N.to(fabric.device)
    with progress_bar(f"backbone at {plan.size} px", len(batches) * config.batch_size) as advance:
        for step, batch_B in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = _rate(plan.begin + plan.length * step / len(batches), config)
            # every device draws the whole batch's crops, so that the result does not depend on how many there are
            batch_N = images.train_N[batch_B]
            cropped = random_crop_flip(images.data.images_NCHW[batch_N], config.crop_padding, config.flip, generator)
            share = slice(fabric.global_rank, None, fabric.world_size)
            batch_NCHW = normalise(cropped, images.mean, images.std)
            if config.cut_out:
                batch_NCHW = cut_out(batch_NCHW, config.cut_out, generator)
            logits = model(resize(batch_NCHW[share], plan.size))
            losses_B = losses_of(logits.float(), images.data.labels_N[batch_N[share]])
            optimizer.zero_grad()
            fabric.backward((weight_N[batch_B[share]] * losses_B).mean())
            optimizer.step()
            seen_N[batch_B[share]] = losses_B.detach()
            advance(config.batch_size)
    gathered_N = fabric.all_reduce(seen_N, reduce_op="sum")
    assert isinstance(gathered_N, Tensor)
    order_S = order_P[: len(batches) * config.batch_size].cpu()
    seen_S = gathered_N.cpu()[order_S]
    return float(seen_S.mean()), losses_N.index_copy(0, order_S, seen_S)


def _rate(progress: float, config: BackboneConfig) -> float:
    """One cycle (Smith and Topin 2018): linearly up to the peak from a 25th of it, then linearly down to nothing."""
    if progress < config.warmup_fraction:
        return config.peak_rate * (1 + 24 * progress / config.warmup_fraction) / 25
    return config.peak_rate * (1 - progress) / (1 - config.warmup_fraction)


@torch.no_grad()
def _held_out_accuracies(model: Any, images: _Images, size: int) -> list[float]:
    """Of every output of the model."""
    model.eval()
    guesses = []
    for batch_N in torch.split(images.held_out_N, 500):
        batch_NCHW = normalise(images.data.images_NCHW[batch_N], images.mean, images.std)
        logits = model(resize(batch_NCHW, size))
        guesses.append(logits.argmax(-1).view(len(batch_N), -1))
    right_NE = torch.cat(guesses) == images.data.labels_N[images.held_out_N, None]
    accuracies: list[float] = right_NE.double().mean(0).tolist()
    return accuracies


def _named(accuracies: list[float]) -> dict[str, Any]:
    """For a result file: the plain full network's and, where they were trained with it, the exits'."""
    *exits, full = accuracies
    return {"held_out_accuracy": full} | ({"exit_accuracies": exits} if exits else {})
