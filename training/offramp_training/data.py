"""Labelled images in memory as uint8 tensors, their split into train and held out, and batch-wise augmentation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from offramp_training.config import JobError
from offramp_training.sections import DataConfig

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """`images_NCHW` uint8, `labels_N` int64 into `classes`."""

    images_NCHW: Tensor
    labels_N: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels_N)

    def to(self, device: torch.device) -> LabelledImages:
        """The same on another device."""
        return replace(self, images_NCHW=self.images_NCHW.to(device), labels_N=self.labels_N.to(device))


def load_images(config: DataConfig, split: Split, size: int) -> LabelledImages:
    """Read one split at `size`×`size` pixels.

    Raises JobError naming the missing folder or setting.
    """
    if config.kind == "synthetic":
        count, seed = (config.synthetic_train, 1) if split == "train" else (config.synthetic_test, 2)
        return synthetic_images(count, size, seed)
    if config.kind == "hub":
        return _hub_images(config, split, size)
    root = Path(os.environ["OFFRAMP_DATA"]) if "OFFRAMP_DATA" in os.environ else config.root
    if root is None:
        raise JobError("data.root is not set: name the image folder there or in the environment variable OFFRAMP_DATA")
    return _folder_images(root / split, size)


def _folder_images(folder: Path, size: int) -> LabelledImages:
    if not folder.is_dir():
        raise JobError(f"no folder {folder}: expected {folder.name}/<class>/<image> under the data root")
    classes = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir()))
    files = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).iterdir()) if path.is_file()]
    if not files:
        raise JobError(f"{folder} holds no images: expected {folder.name}/<class>/<image>")

    def read(item: tuple[Path, int]) -> np.ndarray:
        with Image.open(item[0]) as image:
            return _as_array(image, size)

    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(read, files, chunksize=256)))
    return LabelledImages(_as_nchw(images), torch.tensor([label for _, label in files]), classes)


def _hub_images(config: DataConfig, split: Split, size: int) -> LabelledImages:
    if config.hub_name is None:
        raise JobError("data.hub_name is not set: name a data set on the Hugging Face hub, such as uoft-cs/cifar10")
    from datasets import load_dataset  # heavy, and wanted by this source alone

    rows = load_dataset(config.hub_name, split=split)
    images = np.stack([_as_array(image, size) for image in rows[config.hub_image]])
    return LabelledImages(_as_nchw(images), torch.tensor(rows[config.hub_label]), tuple(rows.features[config.hub_label].names))


def _as_array(image: Image.Image, size: int) -> np.ndarray:
    image = image.convert("RGB")
    return np.asarray(image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR))


def _as_nchw(images_NHWC: np.ndarray) -> Tensor:
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).contiguous()


SYNTHETIC_CLASSES = ("disc", "square", "cross", "stripes")


def synthetic_images(count: int, size: int, seed: int) -> LabelledImages:
    """Coloured shapes on noisy ground: some plain, some nearly drowned in noise, so that frames differ in difficulty."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size] / size - 0.5
    labels = rng.integers(len(SYNTHETIC_CLASSES), size=count)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    for index, label in enumerate(labels):
        y, x = rows - rng.uniform(-0.15, 0.15), columns - rng.uniform(-0.15, 0.15)
        radius = rng.uniform(0.2, 0.35)
        mask = (
            x**2 + y**2 < radius**2,
            np.maximum(abs(x), abs(y)) < radius * 0.8,
            (np.minimum(abs(x), abs(y)) < radius * 0.25) & (np.maximum(abs(x), abs(y)) < radius),
            np.sin(x * 40) > 0,
        )[label]
        ground, ink = rng.uniform(0, 0.4, 3), rng.uniform(0.6, 1, 3)
        noise = rng.normal(0, rng.choice([0.05, 0.45]), (size, size, 3))
        images[index] = np.clip((np.where(mask[..., None], ink, ground) + noise) * 255, 0, 255)
    return LabelledImages(_as_nchw(images), torch.from_numpy(labels), SYNTHETIC_CLASSES)


