"""`make demo`: start a server on free ports, stream the built-in demo at three λ, show what came back, stop the server.

Needs no network, no data set and no GPU. For the moving picture of the same thing: `make serve`, then `offramp stream demo`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from offramp_client import Client, Model, Result
from offramp_client.demo import Demo

LAMBDAS = (0.0, 0.1, 0.3)  # compute is free, has a price, is dear
FRAMES = 240
SHOWN = 6
START_TIMEOUT_S = 60.0
METRICS = ("offramp_exit_depth_bucket", "offramp_compute_ratio_sum", "offramp_compute_ratio_count", "offramp_macs_saved_total")
console = Console(width=min(Console().width, 100))


@contextmanager
def running_server() -> Iterator[dict[str, str]]:
    """A server process on free ports; yields its addresses, and holds that it exits with 0 when told to stop."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        command = [sys.executable, "-m", "offramp_server", "--grpc-port=0", "--http-port=0", f"--ready-file={ready}"]
        process = subprocess.Popen([*command, "--log-level=warning"])
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the server did not start; its own message is above")
                time.sleep(0.1)
            yield json.loads(ready.read_text())
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(timeout=30) != 0:
                raise SystemExit(f"the server ended with {process.returncode}")


async def stream_at(address: str, lambda_: float) -> list[Result]:
    """Stream the demo's frames at one λ."""
    async with Client(address) as client:
        return [result async for result in client.stream((frame.image for frame in islice(Demo(), FRAMES)), lambda_=lambda_)]


def show(results: list[Result], lambda_: float, exits: int) -> None:
    """A few frames, and the histogram of exits."""
    film = Demo()
    table = Table(
        "frame",
        "photograph",
        "seen as",
        "probability",
        "exit",
        "compute",
        "latency",
        title=f"λ = {lambda_:g}",
        title_justify="left",
    )
    for result in results[:: FRAMES // SHOWN]:
        seen = result.unwrap()
        bar = "▮" * seen.exit + "▯" * (exits - seen.exit)
        latency = f"{result.latency_ms:.0f} ms"
        caption = film.frame(result.frame_id).caption
        table.add_row(str(result.frame_id), caption, seen.name, f"{seen.probability:.0%}", bar, f"{seen.cost_ratio:.3f}", latency)
    console.print(table)
    counts = Counter(result.unwrap().exit for result in results)
    for exit in range(1, exits + 1):
        share = counts[exit] / len(results)
        console.print(f"  exit {exit}  {'█' * round(share * 50):<50} {share:6.1%}", highlight=False)
    mean = sum(result.unwrap().cost_ratio for result in results) / len(results)
    console.print(f"  mean compute {mean:.3f} of the full network over {len(results)} frames\n", highlight=False)


def show_metrics(address: str) -> None:
    """The lines of /metrics that tell the same story."""
    with urllib.request.urlopen(f"http://{address}/metrics") as response:
        lines = response.read().decode().splitlines()
    console.print(f"from http://{address}/metrics, which Prometheus would scrape:")
    for line in lines:
        if line.startswith(METRICS) and not line.endswith(" 0.0"):  # a policy that no frame asked for is 0
            console.print(f"  {line}", highlight=False, soft_wrap=True)


async def describe(address: str) -> Model:
    """The server's default model."""
    async with Client(address) as client:
        return await client.model()


def main() -> None:
    """Run the demo."""
    with running_server() as addresses:
        model = asyncio.run(describe(addresses["grpc"]))
        console.print(f"{model.name} version {model.version} on {model.backend} ({model.device}) at {addresses['grpc']}\n")
        for lambda_ in LAMBDAS:
            show(asyncio.run(stream_at(addresses["grpc"], lambda_)), lambda_, len(model.exits))
        show_metrics(addresses["http"])
    console.print("\nthe server drained and exited with 0")


if __name__ == "__main__":
    main()
