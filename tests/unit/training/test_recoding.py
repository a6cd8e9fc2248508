"""One more generation of JPEG coding."""

from __future__ import annotations

import torch
from torch import Tensor

from offramp_training.recoding import recode, recoded_markdown


def change(before: Tensor, after: Tensor) -> float:
    return float((after.int() - before.int()).abs().double().mean())


def noisy_images() -> Tensor:
    return torch.randint(256, (8, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_coding_keeps_what_is_smooth_and_the_order_of_the_images() -> None:
    flat = (torch.arange(4, dtype=torch.uint8) * 60)[:, None, None, None].expand(4, 3, 16, 16).contiguous()
    coded = recode(flat, 75)
    assert (coded.shape, coded.dtype) == (flat.shape, torch.uint8)
    assert change(flat, coded) < 3


def test_lower_quality_changes_more_and_a_second_coding_less_than_the_first() -> None:
    images = noisy_images()
    once = recode(images, 75)
    assert 0 < change(once, recode(once, 75)) < 0.8 * change(images, once)
    assert change(images, once) < change(images, recode(images, 20))


def test_chroma_is_halved_in_resolution_and_brightness_is_not() -> None:
    stripes = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    stripes[..., ::2] = 255  # black and white
    colours = stripes.clone()
    colours[:, 2] = 255 - stripes[:, 0]
    colours[:, 1] = 0  # red and blue
    assert change(stripes, recode(stripes, 95)) < 10
    assert change(colours, recode(colours, 95)) > 40


def test_the_report_is_silent_where_it_was_not_measured() -> None:
    assert recoded_markdown({}) == ""