def split_held_out(labels_N: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Stratified split: indices of the training images and of the held-out ones, both ascending.

    Raises JobError when a class would have no image in one of the parts.
    """
    generator = torch.Generator().manual_seed(seed)
    train: list[Tensor] = []
    held_out: list[Tensor] = []
    for label in torch.bincount(labels_N).nonzero().flatten():
        members = torch.nonzero(labels_N == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        count = round(len(members) * fraction)
        if not 0 < count < len(members):
            raise JobError(f"class {int(label)} has {len(members)} images: too few to hold out a fraction of {fraction}")
        held_out.append(members[:count])
        train.append(members[count:])
    return torch.cat(train).sort().values, torch.cat(held_out).sort().values


def channel_statistics(images_NCHW: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel-wise mean and standard deviation of uint8 images, on the scale 0…1."""
    flat = images_NCHW.transpose(0, 1).flatten(1)
    mean = [float(channel.double().mean()) / 255 for channel in flat]
    std = [float(channel.double().std()) / 255 for channel in flat]
    return tuple(mean), tuple(std)


def normalise(images_NCHW: Tensor, mean: Iterable[float], std: Iterable[float]) -> Tensor:
    """uint8 images → float32, channel-wise zero mean and unit deviation, channels last in memory."""
    mean_C11, std_C11 = (_beside(images_NCHW, torch.tensor(tuple(values)).view(-1, 1, 1)) for values in (mean, std))
    images = images_NCHW.to(memory_format=torch.channels_last).float()
    return images.div_(255).sub_(mean_C11).div_(std_C11)


def random_crop_flip(images_NCHW: Tensor, padding: int, flip: bool, generator: Generator) -> Tensor:
    """Move each image by up to `padding` pixels (reflected at the border) and mirror half of them.

    The draws come from the CPU's generator wherever the images are, so that they are the same everywhere.
    """
    count, _, height, width = images_NCHW.shape
    padded = F.pad(images_NCHW.float(), (padding,) * 4, mode="reflect").to(images_NCHW.dtype) if padding else images_NCHW
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    rows_NH = top + torch.arange(height)
    columns_NW = left + torch.arange(width)
    if flip:
        mirrored_N1 = torch.rand(count, 1, generator=generator) < 0.5
        columns_NW = torch.where(mirrored_N1, columns_NW.flip(1), columns_NW)
    index = torch.arange(count).view(-1, 1, 1), rows_NH[:, :, None], columns_NW[:, None, :]
    index_N11, rows_NH1, columns_N1W = (_beside(padded, part) for part in index)
    # advanced indices around a slice put the channels last: (N, H, W, C)
    return padded[index_N11, :, rows_NH1, columns_N1W].permute(0, 3, 1, 2)


def cut_out(images_NCHW: Tensor, size: int, generator: Generator) -> Tensor:
    """Zero a square of `size` pixels a side in each float image, its centre anywhere in the image (DeVries and Taylor 2017).

    Parts of the square may lie outside. Zero is the mean colour of normalised images.
    """
    count, _, height, width = images_NCHW.shape
    top_N1 = torch.randint(0, height, (count, 1), generator=generator) - size // 2
    left_N1 = torch.randint(0, width, (count, 1), generator=generator) - size // 2
    rows_NH = (torch.arange(height) >= top_N1) & (torch.arange(height) < top_N1 + size)
    columns_NW = (torch.arange(width) >= left_N1) & (torch.arange(width) < left_N1 + size)
    square_N1HW = (rows_NH[:, :, None] & columns_NW[:, None, :])[:, None]
    return images_NCHW.masked_fill(_beside(images_NCHW, square_N1HW), 0.0)


def _beside(images_NCHW: Tensor, values: Tensor) -> Tensor:
    """Values on the images' device, without waiting for what it is doing."""
    return values.to(images_NCHW.device, non_blocking=True)


def resize(images_NCHW: Tensor, size: int) -> Tensor:
    """Shrink float images with anti-aliasing; the same tensor when the size is right."""
    if images_NCHW.shape[-1] == size:
        return images_NCHW
    resized = F.interpolate(images_NCHW, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.contiguous(memory_format=torch.channels_last)


def derive_seed(*parts: int | str) -> int:
    """A seed for one use of randomness, from the run's seed and the use's name; the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
