"""The command line against a real server in a process of its own."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from offramp_client import FrontierPoint
from offramp_client.cli import app
from offramp_client.cli.inform import thinned

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.unit.client.fake_server"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images, two a class; the fake server calls image n of a stream after class n modulo ten."""
    from tests.unit.client.fake_server import LABELS

    for label in LABELS:
        (tmp_path / label).mkdir()
    random = np.random.default_rng(0)
    for number in range(20):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / LABELS[number // 2] / f"{number:04}.png")
    return tmp_path


def offramp(*arguments: object, address: str = "") -> Result:
    return CliRunner(env={"OFFRAMP_ADDRESS": address}).invoke(app, [str(argument) for argument in arguments])


def test_stream_prints_a_line_a_frame_and_a_summary(address: str) -> None:
    done = offramp("stream", "demo", "--frames", 6, "--lambda", 0.5, address=address)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["0", "airplane"], ["1", "automobile"]]
    assert all("router λ 0.5 τ 0.5" in line for line in lines[:6])
    assert lines[6].startswith("frames   6 classified, 0 failed")


def test_stream_follows_the_schedule_frame_by_frame(address: str) -> None:
    done = offramp("stream", "--frames", 7, "--lambda-schedule", "0,2,8", "--every", 2, "--json", address=address)
    assert done.exit_code == 0, done.output
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["classification"]["control"]["lambda_"] for result in results] == [0, 0, 2, 2, 8, 8, 0]
    assert [result["frame_id"] for result in results] == list(range(7))


def test_stream_passes_every_choice_on(address: str, folder: Path) -> None:
    choices = ("--policy", "entropy", "--threshold", 0.3, "--min-exit", 2, "--max-exit", 3, "--max-cost", 0.8, "--top-k", 2)
    done = offramp("stream", folder, *choices, "--unordered", "--json", "--fps", 1000, "--window", 3, address=address)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == 20
    used = results[0]["classification"]["control"]
    assert (used["policy"], used["threshold"], used["max_cost"]) == ("entropy", 0.3, 0.8)
    assert (used["min_exit"], used["max_exit"]) == (2, 3)
    assert len(results[0]["classification"]["top"]) == 2


@pytest.mark.parametrize(
    "asked", [{"max_mean_cost": 0.4}, {"max_accuracy_drop": 0.01}, {"max_accuracy_drop": 0.01, "confidence": 0.99}]
)
def test_stream_and_classify_ask_for_an_outcome(address: str, folder: Path, asked: dict[str, float]) -> None:
    options = [part for name, value in asked.items() for part in (f"--{name.replace('_', '-')}", value)]
    names = ("max_mean_cost", "max_accuracy_drop", "confidence")
    for command in (("stream", "--frames", 1), ("classify", folder / "cat" / "0006.png")):
        done = offramp(*command, *options, "--json", address=address)
        assert done.exit_code == 0, done.output
        answer = json.loads(done.stdout)
        used = answer["classification"]["control"] if command[0] == "stream" else answer["control"]
        assert {name: used[name] for name in names if used[name] is not None} == asked


def test_stream_and_classify_say_what_may_happen_under_pressure(address: str, folder: Path) -> None:
    options = ("--max-latency-ms", 40, "--allow-early-answer", "--allow-degrade")
    for command in (("stream", "--frames", 1), ("classify", folder / "cat" / "0006.png")):
        done = offramp(*command, *options, "--json", address=address)
        assert done.exit_code == 0, done.output
        answer = json.loads(done.stdout)
        used = answer["classification"]["control"] if command[0] == "stream" else answer["control"]
        assert (used["max_latency_ms"], used["allow_early_answer"], used["allow_degrade"]) == (40, True, True)


def test_a_schedule_of_lambdas_and_an_outcome_exclude_each_other(address: str) -> None:
    done = offramp("stream", "--lambda-schedule", "0,1", "--max-mean-cost", 0.4, address=address)
    assert done.exit_code == 2
    assert "--lambda-schedule" in done.stderr


