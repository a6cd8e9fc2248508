"""Pictures: every form comes out as the engine takes it, every malformed one is refused by its field."""

from __future__ import annotations

import asyncio
import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from offramp.v1 import classification_pb2 as pb
from offramp_server.errors import InvalidRequestError, OverloadedError
from offramp_server.rpc.images import START_OF_SCAN, ImageReader, decode

SIZE = 16
MAX_PIXELS = 10_000
RED = (200, 30, 30)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def reader(pool: ThreadPoolExecutor) -> ImageReader:
    return ImageReader(pool, MAX_PIXELS, max_waiting=2)


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def rgb8(height: int, width: int, data: bytes | None = None) -> pb.Frame:
    pixels = bytes(RED) * (height * width) if data is None else data
    return pb.Frame(rgb8=pb.RawImage(data=pixels, height=height, width=width))


def tensor(values: np.ndarray, shape: tuple[int, ...] | None = None) -> pb.Frame:
    return pb.Frame(tensor=pb.FloatTensor(data=values.astype("<f4").tobytes(), shape=shape or values.shape))


async def test_pixels_of_the_right_size_pass_untouched(reader: ImageReader) -> None:
    pixels = np.arange(SIZE * SIZE * 3, dtype=np.uint8).reshape(SIZE, SIZE, 3)
    read = await reader.read(rgb8(SIZE, SIZE, pixels.tobytes()), SIZE, "frame")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, pixels)


async def test_pixels_of_another_size_are_resized(reader: ImageReader) -> None:
    read = await reader.read(rgb8(40, 20), SIZE, "frame")
    np.testing.assert_array_equal(read, np.full((SIZE, SIZE, 3), RED, np.uint8))


async def test_a_tensor_passes_untouched(reader: ImageReader) -> None:
    values = np.random.default_rng(1).normal(size=(3, SIZE, SIZE)).astype(np.float32)
    read = await reader.read(tensor(values), SIZE, "frame")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (50, 30), RED),
        Image.new("RGBA", (50, 30), (*RED, 128)),
        Image.new("RGB", (50, 30), RED).quantize(4),
    ],
    ids=["rgb", "alpha", "palette"],
)
async def test_a_png_of_any_kind_becomes_rgb(reader: ImageReader, image: Image.Image) -> None:
    read = await reader.read(pb.Frame(encoded=encode(image)), SIZE, "frame")
    np.testing.assert_array_equal(read, np.full((SIZE, SIZE, 3), RED, np.uint8))


async def test_a_transparent_palette_becomes_rgb(reader: ImageReader) -> None:
    data = encode(Image.new("RGB", (50, 30), RED).quantize(4), transparency=b"\x80\xff\xff\xff")
    read = await reader.read(pb.Frame(encoded=data), SIZE, "frame")
    np.testing.assert_array_equal(read, np.full((SIZE, SIZE, 3), RED, np.uint8))


async def test_sixteen_bit_grey_keeps_its_brightness(reader: ImageReader) -> None:
    grey = Image.fromarray(np.full((30, 50), 100 * 256, np.uint16))
    read = await reader.read(pb.Frame(encoded=encode(grey)), SIZE, "frame")
    np.testing.assert_array_equal(read, np.full((SIZE, SIZE, 3), 100, np.uint8))


async def test_a_jpeg_is_decoded(reader: ImageReader) -> None:
    read = await reader.read(pb.Frame(encoded=encode(Image.new("RGB", (90, 90), RED), "JPEG")), SIZE, "frame")
    assert read.shape == (SIZE, SIZE, 3)
    assert np.abs(read.astype(int) - RED).max() <= 3


