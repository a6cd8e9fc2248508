"""Where frames come from."""

from __future__ import annotations

import itertools
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offramp_client import MissingExtraError, SourceError
from offramp_client.sources import folder_images, labelled_images, open_source, read_image, video_frames

RED = np.zeros((32, 32, 3), np.uint8) + np.array([200, 10, 10], np.uint8)


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RED).save(path)
    return path


def test_a_folder_is_read_in_order_and_only_its_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "sub/c.JPEG", "d.bmp"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    frames = list(open_source(str(tmp_path)))
    assert [frame.caption for frame in frames] == ["a.jpg", "b.png", "d.bmp", "c.JPEG"]
    # JPEG and PNG go as they lie on the disk; the server knows no other format, so the bitmap goes as pixels.
    assert frames[0].image == (tmp_path / "a.jpg").read_bytes()
    assert isinstance(frames[2].image, np.ndarray)
    assert np.array_equal(frames[2].image, RED)


def test_a_single_image_is_a_source_too(tmp_path: Path) -> None:
    (frame,) = open_source(str(save(tmp_path / "a.png")))
    assert isinstance(frame.image, bytes)
    assert Image.open(BytesIO(frame.image)).size == (32, 32)


def test_a_file_that_is_no_image_is_left_to_the_server(tmp_path: Path) -> None:
    broken = tmp_path / "broken.webp"
    broken.write_bytes(b"rubbish")
    assert read_image(broken) == b"rubbish"


@pytest.mark.parametrize("name", ["nowhere", "camera:front", "nowhere.mp4"])
def test_what_is_no_source_is_named(name: str) -> None:
    with pytest.raises(SourceError, match=name):
        open_source(name)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no images"):
        folder_images(tmp_path)


def test_labels_are_the_names_of_the_folders(tmp_path: Path) -> None:
    paths = [save(tmp_path / "cat" / "0.jpg"), save(tmp_path / "dog" / "0.jpg")]
    assert labelled_images(tmp_path) == list(zip(paths, ["cat", "dog"], strict=True))
    save(tmp_path / "stray.jpg")
    with pytest.raises(SourceError, match=r"stray\.jpg"):
        labelled_images(tmp_path)


def test_a_video_is_read_in_rgb_with_its_times(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    file = tmp_path / "red.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32))
    for _ in range(3):
        writer.write(np.ascontiguousarray(RED[..., ::-1]))
    writer.release()
    frames = list(open_source(str(file)))
    assert len(frames) == 3
    assert isinstance(frames[0].image, np.ndarray)
    assert np.abs(frames[0].image.astype(int) - RED).max() < 12  # MJPEG is lossy, and red is not blue
    assert frames[2].timestamp_us > frames[1].timestamp_us


def test_a_file_that_is_no_video_is_refused_in_silence(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    file = tmp_path / "broken.mp4"
    file.write_bytes(b"rubbish")
    with pytest.raises(SourceError, match=r"broken\.mp4"):
        video_frames(file)
    # In a process of its own, since FFmpeg keeps the log level that it was first used with.
    code = f"from offramp_client.sources import open_source; open_source({str(file)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("Traceback")
    assert "moov" not in done.stderr


def test_without_opencv_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'offramp\[video\]'"):
        open_source("camera")


def test_the_demo_goes_on_and_on() -> None:
    assert [frame.caption for frame in itertools.islice(open_source("demo"), 2)] == ["cat, clear", "cat, clear"]