def test_stream_goes_on_past_a_bad_frame_and_fails_when_all_are(address: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"rubbish")
    done = offramp("stream", tmp_path, address=address)
    assert done.exit_code == 1
    assert "neither a JPEG nor a PNG" in done.stdout
    assert done.stderr == "offramp: no frame could be classified\n"
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    done = offramp("stream", tmp_path, address=address)
    assert done.exit_code == 0
    assert "1 classified, 1 failed" in done.stdout


def test_ctrl_c_ends_a_stream_with_its_summary(address: str) -> None:
    command = [sys.executable, "-u", "-m", "offramp_client", "stream", "--address", address, "--fps", "50"]
    # a shell starts background jobs with SIGINT ignored, and children inherit that: the tests may be such a job
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert "airplane" in first
    assert process.returncode == 130
    assert err == ""
    assert "of the full network" in out


def test_classify_names_what_it_could_not(address: str, folder: Path) -> None:
    good, bad = folder / "cat" / "0006.png", folder / "bad.jpg"
    bad.write_bytes(b"rubbish")
    done = offramp("classify", good, "--top-k", 3, "--json", address=address)
    assert done.exit_code == 0, done.output
    assert [entry["name"] for entry in json.loads(done.stdout)["top"]] == ["airplane", "automobile", "bird"]
    done = offramp("classify", good, bad, folder / "none.png", address=address)
    assert done.exit_code == 1
    assert "airplane 0.90" in done.stdout
    errors = done.stderr.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith(f"offramp: {bad}: frame.encoded: neither")
    assert "none.png: No such file" in errors[1]


def test_models_and_points_are_tables(address: str) -> None:
    done = offramp("models", address=address)
    assert done.exit_code == 0
    assert "resnet18-cifar10" in done.stdout
    done = offramp("points", address=address)
    assert done.exit_code == 0
    row = next(line for line in done.stdout.splitlines() if "λ 8" in line)
    assert row.split() == ["router", "λ", "8", "τ", "0.5", "0.710", "0.290", "97%", "2%", "1%", "0%"]


def frontier_rows(output: str) -> list[list[str]]:
    table = output.partition("the router over λ")[2]
    return [cells for line in table.splitlines() if len(cells := line.split()) == 8 and cells[-1].endswith("%")]


def test_points_show_the_frontier_thinned_and_whole(address: str) -> None:
    done = offramp("points", address=address)
    rows = frontier_rows(done.stdout)
    assert 4 <= len(rows) <= 10
    assert rows[0] == ["0", "0.900", "0.900", "0.10%", "0%", "0%", "0%", "100%"]
    assert (rows[-1][0], rows[-1][3]) == ("2.9", "14.60%")
    assert f"{len(rows)} of 30 rows, all with --frontier" in " ".join(done.stdout.split())
    done = offramp("points", "--frontier", address=address)
    assert [row[0] for row in frontier_rows(done.stdout)] == [f"{step / 10:g}" for step in range(30)]
    assert "of 2000 frames" in done.stdout


@given(st.lists(st.floats(0.2, 1.1), min_size=1, max_size=40), st.integers(2, 12))
def test_a_thinned_frontier_keeps_its_ends_and_its_order(costs: list[float], most: int) -> None:
    points = [FrontierPoint(float(index), cost, 0.5, (1.0,), 0) for index, cost in enumerate(costs)]
    shown = thinned(points, most)
    assert len(shown) <= most
    assert (shown[0], shown[-1]) == (points[0], points[-1])
    assert [point.lambda_ for point in shown] == sorted({point.lambda_ for point in shown})


def test_health_is_an_exit_code(address: str) -> None:
    done = offramp("health", "--wait", 20, address=address)
    assert (done.exit_code, done.stdout) == (0, "SERVING\n")
    done = offramp("health", "--service", "no.such.Service", address=address)
    assert (done.exit_code, done.stdout) == (1, "SERVICE_UNKNOWN\n")
    done = offramp("health", address="127.0.0.1:1")
    assert (done.exit_code, done.stdout) == (1, "UNREACHABLE\n")


