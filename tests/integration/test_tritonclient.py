"""Triton's own client, in an environment of its own, against a running server.

The environment lies where OFFRAMP_TRITON_VENV says, or in `.venv-triton`, and is made on the first run; where the client
can't be installed, these tests are skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inference import grpc_service_pb2, model_config_pb2
from tests.integration.conftest import PATIENCE_S, publish_tiny
from tests.unit.server.rpc.manifests import CLASSES, EXITS, SIZE, tiny_manifest

ROOT = Path(__file__).parents[2]
REQUIREMENT = "tritonclient[grpc]==2.73.0"
INSTALL_TIMEOUT_S = 600
RATIOS = tiny_manifest().costs.ratios


@pytest.fixture(scope="module")
def triton_python() -> Path:
    """The interpreter of an environment that holds tritonclient."""
    home = Path(os.environ.get("OFFRAMP_TRITON_VENV") or ROOT / ".venv-triton")
    python = home / "bin" / "python"
    if not (python.exists() and run(python, "-c", "import tritonclient.grpc").returncode == 0):
        made = run(Path(sys.executable), "-m", "venv", "--clear", str(home))
        installed = made if made.returncode else run(python, "-m", "pip", "install", "--quiet", REQUIREMENT)
        if installed.returncode != 0:
            pytest.skip(f"can't install {REQUIREMENT}: {installed.stderr.strip().splitlines()[-1:]}")
    return python


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # without PYTHONPATH and the like: the environment must not see ours
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [str(python), *arguments], capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, env=environment, check=False
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 and 2 of `tiny`, and a broken version 3."""
    store = tmp_path_factory.mktemp("triton-store")
    for version in (1, 2, 3):
        publish_tiny(store, version)
    weights = store / "tiny" / "3" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x00")
    return store


