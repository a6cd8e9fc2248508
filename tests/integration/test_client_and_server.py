"""The road as a user takes it: our own client and command line against a real server with a trained network."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offramp_client import Client, Control, Frame, InvalidRequestError, Result
from offramp_model.bundle import open_bundle
from offramp_model.weights import load_network
from offramp_server.app import Server
from offramp_server.config import Settings
from offramp_training.data import synthetic_images
from tests.integration.conftest import PATIENCE_S

SIZE = 16


@pytest.fixture(params=["1", "2"], ids=["bank", "forecast"])
def version(request: pytest.FixtureRequest) -> str:
    """The paper's heads and routers, and rich heads in a cascade with forecast routers."""
    return str(request.param)


@pytest.fixture
def settings(smoke_store: Path, version: str) -> Settings:
    return Settings(
        store=smoke_store,
        models=(f"smoke:{version}",),
        grpc_port=0,
        http_port=0,
        device="cpu",
        torch_threads=1,
        drain_timeout_s=PATIENCE_S,
    )


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Server]:
    async with Server(settings) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with Client(server.grpc_address, timeout_s=PATIENCE_S) as client:
        yield client


def pictures(count: int, seed: int = 7) -> tuple[list[np.ndarray], list[str]]:
    """Images of the smoke preset's kind that it was not trained on, and their classes."""
    data = synthetic_images(count, SIZE, seed)
    return list(data.images_NCHW.permute(0, 2, 3, 1).numpy()), [data.classes[label] for label in data.labels_N]


async def run_command(*arguments: str) -> tuple[int, str, str]:
    return await run_program(sys.executable, "-m", "offramp_client", *arguments)


async def run_program(
    *command: str, patience_s: float = PATIENCE_S, environment: dict[str, str] | None = None
) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ | (environment or {})
    )
    out, error = await asyncio.wait_for(process.communicate(), patience_s)
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


def mean_cost(results: list[Result]) -> float:
    return sum(result.unwrap().cost_ratio for result in results) / len(results)


async def test_the_full_depth_knows_what_it_was_trained_on(client: Client) -> None:
    images, classes = pictures(100)
    results = [result async for result in client.stream(images, policy="fixed")]
    assert [result.frame_id for result in results] == list(range(100))
    right = sum(result.unwrap().name == name for result, name in zip(results, classes, strict=True))
    model = await client.model()
    # held-out accuracy as published, less four standard errors of a hundred images
    assert right / 100 > model.exits[-1].accuracy - 4 * 0.05


async def test_a_higher_lambda_buys_less_compute_down_to_exit_one(client: Client) -> None:
    images, _ = pictures(60)
    costs = [mean_cost([r async for r in client.stream(images, lambda_=value)]) for value in (0.0, 2.0, 1e6)]
    model = await client.model()
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == pytest.approx(model.exits[0].cost_ratio)
    assert costs[0] > costs[-1]


async def test_no_frame_goes_deeper_as_lambda_rises(client: Client, version: str) -> None:
    if version == "1":
        pytest.skip("a bank's routers are fitted for each lambda by itself, and promise no such thing")
    images, _ = pictures(40)
    exits = [
        [result.unwrap().exit async for result in client.stream(images, lambda_=value)] for value in (0.0, 0.02, 0.1, 0.4, 2.0)
    ]
    for deeper, shallower in pairwise(exits):
        assert all(a >= b for a, b in zip(deeper, shallower, strict=True))
    assert exits[0] != exits[-1]


async def test_an_answer_does_not_depend_on_what_shares_its_batches(client: Client) -> None:
    images, _ = pictures(24)
    controls = [Control(lambda_=0.5), Control(lambda_=3.0), Control(policy="confidence", threshold=0.8), Control(policy="fixed")]
    frames = [Frame(image, control=controls[index % 4]) for index, image in enumerate(images)]
    alone = [await client.classify(frame) for frame in frames]

    async def stream() -> list[Result]:
        return [result async for result in client.stream(frames)]

    for together in await asyncio.gather(*(stream() for _ in range(4))):
        for one, result in zip(alone, together, strict=True):
            seen = result.unwrap()
            assert (seen.exit, seen.reason, seen.name) == (one.exit, one.reason, one.name)
            assert seen.probability == pytest.approx(one.probability, abs=1e-5)
            assert seen.halting_probabilities == pytest.approx(one.halting_probabilities, abs=1e-5)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
