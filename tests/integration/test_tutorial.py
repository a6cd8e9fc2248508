"""The commands of docs/tutorial.md, as they stand there, in a folder that holds the repository's examples and rules."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from offramp_model.bundle import open_bundle
from tests.integration.conftest import PATIENCE_S

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```bash(?P<title>[^\n]*)\n(?P<commands>.*?)^```$", re.DOTALL | re.MULTILINE)
STAYS = 'title="leave it running"'
GATHERED, TRAINED, SERVED, STREAMED, ASKED, COUNTED, WATCHED = (f"## {number}." for number in range(1, 8))

pytestmark = pytest.mark.skipif(shutil.which("bash") is None or shutil.which("curl") is None, reason="bash or curl is missing")


class Reader:
    """Somebody who follows the tutorial; only the ports are free ones, and waiting is for machines that do nothing else."""

    def __init__(self, folder: Path, path: str) -> None:
        self.folder = folder
        self.seen: dict[str, list[str]] = {}
        """What each block printed, by section."""
        self._ready = folder / "ready.json"
        self._running: list[subprocess.Popen[str]] = []
        self._addresses: dict[str, str] = {}
        self._environment = os.environ | {
            "PATH": path,
            "OFFRAMP_GRPC_PORT": "0",
            "OFFRAMP_HTTP_PORT": "0",
            "OFFRAMP_READY_FILE": str(self._ready),
            "OFFRAMP_DEVICE": "cpu",
            "OFFRAMP_TORCH_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }

    def follow(self, section: str) -> list[str]:
        """Run the commands of one section; returns what each block printed."""
        page = (ROOT / "docs" / "tutorial.md").read_text()
        text = page[page.index(section) :].split("\n## ")[0]
        blocks = list(FENCE.finditer(text))
        assert blocks, f"no commands under {section}"
        runs = (self.leave if STAYS in block["title"] else self.run for block in blocks)
        self.seen[section] = [run(block["commands"]) for run, block in zip(runs, blocks, strict=True)]
        return self.seen[section]

    def run(self, commands: str) -> str:
        for there, here in self._addresses.items():
            commands = commands.replace(there, here)
        bash = ["bash", "-euo", "pipefail", "-c", commands]
        done = subprocess.run(
            bash, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=10 * PATIENCE_S, check=False
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def leave(self, command: str) -> str:
        """Start a server and wait until it says where it listens."""
        log = self.folder / f"{command.split()[0]}.log"
        command = command.replace("localhost:9090", "127.0.0.1:0")
        with log.open("w") as file:
            started = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self._environment, stderr=file, text=True
            )
        self._running.append(started)
        deadline = time.monotonic() + 2 * PATIENCE_S
        while not self._listens(log):
            assert started.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        return log.read_text()

    def _listens(self, log: Path) -> bool:
        if found := re.search(r'msg="Listening on" address="?([\d.]+:\d+)', log.read_text()):
            self._addresses["localhost:9090"] = found[1]
        elif log.name.startswith("offramp-server") and self._ready.exists():
            addresses = json.loads(self._ready.read_text())
            self._addresses["localhost:9464"] = addresses["http"]
            self._environment["OFFRAMP_ADDRESS"] = addresses["grpc"]
            return True
        return found is not None

    def stop(self) -> list[int]:
        """What Ctrl-C in each terminal gives."""
        for started in self._running:
            started.send_signal(signal.SIGINT)
        return [started.wait(PATIENCE_S) for started in self._running]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, installed_path: str) -> Iterator[Reader]:
    """One who has the toy images, a trained bundle, and a server that runs."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in ("examples", "docker"):
        (folder / name).symlink_to(ROOT / name)
    reader = Reader(folder, installed_path)
    for section in (GATHERED, TRAINED, SERVED):
        reader.follow(section)
    yield reader
    assert set(reader.stop()) == {0}


def test_the_bundle_is_published_with_its_report(reader: Reader) -> None:
    manifest = open_bundle(reader.folder / "bundles" / "shapes" / "1").manifest
    assert manifest.labels == ("cross", "disc", "square", "stripes")
    assert manifest.full_accuracy > 0.5
    assert (reader.folder / "runs" / "first" / "report" / "report.md").is_file()


def test_the_server_tells_what_it_serves(reader: Reader) -> None:
    _, told = reader.seen[SERVED]
    assert told.startswith("SERVING")
    assert "shapes 1" in told
    assert "Four shapes on noisy ground." in told


def test_streams_are_answered_and_the_lambda_is_felt(reader: Reader) -> None:
    plain, by_lambda, by_bound, swept = reader.follow(STREAMED)
    assert "200 classified, 0 failed" in plain
    free, priced, scheduled = (float(cost) for cost in re.findall(r"compute +([\d.]+) of the full network", by_lambda))
    assert priced < scheduled < free
    assert "router λ 0 τ 0.5" in by_lambda
    assert "router λ 20 τ 0.5" in by_lambda
    assert by_bound.count("200 classified, 0 failed") == 2
    assert swept.count("router λ") == 4
    assert (reader.folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_outcomes_are_within_reach(reader: Reader) -> None:
    by_cost, by_drop = reader.follow(ASKED)
    assert "for cost ≤ 0.7" in by_cost
    assert "for drop ≤ 0.3" in by_drop
    assert all("200 classified, 0 failed" in said for said in (by_cost, by_drop))


def test_what_was_streamed_is_counted(reader: Reader) -> None:
    reader.run("offramp stream images/test --frames 10 --json")
    (counted,) = reader.follow(COUNTED)
    assert re.search(r'offramp_exit_depth_count\{model="shapes",.*version="1"\} [1-9]', counted)


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's package prometheus is not installed")
def test_prometheus_collects_it(reader: Reader) -> None:
    reader.run("offramp stream images/test --frames 10 --json")
    *_, asked = reader.follow(WATCHED)
    page = (ROOT / "docs" / "tutorial.md").read_text()
    query = next(block["commands"] for block in FENCE.finditer(page) if "api/v1/query" in block["commands"])
    deadline = time.monotonic() + PATIENCE_S
    while not json.loads(asked)["data"]["result"]:  # until it has scraped for the first time
        assert time.monotonic() < deadline
        time.sleep(0.5)
        asked = reader.run(query)
    ((_, mean_exit),) = (result["value"] for result in json.loads(asked)["data"]["result"])
    assert 1 <= float(mean_exit) <= 4