@pytest.fixture(scope="module")
def address(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server process that serves version 1 and may load others; it must end with 0."""
    ready = tmp_path_factory.mktemp("triton-server") / "ready.json"
    flags = {"store": store, "models": "tiny:1", "model-control": "explicit", "ready-file": ready, "device": "cpu"}
    flags |= {"grpc-port": 0, "http-port": 0, "torch-threads": 1, "log-level": "warning"}
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "offramp_server", *(f"--{name}={value}" for name, value in flags.items())]
        process = stack.enter_context(subprocess.Popen(command))
        stack.callback(process.kill)
        deadline = time.monotonic() + 2 * PATIENCE_S  # most of it is importing torch
        while not ready.exists():
            assert process.poll() is None, "the server did not start"
            assert time.monotonic() < deadline, "the server took too long to start"
            time.sleep(0.05)
        yield json.loads(ready.read_text())["grpc"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


@pytest.fixture(scope="module")
def seen(triton_python: Path, address: str) -> dict[str, Any]:
    """What the client saw, once for all tests."""
    result = run(triton_python, str(Path(__file__).with_name("triton_session.py")), address, str(SIZE))
    assert result.returncode == 0, result.stderr
    session: dict[str, Any] = json.loads(result.stdout)
    return session


def test_our_protos_are_the_clients_own_on_the_wire(seen: dict[str, Any]) -> None:
    wire = seen["wire"]
    for module in (grpc_service_pb2, model_config_pb2):
        pending = list(module.DESCRIPTOR.message_types_by_name.values())
        while pending:
            message = pending.pop()
            pending += message.nested_types
            for field in message.fields:
                assert wire["messages"][message.full_name][field.name] == [field.number, field.type, field.is_repeated]
    service = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    ours = {each.name: [each.input_type.full_name, each.output_type.full_name] for each in service.methods}
    assert ours == wire["methods"]
    assert dict(model_config_pb2.DataType.items()) == wire["types"]


def test_the_server_and_its_model_are_as_the_client_expects_them(seen: dict[str, Any]) -> None:
    asked = seen["asked"]
    assert (asked["live"], asked["ready"], asked["models_ready"], asked["server"]) == (True, True, [True, False], "offramp")
    assert asked["inputs"] == [["image", "UINT8", [-1, SIZE, SIZE, 3]]]
    assert asked["config"][0] == "tiny"
    assert asked["config"][1] > 1
    assert asked["config"][2:] == [False, "torch"]
    assert asked["config_inputs"] == [["image", "TYPE_UINT8", [SIZE, SIZE, 3]]]
    assert ["probabilities", "FP32", [-1, CLASSES]] in asked["outputs"]


def test_lambda_travels_in_every_form_that_the_client_sends(seen: dict[str, Any]) -> None:
    for form in ("double", "integer", "text"):
        shown = seen["sync"][form]
        assert (shown["id"], shown["version"], shown["lambda"], shown["exit"]) == (form, "1", 1e6, [1, 1, 1])
        assert shown["compute"] == pytest.approx([RATIOS[0]] * 3)
    assert seen["sync"]["none"]["exit"] == [EXITS] * 3
    assert seen["sync"]["later"] == "later"


def test_every_output_arrives_whole(seen: dict[str, Any]) -> None:
    shown = seen["sync"]["none"]
    probabilities = np.array(shown["probabilities"])
    assert probabilities.shape == (3, CLASSES)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert shown["label_index"] == probabilities.argmax(1).tolist()
    assert shown["label"] == [tiny_manifest().labels[index] for index in shown["label_index"]]
    assert len(seen["sync"]["best"]) == 6
    assert seen["sync"]["others"] == ["probabilities"]
    assert all(element.count(":") == 2 for element in seen["sync"]["best"])


def test_errors_reach_the_client_with_their_code_and_reason(seen: dict[str, Any]) -> None:
    code, reason = seen["sync"]["wrong"]
    assert code == "StatusCode.INVALID_ARGUMENT"
    assert "parameters.lambda" in reason
    assert seen["sync"]["unknown"][0] == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize(("kind", "prefix"), [("stream", "r"), ("aio", "a")])
def test_a_stream_answers_in_order_and_keeps_its_errors_inside(seen: dict[str, Any], kind: str, prefix: str) -> None:
    answers = list(seen["stream"] if kind == "stream" else seen["aio"]["streamed"])
    assert f"[request id: {prefix}2] INVALID_ARGUMENT: parameters.lambda" in answers.pop(2)
    assert [(answer["id"], answer["lambda"], answer["final"]) for answer in answers] == [
        (f"{prefix}{number}", number, True) for number in (0, 1, 3, 4)
    ]


def test_the_first_error_can_end_a_stream(seen: dict[str, Any]) -> None:
    assert seen["first_error"] == "StatusCode.INVALID_ARGUMENT"


def test_the_asyncio_client_works_too(seen: dict[str, Any]) -> None:
    assert seen["aio"]["ready"]
    assert seen["aio"]["unary"]["id"] == "aio"
    assert len(seen["aio"]["unary"]["exit"]) == 2


def test_what_is_not_served_is_unimplemented_with_a_reason(seen: dict[str, Any]) -> None:
    for what, (code, reason) in seen["refused"].items():
        assert code == "StatusCode.UNIMPLEMENTED", what
        assert ("shared memory" if what.startswith(("system", "cuda")) else "settings") in reason


def test_statistics_count_what_the_client_sent(seen: dict[str, Any]) -> None:
    counted = seen["counted"]
    assert counted["answered"] == 6 + 4 + 1 + 4
    assert counted["frames"] == 6 * 3 + 4 + 2 + 4 * 2
    assert counted["failed"] == 1 + 1 + 1 + 1
    assert 0 < counted["batches"] <= counted["frames"]
    assert counted["compute_ns"] > 0


def test_models_are_loaded_swapped_and_unloaded(seen: dict[str, Any]) -> None:
    managed = seen["managed"]
    assert managed["before"] == ["1", {"1": "READY", "2": "UNAVAILABLE", "3": "UNAVAILABLE"}]
    code, reason = managed["broken"]
    assert code == "StatusCode.FAILED_PRECONDITION"
    assert "weights.safetensors" in reason
    assert managed["after_broken"] == "1"
    assert managed["loaded"] == "2"
    assert managed["unloaded"] == [False, False]
    assert managed["back"] == [True, "1"]
    assert managed["files"][0] == "StatusCode.UNIMPLEMENTED"


def test_the_example_runs(triton_python: Path, address: str, seen: dict[str, Any], tmp_path: Path) -> None:
    pictures = [tmp_path / f"{number}.png" for number in range(2)]
    for picture in pictures:
        Image.new("RGB", (40, 30), (200, 30, 30)).save(picture)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    example = str(ROOT / "examples" / "triton_client.py")
    files = [str(path) for path in (*pictures, tmp_path / "broken.jpg")]
    result = run(triton_python, example, "--url", address, "--model", "tiny", "--lambda", "1e6", *files)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert all("exit 1" in line for line in lines[1:3])
    assert "[request id: 2] INVALID_ARGUMENT" in lines[3]
    noise = run(triton_python, example, "--url", address, "--model", "tiny", "--lambda", "0")
    assert noise.returncode == 0, noise.stderr
    assert len(noise.stdout.splitlines()) == 9