async def test_what_the_server_answers_is_what_the_bundle_computes(
    settings: Settings, smoke_store: Path, version: str, backend: str
) -> None:
    bundle = open_bundle(smoke_store / "smoke" / version)
    network, preprocessing = load_network(bundle), bundle.manifest.preprocessing
    images, _ = pictures(4)
    in_float32 = settings.model_copy(update={"backend": backend, "precision": "f32"})
    async with Server(in_float32) as server, Client(server.grpc_address, timeout_s=PATIENCE_S) as client:
        for image in images:
            normalised = (image / np.float32(255) - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
            tensor = np.ascontiguousarray(normalised.transpose(2, 0, 1), dtype=np.float32)
            with torch.inference_mode():
                expected = [output.logits.softmax(1)[0] for output in network.stages(torch.from_numpy(tensor)[None])]
            for exit, probabilities in enumerate(expected, 1):
                for sent in (image, tensor):
                    seen = await client.classify(sent, policy="fixed", max_exit=exit, top_k=4)
                    assert seen.exit == exit
                    by_label = {each.label: each.probability for each in seen.top}
                    assert [by_label[label] for label in range(4)] == pytest.approx(probabilities.tolist(), abs=1e-4)


async def test_an_operator_retunes_a_live_stream(client: Client) -> None:
    images, _ = pictures(30)

    async def source() -> AsyncIterator[np.ndarray]:
        for index, image in enumerate(images):
            if index == 10:
                await stream.retune(policy="fixed", max_exit=1)
            if index == 20:
                with pytest.raises(InvalidRequestError):
                    await stream.retune(lambda_=-1.0)
                await stream.retune(policy="fixed", max_exit=3)
            yield image

    stream = client.stream(source(), policy="fixed", max_exit=4)
    exits = [result.unwrap().exit async for result in stream]
    assert exits == [4] * 10 + [1] * 10 + [3] * 10


async def test_the_command_line_streams_the_demo(server: Server) -> None:
    code, out, error = await run_command("stream", "demo", "--address", server.grpc_address, "--frames", "12", "--json")
    assert (code, error) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["frame_id"] for line in lines] == list(range(12))


async def test_the_command_line_sweeps_a_labelled_folder(server: Server, tmp_path: Path) -> None:
    images, classes = pictures(20)
    for index, (image, name) in enumerate(zip(images, classes, strict=True)):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "set" / name / f"{index}.png")
    plot = tmp_path / "sweep.png"
    code, out, error = await run_command(
        "sweep", str(tmp_path / "set"), "--address", server.grpc_address, "--lambda", "0,1000", "--json", "--plot", str(plot)
    )
    assert code == 0, error
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "1000" in out


async def test_the_command_line_says_in_one_line_what_is_wrong(server: Server) -> None:
    code, _, error = await run_command("stream", "demo", "--address", server.grpc_address, "--lambda", "-1", "--frames", "3")
    assert code != 0
    assert "lambda" in error
    assert len(error.strip().splitlines()) == 1


async def test_an_outcome_is_looked_up_kept_and_shown(client: Client, server: Server) -> None:
    images, _ = pictures(60)
    model = await client.model()
    assert model.frontier is not None
    points = model.frontier.points
    budget = (points[0].mean_cost + points[-1].mean_cost) / 2
    seen = [result.unwrap() async for result in client.stream(images, max_mean_cost=budget)]
    used = {each.control.lambda_ for each in seen}
    assert len(used) == 1
    chosen = next(point for point in points if point.lambda_ in used)
    assert chosen.mean_cost <= budget < max(point.mean_cost for point in points)
    # the promise is of the mean over frames like these, and these are 60
    assert sum(each.cost_ratio for each in seen) / len(seen) <= budget + 0.15
    certified = await client.classify(images[0], max_accuracy_drop=0.5, confidence=0.9)
    assert certified.control.lambda_ >= 0
    with pytest.raises(InvalidRequestError, match="out of reach") as refused:
        await client.classify(images[0], max_mean_cost=points[-1].mean_cost / 2)
    assert refused.value.field == "frame.control.max_mean_cost"
    code, out, _ = await run_command("points", "--address", server.grpc_address, "--frontier")
    assert code == 0
    assert "λ" in out
