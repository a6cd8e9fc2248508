"""`offramp bench` and its lanes against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offramp_client import Client, Control, InvalidRequestError
from offramp_client.bench_lane import open_lanes
from offramp_client.bench_load import run_load
from offramp_client.bench_types import Load
from offramp_server.app import Server
from tests.integration.conftest import PATIENCE_S
from tests.integration.test_client_and_server import run_command
from tests.unit.server.rpc.manifests import CLASSES, EXITS, SIZE, tiny_manifest

IMAGES = list(np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8))
FIXED = [Control("fixed", max_exit=exit) for exit in (1, EXITS)]


@pytest.mark.parametrize("batch", [1, 4])
async def test_every_frame_is_answered_as_the_library_would(server: Server, batch: int) -> None:
    load = Load(streams=3, in_flight=8, batch=batch, warm_up_s=0, seconds=0.5, drain_s=PATIENCE_S)
    async with Client(server.grpc_address, timeout_s=PATIENCE_S) as client:
        seen = await run_load(load, open_lanes([client], IMAGES, [FIXED[1]]), len(IMAGES))
        one_by_one = [(await client.classify(image, control=FIXED[1])).top[0].label for image in IMAGES]
    assert seen.labels == dict(enumerate(one_by_one))
    assert (seen.unanswered, seen.errors, seen.lost) == (0, {}, {})
    assert set(seen.exits) <= {EXITS}
    assert server.in_flight == 0


async def test_of_several_controls_every_frame_draws_one(server: Server) -> None:
    load = Load(streams=2, in_flight=8, rate=400, warm_up_s=0, seconds=0.5, drain_s=PATIENCE_S)
    async with Client(server.grpc_address) as one, Client(server.grpc_address) as other:
        seen = await run_load(load, open_lanes([one, other], IMAGES, FIXED), len(IMAGES))
    assert set(seen.exits) == {1, EXITS}
    ratios = tiny_manifest().costs.ratios
    assert ratios[0] < seen.mean_cost < ratios[-1]
    assert (seen.unanswered, seen.errors, seen.lost) == (0, {}, {})


async def test_what_the_server_refuses_is_raised_before_load_is_put_on(server: Server) -> None:
    async with Client(server.grpc_address) as client:
        with pytest.raises(InvalidRequestError, match="lambda"):
            await run_load(Load(), open_lanes([client], IMAGES, [Control(lambda_=-1.0)]), len(IMAGES))


async def test_the_command_reports_a_labelled_folder_as_json(server: Server, tmp_path: Path) -> None:
    labels = tiny_manifest().labels
    assert len(labels) == CLASSES
    for index, image in enumerate(IMAGES):
        folder = tmp_path / labels[index % CLASSES]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    options = ("--streams", "2", "--in-flight", "4", "--batch", "2", "--seconds", "1", "--warm-up", "0", "--connections", "2")
    code, out, error = await run_command(
        "bench", str(tmp_path), "--address", server.grpc_address, *options, "--policy", "fixed", "--json"
    )
    assert code == 0, error
    report = json.loads(out)
    assert (report["model"], report["images"], report["images_with_answer"], report["loop"]) == ("tiny", 6, 6, "closed")
    assert report["exits"] == {str(EXITS): report["frames"]}
    assert 0 <= report["accuracy"] <= 1
    assert report["client_cores"] > 0
    coded = await run_command("bench", str(tmp_path), "--address", server.grpc_address, "--as-they-are", "--seconds", "0.5")
    assert coded[0] == 0, coded[2]
    assert "accuracy" in coded[1]


async def test_the_command_says_in_one_line_what_is_wrong(server: Server, tmp_path: Path) -> None:
    for arguments, word in (
        (("--lambda", "-1"), "lambda"),
        ((str(tmp_path / "none"),), "folder"),
        (("--in-flight", "2", "--batch", "3"), "in_flight"),
    ):
        code, _, error = await run_command("bench", *arguments, "--address", server.grpc_address, "--images", "2")
        assert code == 1
        assert word in error
        assert len(error.strip().splitlines()) == 1
