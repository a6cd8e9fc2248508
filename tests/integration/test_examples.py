"""The programs of examples/ against a real server (demo.py: test_embedded_bundle.py, triton_client.py: test_tritonclient.py)."""

from __future__ import annotations

import asyncio
import csv
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from offramp_server.app import Server
from tests.integration.conftest import PATIENCE_S
from tests.unit.server.rpc.manifests import EXITS, tiny_manifest

EXAMPLES = Path(__file__).parents[2] / "examples"
FRAMES, FPS, SIDE = 24, 60.0, 64


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of noise whose brightness rises."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (SIDE, SIDE))
    random = np.random.default_rng(0)
    for number in range(FRAMES):
        writer.write(random.integers(number * 5, number * 5 + 100, (SIDE, SIDE, 3), dtype=np.uint8))
    writer.release()
    return path


async def run_example(name: str, *arguments: object) -> str:
    command = (sys.executable, str(EXAMPLES / name), *(str(argument) for argument in arguments))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, error = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 0, error.decode()
    return out.decode()


async def test_the_camera_loop_drops_what_it_has_no_time_for_but_never_the_newest(server: Server, film: Path) -> None:
    *lines, total = (await run_example("camera_loop.py", film, "--address", server.grpc_address)).splitlines()
    captured, answered, dropped, last = (int(number) for number in re.findall(r"\d+", total))
    assert captured == FRAMES
    assert answered == len(lines) == FRAMES - dropped > 0
    assert last == FRAMES - 1
    shown = [int(line.split()[0]) for line in lines]
    assert shown == sorted(set(shown))


async def test_a_camera_that_is_not_there_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"nowhere\.mp4: OpenCV can't open it"):
        await run_example("camera_loop.py", tmp_path / "nowhere.mp4", "--address", server.grpc_address)


async def test_a_film_becomes_a_table_and_an_annotated_copy(server: Server, film: Path, tmp_path: Path) -> None:
    table, copy = tmp_path / "frames.csv", tmp_path / "copy.mp4"
    await run_example("video_file.py", film, "--csv", table, "--video", copy, "--address", server.grpc_address)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in rows] == list(range(FRAMES))
    assert [float(row["seconds"]) for row in rows] == pytest.approx([number / FPS for number in range(FRAMES)], abs=1e-3)
    manifest = tiny_manifest()
    for row in rows:
        assert row["label"] in manifest.labels
        assert 1 <= int(row["exit"]) <= EXITS
        assert float(row["compute"]) == pytest.approx(manifest.costs.ratios[int(row["exit"]) - 1], abs=1e-4)
    original, annotated = frames_of(film), frames_of(copy)
    assert len(annotated) == FRAMES
    # the text lies at the bottom, and is more than one more coding of the film could do
    change = np.abs(np.stack(original).astype(float) - np.stack(annotated)).mean(axis=(0, 2, 3))
    assert change[SIDE * 3 // 4 :].mean() > 1.5 * change[: SIDE // 2].mean()


def frames_of(film: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(film)), []
    while (taken := capture.read())[0]:
        frames.append(np.asarray(taken[1]))
    capture.release()
    return frames


async def test_a_budget_is_held_by_turning_the_threshold(server: Server) -> None:
    ratios, means = tiny_manifest().costs.ratios, []
    for share in (0.3, 0.7):
        budget = ratios[0] + share * (ratios[-1] - ratios[0])
        out = await run_example("hold_budget.py", "--budget", budget, "--frames", 480, "--address", server.grpc_address)
        *turns, total = out.splitlines()
        assert len(turns) == 30
        means.append(float(total.split()[2]))
        # the errors add up to what τ has moved over the gain, and τ moves by less than 1: below 2 / 30 in the mean of 30 turns
        assert means[-1] == pytest.approx(budget, abs=0.1)
    assert means[0] < means[1]
