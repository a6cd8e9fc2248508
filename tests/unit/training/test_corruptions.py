"""Corruptions: uint8 to uint8, functions of their seed, and the more the severer."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp_training.corruptions import CORRUPTIONS, OCCLUDED_SIDE, SEVERITIES, Corruption, fog, occlusion
from offramp_training.data import synthetic_images

IMAGES = synthetic_images(40, 24, seed=3).images_NCHW
each = pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=CORRUPTIONS)


def distances(images_NCHW: Tensor, corrupt: Corruption, seed: int) -> list[float]:
    """Mean squared distance to the original at each severity."""
    corrupted = [corrupt(images_NCHW, severity, seed) for severity in SEVERITIES]
    return [float((images.double() - images_NCHW.double()).square().mean()) for images in corrupted]


@each
def test_pixels_in_pixels_out_and_the_input_stays(corrupt: Corruption) -> None:
    before = IMAGES.clone()
    for severity in SEVERITIES:
        images = corrupt(IMAGES, severity, 1)
        assert (images.dtype, images.shape) == (torch.uint8, IMAGES.shape)
        assert not torch.equal(images, IMAGES)
    assert torch.equal(IMAGES, before)


@each
def test_the_seed_decides_it_all(corrupt: Corruption) -> None:
    torch.manual_seed(0)
    first = corrupt(IMAGES, 3, 1)
    torch.manual_seed(1)
    assert torch.equal(corrupt(IMAGES, 3, 1), first)
    if corrupt is not CORRUPTIONS["blur"]:
        assert not torch.equal(corrupt(IMAGES, 3, 2), first)


@each
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_the_severer_the_further_from_the_original(corrupt: Corruption, seed: int) -> None:
    rising = distances(IMAGES[:8], corrupt, seed)
    assert rising[0] > 0
    assert all(milder < severer for milder, severer in pairwise(rising))


@each
@pytest.mark.parametrize("severity", [0, 6, -1])
def test_there_are_five_severities(corrupt: Corruption, severity: int) -> None:
    with pytest.raises(ValueError, match=f"severity {severity} is none of"):
        corrupt(IMAGES, severity, 0)


def test_fog_is_smooth_and_its_own_for_each_image() -> None:
    black = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    clouds = fog(black, 5, 0)[:, 0].double()
    assert (clouds.flatten(1).std(1) > 5).all()
    assert (clouds.diff(dim=2).abs().mean((1, 2)) < clouds.flatten(1).std(1) / 2).all()
    assert not torch.equal(clouds[0], clouds[1])


def test_an_occlusion_is_a_square_of_one_colour_inside_a_larger_one() -> None:
    images = torch.full((30, 3, 20, 20), 7, dtype=torch.uint8)
    covered = [(occlusion(images, severity, 5) != images).any(1) for severity in SEVERITIES]
    for share, mask_NHW in zip(OCCLUDED_SIDE, covered, strict=True):
        assert (mask_NHW.sum((1, 2)) == round(share * 20) ** 2).all()
        colours = occlusion(images, SEVERITIES[-1], 5).permute(0, 2, 3, 1)[covered[-1]].view(30, -1, 3)
        assert (colours == colours[:, :1]).all()
    for milder, severer in pairwise(covered):
        assert (severer | ~milder).all()


def test_exposure_errs_both_ways() -> None:
    images = torch.full((40, 3, 4, 4), 60, dtype=torch.uint8)
    assert CORRUPTIONS["brightness"](images, 4, 0).unique().tolist() == [22, 162]
