"""The built-in demo: a camera that wanders over photographs while smoke and blur come and go.

Everything is a function of the seed and the frame's number, so two runs show the same film. The photographs are those
that scikit-image ships inside its wheel; nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import ImageFilter

from offramp_client.errors import SourceError

SHOT_FRAMES = 90
"""Frames for which the camera stays with one photograph."""
LARGEST_BLUR = 0.045
"""Standard deviation of the strongest blur, over the frame's side."""
SMOKE_RGB = (150.0, 152.0, 158.0)


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph and the square in it that is worth looking at: centre and side, as fractions of width, height, width."""

    caption: str
    file: str
    x: float
    y: float
    side: float


PHOTOGRAPHS = (
    Photograph("cat", "chelsea.png", 0.52, 0.42, 0.58),
    Photograph("rocket", "rocket.jpg", 0.50, 0.50, 0.55),
    Photograph("motorcycle", "motorcycle_left.png", 0.50, 0.50, 0.55),
    Photograph("horse", "horse.png", 0.52, 0.50, 0.80),
    Photograph("astronaut", "astronaut.png", 0.45, 0.30, 0.50),
    Photograph("coffee", "coffee.png", 0.50, 0.50, 0.60),
)


@dataclass(frozen=True, slots=True, eq=False)
class DemoFrame:
    """One frame of the film."""

    image: NDArray[np.uint8]
    """(side, side, 3) RGB."""
    caption: str
    """What is seen, with the smoke and blur in words."""
    smoke: float
    """Strength of the smoke, from 0 to 1."""
    blur: float
    """Strength of the blur, from 0 to 1."""


class Demo:
    """The film: iterate over it, without end, or ask for any frame of it by number."""

    def __init__(self, seed: int = 0, side: int = 96) -> None:
        """Load the photographs.

        Args:
            seed: chooses the camera's way, the smoke and the order of the photographs.
            side: height and width of a frame, in pixels.

        Raises:
            SourceError: a photograph is not where scikit-image ships it.
        """
        random = np.random.default_rng(seed)
        self._side = side
        # The cat comes first under every seed: it is the one of them that CIFAR-10's network knows best.
        order = [0, *(1 + random.permutation(len(PHOTOGRAPHS) - 1))]
        self._shots = [(PHOTOGRAPHS[i], _load(PHOTOGRAPHS[i].file)) for i in order]
        self._phases = random.uniform(0, 2 * math.pi, size=(len(PHOTOGRAPHS), 3))
        self._noise = _smooth_noise(random, 4 * side)

    def __iter__(self) -> Iterator[DemoFrame]:
        number = 0
        while True:
            yield self.frame(number)
            number += 1

    def frame(self, number: int) -> DemoFrame:
        """Return frame `number`, from 0."""
        shot, within = divmod(number, SHOT_FRAMES)
        (photograph, picture), phases = self._shots[shot % len(self._shots)], self._phases[shot % len(self._shots)]
        smoke, blur = _swell(within, 22, 58), _swell(within, 56, 88)
        view = self._view(photograph, picture, phases, number)
        if blur > 0:
            view = view.filter(ImageFilter.GaussianBlur(blur * LARGEST_BLUR * self._side))
        image = np.asarray(view, dtype=np.float32)
        if smoke > 0:
            image = self._under_smoke(image, smoke, number)
        return DemoFrame(np.round(image).astype(np.uint8), _caption(photograph, smoke, blur), smoke, blur)

    def _view(self, photograph: Photograph, picture: Pictures.Image, phases: NDArray[np.float64], number: int) -> Pictures.Image:
        zoom = 1 + 0.18 * math.sin(number / 23 + phases[0])
        side = photograph.side * picture.width * zoom
        side = min(side, picture.width, picture.height)
        x = photograph.x * picture.width + 0.06 * picture.width * math.sin(number / 17 + phases[1])
        y = photograph.y * picture.height + 0.06 * picture.height * math.sin(number / 13 + phases[2])
        left = min(max(x - side / 2, 0), picture.width - side)
        top = min(max(y - side / 2, 0), picture.height - side)
        box = (left, top, left + side, top + side)
        return picture.resize((self._side, self._side), Pictures.Resampling.BICUBIC, box=box)

    def _under_smoke(self, image: NDArray[np.float32], smoke: float, number: int) -> NDArray[np.float32]:
        rows = (np.arange(self._side) + 2 * number) % self._noise.shape[0]
        columns = (np.arange(self._side) + number) % self._noise.shape[1]
        # Even at its thinnest the strongest smoke covers a good part of the picture, and at its thickest nearly all of it.
        opacity = smoke * (0.4 + 0.55 * self._noise[np.ix_(rows, columns)])[..., None]
        return (1 - opacity) * image + opacity * np.asarray(SMOKE_RGB, np.float32)


def _swell(within: int, start: int, end: int) -> float:
    """Rise from 0 to 1 and fall back to 0 between two frames of a shot."""
    return math.sin(math.pi * (within - start) / (end - start)) ** 2 if start < within < end else 0.0


def _caption(photograph: Photograph, smoke: float, blur: float) -> str:
    effects = [f"{name} {strength:.0%}" for name, strength in (("smoke", smoke), ("blur", blur)) if strength >= 0.005]
    return f"{photograph.caption}, {' and '.join(effects) or 'clear'}"


def _load(file: str) -> Pictures.Image:
    try:
        data = (files("skimage") / "data" / file).read_bytes()
    except (ImportError, OSError) as error:
        raise SourceError(f"the demo's photograph {file} is not in this installation of scikit-image: {error}") from None
    return Pictures.open(BytesIO(data)).convert("RGB")


def _smooth_noise(random: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Return clouds in [0, 1], shape (side, side), whose opposite edges meet."""
    # White noise filtered by 1/f^1.7 in the Fourier plane is cloudy at every scale, and periodic by construction.
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    clouds = np.fft.irfft2(np.fft.rfft2(random.standard_normal((side, side))) / frequency**1.7, s=(side, side))
    low, high = np.percentile(clouds, [2, 98])
    scaled: NDArray[np.float32] = np.clip((clouds - low) / (high - low), 0, 1).astype(np.float32)
    return scaled
