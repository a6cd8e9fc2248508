"""Where the command line takes its frames: a folder of images, a video file, a camera, or the built-in demo."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pictures
from PIL import UnidentifiedImageError

from offramp_client.demo import Demo
from offramp_client.errors import MissingExtraError, SourceError
from offramp_client.types import Image

WIRE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
"""Sent as they lie on the disk; the server decodes them."""
OTHER_SUFFIXES = frozenset({".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"})
"""Decoded here."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceFrame:
    """An image with what is known about it."""

    image: Image
    caption: str
    timestamp_us: int = 0
    """When it was captured; 0 where that means nothing."""


def open_source(name: str, seed: int = 0) -> Iterator[SourceFrame]:
    """Return the frames of a source by its name on the command line.

    Args:
        name: `demo`, `camera`, `camera:N`, or the path of a folder, an image or a video file.
        seed: of the demo.

    Raises:
        MissingExtraError: OpenCV is needed and not installed.
        SourceError: there is no such source, or it holds no frame.
    """
    if name == "demo":
        return (SourceFrame(frame.image, frame.caption) for frame in Demo(seed))
    kind, _, number = name.partition(":")
    if kind == "camera":
        if number and not number.isdecimal():
            raise SourceError(f"{name}: a camera is named camera or camera:N, with N from 0")
        return video_frames(int(number or 0))
    path = Path(name)
    if path.is_dir():
        return image_frames(folder_images(path))
    if path.suffix.lower() in WIRE_SUFFIXES | OTHER_SUFFIXES and path.is_file():
        return image_frames([path])
    if path.is_file():
        return video_frames(path)
    raise SourceError(f"{name}: neither a file, a folder, camera, camera:N nor demo")


def folder_images(folder: Path) -> list[Path]:
    """Return the images under a folder, at any depth, sorted by path.

    Raises:
        SourceError: there is none, or the folder cannot be read.
    """
    try:
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in WIRE_SUFFIXES | OTHER_SUFFIXES)
    except OSError as error:
        raise SourceError(f"{folder}: {error.strerror}") from None
    if not found:
        raise SourceError(f"{folder}: no images in it")
    return found


def labelled_images(folder: Path) -> list[tuple[Path, str]]:
    """Return the images of a folder laid out as <class>/<image>, each with the name of its class, sorted by path.

    Raises:
        SourceError: there is none, or an image lies outside a class's folder.
    """
    pairs = [(path, path.relative_to(folder).parts) for path in folder_images(folder)]
    for path, parts in pairs:
        if len(parts) != 2:
            raise SourceError(f"{path}: images must lie in {folder}/<class>/")
    return [(path, parts[0]) for path, parts in pairs]


def image_frames(paths: list[Path]) -> Iterator[SourceFrame]:
    """Read image files one by one, as `read_image` does."""
    for path in paths:
        yield SourceFrame(read_image(path), path.name)


def read_image(path: Path) -> Image:
    """Return a file as the wire takes it: JPEG and PNG as bytes, others decoded to uint8 (H, W, 3).

    Raises:
        SourceError: the file cannot be read. One that can, but is no image, is left to the server to refuse.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None
    if path.suffix.lower() in WIRE_SUFFIXES:
        return data
    try:
        return np.asarray(Pictures.open(BytesIO(data)).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError):
        return data


def video_frames(video: Path | int) -> Iterator[SourceFrame]:
    """Read a video file, or a camera by its number, frame by frame; opened at once, so that errors come at once.

    Raises:
        MissingExtraError: OpenCV is not installed.
        SourceError: it cannot be opened.
    """
    cv2 = _opencv()
    named = f"camera {video}" if isinstance(video, int) else str(video)
    capture = cv2.VideoCapture(video if isinstance(video, int) else str(video))
    if not capture.isOpened():
        raise SourceError(f"{named}: OpenCV cannot open it")
    return _captured(cv2, capture, named, live=isinstance(video, int))


def _captured(cv2: Any, capture: Any, named: str, live: bool) -> Iterator[SourceFrame]:
    try:
        number = 0
        while True:
            taken, image_bgr = capture.read()
            if not taken:
                if number == 0:
                    raise SourceError(f"{named}: holds no frame")
                return
            position_us = time.time() * 1e6 if live else capture.get(cv2.CAP_PROP_POS_MSEC) * 1e3
            image = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)
            yield SourceFrame(image, f"{named}, frame {number}", int(position_us))
            number += 1
    finally:
        capture.release()


def _opencv() -> Any:
    # Its and FFmpeg's complaints about a file that cannot be opened would come before our one line about it.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError:
        raise MissingExtraError("reading video files and cameras", "video") from None
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)
    return cv2
