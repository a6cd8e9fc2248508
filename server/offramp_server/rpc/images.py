"""Pictures on the wire: checked before they are decoded, decoded and resized off the event loop."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVarTuple

import numpy as np
from PIL import Image, ImageOps

from offramp.v1 import classification_pb2 as pb
from offramp_server.errors import InvalidRequestError, OverloadedError

Arguments = TypeVarTuple("Arguments")

LARGEST_VALUE = 1e6
"""Of a float tensor: beyond any normalised pixel, and small enough that no layer overflows into NaN."""
RETRY_AFTER_MS = 50
MAX_SCANS = 64
"""Of a JPEG. Each scan of a progressive one is a pass over all pixels for a few bytes, so pixels alone bound no work;
encoders make about ten, and files of several pictures some more."""
START_OF_SCAN = b"\xff\xda"  # nowhere within coded data, where a zero follows each 0xff


class ImageReader:
    """Reads a frame's picture into the array that the engine takes."""

    def __init__(self, executor: Executor, max_pixels: int, max_waiting: int) -> None:
        """At most `max_waiting` pictures wait for `executor` or are decoded there; more are refused."""
        self._executor, self._max_pixels, self._max_waiting = executor, max_pixels, max_waiting
        self._waiting = 0

    async def read(self, frame: pb.Frame, size: int, path: str) -> np.ndarray:
        """uint8 (size, size, 3), or float32 (3, size, size) from a tensor.

        Raises InvalidRequestError with the field's path under `path`, or OverloadedError.
        """
        match frame.WhichOneof("image"):
            case "rgb8":
                pixels = read_rgb8(frame.rgb8, self._max_pixels, f"{path}.rgb8")
                if pixels.shape == (size, size, 3):
                    return pixels
                return await self._run(resize_rgb8, pixels, size)
            case "encoded":
                return await self._run(decode, frame.encoded, size, self._max_pixels, f"{path}.encoded")
            case "tensor":
                return read_tensor(frame.tensor, size, f"{path}.tensor")
            case _:
                raise InvalidRequestError(f"{path}.image", "is missing: give one of rgb8, encoded, tensor")

    async def _run(self, work: Callable[[*Arguments], np.ndarray], *arguments: *Arguments) -> np.ndarray:
        if self._waiting >= self._max_waiting:
            raise OverloadedError(f"{self._waiting} pictures wait for decoding, the most that this server takes", RETRY_AFTER_MS)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)
        finally:
            self._waiting -= 1


def read_rgb8(image: pb.RawImage, max_pixels: int, path: str) -> np.ndarray:
    """Uncompressed pixels as uint8 (height, width, 3), without a copy. Raises InvalidRequestError."""
    for name, value in (("height", image.height), ("width", image.width)):
        if value == 0:
            raise InvalidRequestError(f"{path}.{name}", "is 0: give the picture's size in pixels")
    _check_pixels(image.width, image.height, max_pixels, path)
    wanted = image.height * image.width * 3
    if len(image.data) != wanted:
        raise InvalidRequestError(
            f"{path}.data", f"has {len(image.data)} bytes: {image.height} x {image.width} RGB pixels are {wanted} bytes"
        )
    return np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)


def read_tensor(tensor: pb.FloatTensor, size: int, path: str) -> np.ndarray:
    """Normalised pixels as float32 (3, size, size), without a copy. Raises InvalidRequestError."""
    shape = tuple(tensor.shape)
    if shape != (3, size, size):
        raise InvalidRequestError(f"{path}.shape", f"is {list(shape)}: this model takes [3, {size}, {size}]")
    wanted = 4 * math.prod(shape)
    if len(tensor.data) != wanted:
        raise InvalidRequestError(
            f"{path}.data", f"has {len(tensor.data)} bytes: {list(shape)} float32 values are {wanted} bytes"
        )
    values = np.frombuffer(tensor.data, "<f4").astype(np.float32, copy=False).reshape(shape)
    if not np.abs(values).max() <= LARGEST_VALUE:  # NaN fails too
        raise InvalidRequestError(
            f"{path}.data",
            f"holds NaN, infinity or a value beyond {LARGEST_VALUE:g}: send normalised pixels in little-endian float32",
        )
    return values


def resize_rgb8(pixels: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize to uint8 (size, size, 3)."""
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0))


def decode(data: bytes, size: int, max_pixels: int, path: str) -> np.ndarray:
    """A JPEG or PNG file as uint8 (size, size, 3). Raises InvalidRequestError, before decoding where the header tells."""
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))  # reads the header alone
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidRequestError(path, f"is larger than {max_pixels} pixels: send it smaller") from None
    except Exception:
        raise InvalidRequestError(path, "is neither a JPEG nor a PNG file: send a whole file of either, or rgb8") from None
    with image:
        _check_pixels(*image.size, max_pixels, path)
        if image.format != "PNG" and (scans := data.count(START_OF_SCAN)) > MAX_SCANS:
            raise InvalidRequestError(path, f"is a JPEG of {scans} scans, more than {MAX_SCANS}: save it anew")
        try:
            image.draft("RGB", (2 * size, 2 * size))  # lets JPEG decode at a fraction of its size
            upright = ImageOps.exif_transpose(image)
            return np.asarray(_to_rgb(upright).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0))
        except Exception as error:  # a decoder fails on foreign bytes in many ways, all of them the sender's
            raise InvalidRequestError(path, f"can't be decoded ({error}): the file is damaged or cut short") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white
        return Image.fromarray((np.asarray(image).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _check_pixels(width: int, height: int, max_pixels: int, path: str) -> None:
    if width * height > max_pixels:
        raise InvalidRequestError(path, f"is {width} x {height}, larger than {max_pixels} pixels: send it smaller")
