"""Does the server grow? Streams open, send a few frames and close, over and over, while its resident memory is read.

    python bench/memory.py [--minutes 10] [--streams 1000] [--bundle FOLDER]

Starts a server of its own. Prints the memory at the start and at the end, and the slope with its standard error, by least
squares over all but the first quarter, in which pools and caches fill.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import grpc.aio
import numpy as np

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from offramp_model.bundle import BundleStore, open_bundle
from offramp_server.config import DEFAULT_MODEL, default_store

SAMPLE_S = 2.0
CHANNELS = 8
"""HTTP/2 connections that share the streams."""


async def run_stream(stub: classification_pb2_grpc.ClassificationServiceStub, frames: list[pb.Frame], cancelled: bool) -> int:
    """Open a stream, send the frames, take their results; or leave them and cancel. Returns the results taken."""
    call = stub.StreamClassify()
    await call.write(pb.StreamClassifyRequest(config=pb.StreamConfig(control=pb.RoutingControl(allow_degrade=True))))
    for frame in frames:
        await call.write(pb.StreamClassifyRequest(frame=frame))
    if cancelled:
        call.cancel()
        return 0
    await call.done_writing()
    return sum([response.HasField("result") async for response in call])


async def load(address: str, streams: int, frames: list[pb.Frame], until: float) -> tuple[int, int]:
    """Keep so many streams open until then; every tenth is cancelled half-way. Returns the streams closed and results taken."""
    closed = results = 0
    channels = [grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(CHANNELS)]
    stubs = [classification_pb2_grpc.ClassificationServiceStub(channel) for channel in channels]  # type: ignore[no-untyped-call]

    async def caller(number: int) -> None:
        nonlocal closed, results
        turn = number
        while time.monotonic() < until:
            turn += 1
            taken = await run_stream(stubs[number % CHANNELS], frames, cancelled=turn % 10 == 0)
            results += taken  # not in one line with the wait, during which others count
            closed += 1

    await asyncio.gather(*(caller(number) for number in range(streams)))
    for channel in channels:
        await channel.close()
    return closed, results


async def sample(pid: int, until: float) -> list[tuple[float, float]]:
    """(seconds, MB resident) until then."""
    samples, started, memory = [], time.monotonic(), Path(f"/proc/{pid}/statm")
    while time.monotonic() < until:
        pages = int(memory.read_text().split()[1])  # noqa: ASYNC240  # blocks on nothing
        samples.append((time.monotonic() - started, pages * 4096 / 1e6))
        await asyncio.sleep(SAMPLE_S)
    return samples


def slope(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """MB a minute and its standard error."""
    minutes, megabytes = np.array(samples[len(samples) // 4 :]).T / [[60], [1]]
    (rate, _), covariance = np.polyfit(minutes, megabytes, 1, cov=True)
    return float(rate), float(np.sqrt(covariance[0, 0]))


async def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Serve, load, report."""
    ready, log = folder / "ready.json", (folder / "log").open("w")
    bundle = open_bundle(arguments.bundle) if arguments.bundle else BundleStore(default_store()).open(DEFAULT_MODEL)
    name, version = bundle.manifest.name, bundle.manifest.version
    settings = ["--store", bundle.path.parent.parent, "--models", f"{name}:{version}", "--ready-file", ready]
    settings += ["--grpc-port", 0, "--http-port", 0, "--max-streams", 2 * arguments.streams, "--max-in-flight", 4096]
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "offramp_server", *map(str, settings), stdout=log, stderr=log
    )
    try:
        while not ready.exists():
            if server.returncode is not None:
                raise SystemExit((folder / "log").read_text())
            await asyncio.sleep(0.1)
        address = json.loads(ready.read_text())["grpc"]
        side = bundle.manifest.network.input_size
        random = np.random.default_rng(0)
        frames = [
            pb.Frame(frame_id=n, rgb8=pb.RawImage(data=random.bytes(side * side * 3), height=side, width=side))
            for n in range(arguments.frames)
        ]
        until = time.monotonic() + 60 * arguments.minutes
        samples, (closed, results) = await asyncio.gather(
            sample(server.pid, until), load(address, arguments.streams, frames, until)
        )
    finally:
        if server.returncode is None:
            server.send_signal(signal.SIGTERM)
        await server.wait()
        log.close()
    rate, error = slope(samples)
    quarter = samples[len(samples) // 4]
    print(
        f"{arguments.streams} streams at a time for {arguments.minutes:g} minutes: {closed} closed, {results} results; resident "
        f"{samples[0][1]:.0f} MB at the start, {quarter[1]:.0f} MB after a quarter, {samples[-1][1]:.0f} MB at the end; "
        f"slope {rate:+.2f} ± {error:.2f} MB a minute"
    )


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=1000, help="open at a time")
    parser.add_argument("--frames", type=int, default=4, help="of one stream")
    parser.add_argument("--bundle", type=Path, help="folder of a bundle; the newest embedded one where not given")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(parser.parse_args(), Path(folder)))


if __name__ == "__main__":
    main()