async def test_a_photograph_stands_upright(reader: ImageReader) -> None:
    sideways = Image.new("RGB", (40, 40), (0, 0, 0))
    sideways.paste((255, 255, 255), (0, 0, 20, 40))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to view: white belongs on top
    read = await reader.read(pb.Frame(encoded=encode(sideways, "JPEG", exif=exif)), SIZE, "frame")
    assert read[:4].min() > 200
    assert read[-4:].max() < 50


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("frame", "field", "words"),
    [
        (pb.Frame(), "frame.image", "missing"),
        (rgb8(0, 4, b""), "frame.rgb8.height", "0"),
        (rgb8(4, 0, b""), "frame.rgb8.width", "0"),
        (rgb8(4, 4, b"123"), "frame.rgb8.data", "48 bytes"),
        (rgb8(200, 200, b""), "frame.rgb8", "10000 pixels"),
        (rgb8(2**32 - 1, 2**32 - 1, b""), "frame.rgb8", "10000 pixels"),
        (pb.Frame(encoded=b""), "frame.encoded", "neither a JPEG nor a PNG"),
        (pb.Frame(encoded=b"GIF89a" + bytes(100)), "frame.encoded", "neither a JPEG nor a PNG"),
        (pb.Frame(encoded=encode(Image.new("RGB", (4, 4)), "BMP")), "frame.encoded", "neither a JPEG nor a PNG"),
        (pb.Frame(encoded=png_header(200, 200)), "frame.encoded", "10000 pixels"),
        (pb.Frame(encoded=png_header(60_000, 60_000)), "frame.encoded", "10000 pixels"),
        (pb.Frame(encoded=png_header(20, 20)), "frame.encoded", "damaged or cut short"),
        (pb.Frame(encoded=encode(Image.effect_noise((60, 60), 50).convert("RGB"), "JPEG")[:900]), "frame.encoded", "cut short"),
        (tensor(np.zeros((3, 8, 8))), "frame.tensor.shape", "[3, 16, 16]"),
        (tensor(np.zeros((SIZE, SIZE, 3))), "frame.tensor.shape", "[3, 16, 16]"),
        (tensor(np.zeros(7), (3, SIZE, SIZE)), "frame.tensor.data", "3072 bytes"),
        (tensor(np.full((3, SIZE, SIZE), np.nan)), "frame.tensor.data", "NaN"),
        (tensor(np.full((3, SIZE, SIZE), -np.inf)), "frame.tensor.data", "infinity"),
        (tensor(np.full((3, SIZE, SIZE), 1e30)), "frame.tensor.data", "beyond"),
    ],
)
async def test_a_malformed_picture_is_refused_by_its_field(reader: ImageReader, frame: pb.Frame, field: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await reader.read(frame, SIZE, "frame")
    assert caught.value.field == field
    assert words in str(caught.value)


def repeat_scans(jpeg: bytes, times: int) -> bytes:
    """A JPEG whose last scan comes so many times more."""
    last = jpeg.rindex(START_OF_SCAN)
    return jpeg[:-2] + jpeg[last:-2] * times + jpeg[-2:]


@pytest.mark.parametrize(
    ("bomb", "words"),
    [
        (encode(Image.new("RGB", (3000, 3000), RED)), "3000 x 3000, larger than 10000 pixels"),
        (encode(Image.new("RGB", (3000, 3000), RED), "JPEG"), "3000 x 3000, larger than 10000 pixels"),
        (repeat_scans(encode(Image.new("RGB", (90, 90), RED), "JPEG", progressive=True), 100), "scans, more than 64"),
    ],
    ids=["png", "jpeg", "scans"],
)
async def test_a_bomb_is_refused_before_a_pixel_of_it_is_decoded(
    reader: ImageReader, monkeypatch: pytest.MonkeyPatch, bomb: bytes, words: str
) -> None:
    def load(_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(InvalidRequestError, match=words):
        await reader.read(pb.Frame(encoded=bomb), SIZE, "frame")


async def test_a_progressive_jpeg_is_no_bomb(reader: ImageReader) -> None:
    data = encode(Image.new("RGB", (90, 90), RED), "JPEG", progressive=True)
    assert data.count(START_OF_SCAN) > 1
    assert (await reader.read(pb.Frame(encoded=data), SIZE, "frame")).shape == (SIZE, SIZE, 3)


@given(st.binary(max_size=200), st.integers(0, 300), st.booleans())
def test_damage_never_escapes_as_another_error(noise: bytes, cut: int, jpeg: bool) -> None:
    whole = encode(Image.new("RGB", (24, 24), RED), "JPEG" if jpeg else "PNG")
    with contextlib.suppress(InvalidRequestError):
        assert decode(whole[:cut] + noise, SIZE, MAX_PIXELS, "frame.encoded").shape == (SIZE, SIZE, 3)


async def test_too_many_waiting_pictures_are_refused_and_a_finished_one_makes_room(pool: ThreadPoolExecutor) -> None:
    reader = ImageReader(pool, MAX_PIXELS, max_waiting=2)
    gate = Event()
    pool.submit(gate.wait)
    waiting = [asyncio.create_task(reader.read(rgb8(20, 20), SIZE, "frame")) for _ in range(2)]
    await asyncio.sleep(0)  # lets both reach the pool
    with pytest.raises(OverloadedError):
        await reader.read(rgb8(20, 20), SIZE, "frame")
    gate.set()
    await asyncio.gather(*waiting)
    assert (await reader.read(rgb8(20, 20), SIZE, "frame")).shape == (SIZE, SIZE, 3)
