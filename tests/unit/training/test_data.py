"""Image sources, the split, and augmentation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from offramp_training.config import JobError
from offramp_training.data import (
    channel_statistics,
    cut_out,
    derive_seed,
    load_images,
    normalise,
    random_crop_flip,
    resize,
    split_held_out,
    synthetic_images,
)
from offramp_training.sections import DataConfig

CIFAR10 = os.environ.get("OFFRAMP_CIFAR10")


@pytest.fixture
def image_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """train/<class>/* and test/<class>/* with PNG and JPEG, grey and large images among them."""
    monkeypatch.delenv("OFFRAMP_DATA", raising=False)
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        for label, name in enumerate(("cat", "ant")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                pixels[..., label] = 255
                Image.fromarray(pixels).save(folder / f"{index}.png")
            Image.new("L", (20, 12), 128).save(folder / "grey.jpg")
    return tmp_path


def test_folder_source(image_folder: Path) -> None:
    data = load_images(DataConfig(root=image_folder), "train", 8)
    assert data.classes == ("ant", "cat")
    assert data.images_NCHW.shape == (12, 3, 8, 8)
    assert data.images_NCHW.dtype == torch.uint8
    assert data.labels_N.tolist() == [0] * 6 + [1] * 6
    assert bool((data.images_NCHW[:5, 1] == 255).all()), "ants have a full green channel"
    assert bool((data.images_NCHW[5] == 128).all()), "a grey image of another size becomes RGB of this one"
    assert len(load_images(DataConfig(root=image_folder), "test", 8)) == 6


def test_the_environment_names_the_folder(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRAMP_DATA", str(image_folder))
    assert len(load_images(DataConfig(root=Path("/nowhere")), "train", 8)) == 12


def test_sources_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OFFRAMP_DATA", raising=False)
    with pytest.raises(JobError, match=r"data\.root is not set"):
        load_images(DataConfig(), "train", 8)
    with pytest.raises(JobError, match=r"no folder .*train"):
        load_images(DataConfig(root=tmp_path), "train", 8)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(JobError, match="holds no images"):
        load_images(DataConfig(root=tmp_path), "train", 8)
    with pytest.raises(JobError, match=r"data\.hub_name is not set"):
        load_images(DataConfig(kind="hub"), "train", 8)


@given(st.lists(st.integers(4, 40), min_size=1, max_size=5), st.sampled_from([0.2, 0.25, 0.4, 0.5]), st.integers(0, 2**31))
def test_split_is_stratified_disjoint_and_repeatable(counts: list[int], fraction: float, seed: int) -> None:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    train, held_out = split_held_out(labels, fraction, seed)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        assert int((labels[held_out] == label).sum()) == round(count * fraction)
    again = split_held_out(labels, fraction, seed)
    assert torch.equal(train, again[0])
    assert torch.equal(held_out, again[1])


def test_a_class_too_small_to_split_is_named() -> None:
    with pytest.raises(JobError, match="class 1 has 2 images"):
        split_held_out(torch.tensor([0] * 20 + [1] * 2), 0.1, 0)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), st.booleans(), st.integers(0, 2**31))
def test_every_augmented_image_is_a_crop_or_its_mirror(count: int, padding: int, flip: bool, seed: int) -> None:
    images = torch.randint(0, 256, (count, 3, 6, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    result = random_crop_flip(images, padding, flip, torch.Generator().manual_seed(seed))
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (padding, padding), (padding, padding)), mode="reflect")
    for index in range(count):
        crops = [padded[index, :, y : y + 6, x : x + 6] for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
        if flip:
            crops += [crop[..., ::-1] for crop in crops]
        assert any(np.array_equal(result[index].numpy(), crop) for crop in crops)


@given(st.integers(1, 6), st.integers(4, 9), st.integers(1, 12), st.integers(0, 2**31))
def test_a_square_is_cut_out_of_every_image(count: int, side: int, size: int, seed: int) -> None:
    cut = cut_out(torch.ones(count, 3, side, side + 2), size, torch.Generator().manual_seed(seed))
    for image_CHW in cut:
        assert torch.equal(image_CHW[0], image_CHW[1])
        rows, columns = (image_CHW[0] == 0).any(1).nonzero(), (image_CHW[0] == 0).any(0).nonzero()
        # what is left of the square inside the image is a solid rectangle, and at least its centre
        height, width = len(rows), len(columns)
        assert 1 <= height <= min(size, side)
        assert 1 <= width <= min(size, side + 2)
        assert int((image_CHW[0] == 0).sum()) == height * width
        assert int(rows[-1] - rows[0]) == height - 1


def test_normalised_images_have_zero_mean_and_unit_deviation() -> None:
    images = synthetic_images(50, 16, seed=3).images_NCHW
    result = normalise(images, *channel_statistics(images))
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(result.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_resize_keeps_the_right_size_and_shrinks_the_rest() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert resize(images, 16) is images
    assert resize(images, 8).shape == (2, 3, 8, 8)


def test_synthetic_images_repeat() -> None:
    once, again = synthetic_images(20, 16, seed=1), synthetic_images(20, 16, seed=1)
    assert torch.equal(once.images_NCHW, again.images_NCHW)
    assert not torch.equal(once.images_NCHW, synthetic_images(20, 16, seed=2).images_NCHW)


def test_derived_seeds_differ_by_use_and_fit_a_generator() -> None:
    seeds = {derive_seed(0, "cache", part, first) for part in ("train", "held_out") for first in range(50)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "select") == derive_seed(0, "select")


@pytest.mark.skipif(CIFAR10 is None, reason="OFFRAMP_CIFAR10 names no image folder of CIFAR-10")
def test_cifar10_splits_into_45000_and_5000(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OFFRAMP_DATA", raising=False)
    data = load_images(DataConfig(root=Path(str(CIFAR10))), "train", 32)
    assert data.images_NCHW.shape == (50_000, 3, 32, 32)
    assert len(data.classes) == 10
    train, held_out = split_held_out(data.labels_N, 0.1, 0)
    assert (len(train), len(held_out)) == (45_000, 5_000)
    assert torch.bincount(data.labels_N[held_out]).tolist() == [500] * 10
