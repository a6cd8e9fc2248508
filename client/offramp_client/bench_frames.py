"""What the load generator sends: a number of different images, with their classes where these are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image as Pictures

from offramp_client.demo import Demo
from offramp_client.errors import SourceError
from offramp_client.sources import folder_images, labelled_images, read_image
from offramp_client.types import Image

DEMO_STRIDE = 7
"""Every so many frames of the demo's film, so that few of them show all of its photographs."""


@dataclass(frozen=True, slots=True, eq=False)
class BenchFrames:
    """Images, and the class index of each where the source tells."""

    images: list[Image]
    truth: list[int] | None


def load_frames(source: str, count: int, labels: Sequence[str], size: tuple[int, int] | None, *, seed: int = 0) -> BenchFrames:
    """Read so many images, or as many as there are, spread evenly over the source.

    Args:
        source: `demo` or a folder. A folder laid out as <class>/<image>, with classes of the model's, is labelled.
        count: how many.
        labels: the model's classes.
        size: width and height to which they are decoded and resized, so that what is measured is the network and not the
            server's JPEG decoder; None leaves them coded and in their size.
        seed: of the demo.

    Raises:
        SourceError: there is no such folder, or an image of it can't be read.
    """
    if source == "demo":
        film = Demo(seed)
        images: list[Image] = [film.frame(number * DEMO_STRIDE).image for number in range(count)]
        truth = None
    else:
        pairs = _listed(Path(source), labels)
        pairs = [pairs[i * len(pairs) // count] for i in range(count)] if count < len(pairs) else pairs
        images = [read_image(path) for path, _ in pairs]
        truth = [labels.index(label) for _, label in pairs] if pairs[0][1] else None
    if size is not None:
        images = [_fitted(image, size) for image in images]
    return BenchFrames(images, truth)


def _listed(folder: Path, labels: Sequence[str]) -> list[tuple[Path, str]]:
    """The folder's images, each with its class; all with none where the folder is not of the model's classes."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: neither a folder of images nor demo")
    try:
        pairs = labelled_images(folder)
    except SourceError:
        pairs = []
    if pairs and {label for _, label in pairs} <= set(labels):
        return pairs
    return [(path, "") for path in folder_images(folder)]


def _fitted(image: Image, size: tuple[int, int]) -> Image:
    try:
        picture = Pictures.open(BytesIO(image)) if isinstance(image, bytes) else Pictures.fromarray(image)
        picture = picture.convert("RGB")
    except (OSError, ValueError) as error:
        raise SourceError(f"an image can't be decoded: {error}") from None
    return np.asarray(picture if picture.size == size else picture.resize(size, Pictures.Resampling.BILINEAR))
