"""What a camera may do to a frame: noise, blur, fog, exposure, something in the way, each at severities 1 to 5.

Pure functions of uint8 images, a severity and a seed, which draws all but the strength: under one seed a higher severity is
more of the same. The kinds follow Hendrycks and Dietterich 2019; the strengths are this module's own, lengths being fractions
of the image's side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SEVERITIES = (1, 2, 3, 4, 5)

NOISE_DEVIATION = (0.03, 0.06, 0.1, 0.15, 0.22)
"""Of white noise, over the range of pixels."""
BLUR_DEVIATION = (0.014, 0.021, 0.031, 0.045, 0.065)
"""Of the Gaussian, over the side."""
FOG_OPACITY = (0.25, 0.4, 0.55, 0.7, 0.85)
"""Where the fog is thickest."""
FOG_RGB = (196.0, 198.0, 202.0)
FOG_THINNEST = 0.4
"""Opacity where the fog is thinnest, over that where it is thickest."""
FOG_EXPONENT = 1.7
"""Of the fog's spectrum: the larger, the smoother."""
EXPOSURE_FACTOR = (1.25, 1.6, 2.0, 2.7, 4.0)
"""Pixels are multiplied by it in half of the images, and divided by it in the others."""
OCCLUDED_SIDE = (0.2, 0.3, 0.4, 0.5, 0.6)
"""Side of the square in the way, over the image's."""

Corruption = Callable[[Tensor, int, int], Tensor]
"""uint8 images (N, C, H, W), severity 1…5, seed → uint8 images. Raises ValueError for another severity."""


def noise(images_NCHW: Tensor, severity: int, seed: int) -> Tensor:
    """White Gaussian noise, as of a sensor in the dark."""
    white_NCHW = torch.randn(images_NCHW.shape, generator=_generator(seed))
    return _as_pixels(images_NCHW + 255 * _strength(NOISE_DEVIATION, severity) * white_NCHW)


def blur(images_NCHW: Tensor, severity: int, seed: int) -> Tensor:
    """A Gaussian blur, as of a lens out of focus; the seed has no part in it."""
    deviation = _strength(BLUR_DEVIATION, severity) * images_NCHW.shape[-1]
    radius = math.ceil(3 * deviation)
    taps = torch.exp(-((torch.arange(-radius, radius + 1) / deviation) ** 2) / 2)
    kernel = (taps / taps.sum()).expand(images_NCHW.shape[1], 1, 1, -1)
    padded = F.pad(images_NCHW.float(), (radius,) * 4, mode="reflect")
    rows = F.conv2d(padded, kernel, groups=len(kernel))
    return _as_pixels(F.conv2d(rows, kernel.transpose(2, 3), groups=len(kernel)))


def fog(images_NCHW: Tensor, severity: int, seed: int) -> Tensor:
    """Fog or smoke in clouds of every size, another sky for each image; the images are RGB."""
    count, _, height, width = images_NCHW.shape
    opacity_NHW = FOG_THINNEST + (1 - FOG_THINNEST) * _clouds(count, height, width, _generator(seed))
    opacity_N1HW = _strength(FOG_OPACITY, severity) * opacity_NHW[:, None]
    return _as_pixels(torch.lerp(images_NCHW.float(), torch.tensor(FOG_RGB).view(-1, 1, 1), opacity_N1HW))


def brightness(images_NCHW: Tensor, severity: int, seed: int) -> Tensor:
    """An exposure too long in about half of the images, too short in the others."""
    too_long_N = torch.rand(len(images_NCHW), generator=_generator(seed)) < 0.5
    factor = _strength(EXPOSURE_FACTOR, severity)
    return _as_pixels(images_NCHW * torch.where(too_long_N, factor, 1 / factor).view(-1, 1, 1, 1))


def occlusion(images_NCHW: Tensor, severity: int, seed: int) -> Tensor:
    """A square of one colour in the way, anywhere in the image but wholly inside it."""
    count, channels, height, width = images_NCHW.shape
    generator = _generator(seed)
    place_2N1 = torch.rand(2, count, 1, generator=generator)
    colour_NC11 = torch.randint(0, 256, (count, channels, 1, 1), generator=generator, dtype=torch.uint8)
    share = _strength(OCCLUDED_SIDE, severity)
    inside = []
    for place_N1, length in zip(place_2N1, (height, width), strict=True):
        side = round(share * length)
        start_N1 = (place_N1 * (length - side)).floor()
        inside.append((torch.arange(length) >= start_N1) & (torch.arange(length) < start_N1 + side))
    covered_NHW = inside[0][:, :, None] & inside[1][:, None, :]
    return torch.where(covered_NHW[:, None], colour_NC11, images_NCHW)


CORRUPTIONS: Mapping[str, Corruption] = {
    "noise": noise,
    "blur": blur,
    "fog": fog,
    "brightness": brightness,
    "occlusion": occlusion,
}


def _strength(strengths: tuple[float, ...], severity: int) -> float:
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity} is none of {SEVERITIES}")
    return strengths[severity - 1]


def _generator(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def _as_pixels(images_NCHW: Tensor) -> Tensor:
    return images_NCHW.round().clamp(0, 255).to(torch.uint8)


def _clouds(count: int, height: int, width: int, generator: Generator) -> Tensor:
    """Random fields from 0 to 1, each with both in it, shape (count, height, width): white noise with a falling spectrum."""
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    frequency[0, 0] = math.inf  # no constant part
    spectrum = torch.fft.rfft2(torch.randn(count, height, width, generator=generator))
    fields_NHW: Tensor = torch.fft.irfft2(spectrum / frequency**FOG_EXPONENT, s=(height, width))
    low, high = fields_NHW.amin((1, 2), keepdim=True), fields_NHW.amax((1, 2), keepdim=True)
    return (fields_NHW - low) / (high - low)