def test_sweep_measures_each_choice(address: str, folder: Path) -> None:
    arguments = ("sweep", folder, "--lambda", "0,8", "--threshold", "0.5,0.9", "--policy", "router")
    done = offramp(*arguments, "--json", address=address)
    assert done.exit_code == 0, done.output
    points = json.loads(done.stdout)
    assert [(p["control"]["lambda_"], p["control"]["threshold"]) for p in points] == [(0, 0.5), (0, 0.9), (8, 0.5), (8, 0.9)]
    # Image n of 20 belongs to class n // 2, and the fake server says n % 10: right for the first and the last image.
    assert [(p["frames"], p["accuracy"]) for p in points] == [(20, 0.1)] * 4
    assert points[0]["mean_cost"] > points[2]["mean_cost"]
    assert points[2]["exit_fractions"] == [1, 0, 0, 0]
    assert 0 < points[0]["latency_p50_ms"] <= points[0]["latency_p95_ms"]


def test_sweep_measures_outcomes_beside_lambdas(address: str, folder: Path) -> None:
    asked = ("--lambda", 2, "--max-mean-cost", "0.4,0.6", "--max-accuracy-drop", "0.01", "--confidence", 0.99)
    done = offramp("sweep", folder, *asked, "--limit", 2, "--json", address=address)
    assert done.exit_code == 0, done.output
    controls = [point["control"] for point in json.loads(done.stdout)]
    names = ("max_mean_cost", "max_accuracy_drop", "confidence")
    assert controls[0]["lambda_"] == 2
    assert [{name: control[name] for name in names if control[name] is not None} for control in controls] == [
        {},
        {"max_mean_cost": 0.4},
        {"max_mean_cost": 0.6},
        {"max_accuracy_drop": 0.01, "confidence": 0.99},
    ]
    done = offramp("sweep", folder, "--max-mean-cost", "0.4", "--limit", 2, address=address)
    assert "cost ≤" in done.stdout
    done = offramp("sweep", folder, "--lambda", 1, "--confidence", 0.9, address=address)
    assert done.exit_code == 2
    assert "--confidence" in done.stderr


def test_sweep_prints_a_table_and_plots(address: str, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    file = folder / "sweep.svg"
    done = offramp("sweep", folder, "--lambda", "0,8", "--limit", 5, "--plot", file, address=address)
    assert done.exit_code == 0, done.output
    assert "5 images a row" in done.stdout
    assert "<svg" in file.read_text()


def test_sweep_refuses_what_it_cannot_measure(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = offramp("sweep", folder, "--lambda", "0;8", address=address)
    assert done.exit_code == 2
    assert "no list of numbers" in done.stderr
    (folder / "unicorn").mkdir()
    (folder / "cat" / "0006.png").rename(folder / "unicorn" / "0006.png")
    done = offramp("sweep", folder, address=address)
    assert done.exit_code == 1
    assert done.stderr.startswith("offramp: resnet18-cifar10 has no class unicorn")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = offramp("sweep", folder, "--plot", folder / "a.png", address=address)
    assert "pip install 'offramp[plot]'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stream", "--model", "vgg"), "no model 'vgg' is loaded"),
        (("stream", "nowhere"), "nowhere: neither a file"),
        (("points", "--model", "vgg"), "no model 'vgg' is loaded"),
        (("stream", "--max-exit", "-1"), "control.max_exit"),
    ],
)
def test_errors_are_one_line_and_a_code(address: str, arguments: tuple[str, ...], message: str) -> None:
    done = offramp(*arguments, address=address)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["stream", "models", "points"])
def test_nobody_listening_is_one_line(command: str) -> None:
    done = offramp(command, address="127.0.0.1:1")
    assert done.exit_code == 1
    assert done.stderr.startswith("offramp: ")
    assert done.stderr.count("\n") == 1
    assert isinstance(done.exception, SystemExit)
