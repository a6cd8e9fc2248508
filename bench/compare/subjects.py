"""What is measured: Offramp's server, the peers' servers, and the bare loop, each as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compare.lanes import Connection, RefusedError, opener
from compare.peers.peer import Peer, ServedNetwork, Site, install
from compare.processes import ServerProcess, StartError
from offramp_client import Client, Control
from offramp_client.bench_lane import open_lanes
from offramp_client.bench_types import OpenLane
from offramp_model.bundle import Bundle

READY_TIMEOUT_S = 180.0
CONNECTIONS = 8
"""Over which the streams of one load are spread."""


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames that every server gets."""

    source: str
    images_NHWC: np.ndarray
    truth: list[int] | None
    """The class of each, where that is known."""


class OfframpServer:
    """Offramp, on a bundle, with its settings as they come."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        """Start it."""
        manifest, self._ready = bundle.manifest, folder / "ready.json"
        flags = {
            "store": bundle.path.resolve().parents[1],
            "models": f"{manifest.name}:{manifest.version}",
            "grpc-port": 0,
            "http-port": 0,
            "ready-file": self._ready,
            "device": "cpu",
            "log-level": "warning",
        }
        command = [sys.executable, "-m", "offramp_server", *(f"--{name}={value}" for name, value in flags.items())]
        self.process = ServerProcess(command, _our_path(), folder / "offramp.log", folder)

    async def until_ready(self) -> None:
        """Return once it serves. Raises StartError."""
        await _until(self.process, self._ready.exists)
        self._address: str = json.loads(self._ready.read_text())["grpc"]

    async def describe(self) -> dict[str, str]:
        """What it runs the model on."""
        async with Client(self._address) as client:
            model = await client.model()
        return {"backend": model.backend, "device": model.device}

    @asynccontextmanager
    async def lanes(self, frames: Frames, control: Control, connections: int) -> AsyncIterator[OpenLane]:
        """What opens streams under a control."""
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(self._address)) for _ in range(connections)]
            yield open_lanes(clients, list(frames.images_NHWC), [control])


class PeerServer:
    """A peer, with every form of the network loaded. Raises StartError where it can't be installed or started."""

    def __init__(self, peer: Peer, networks: tuple[ServedNetwork, ...], bundle: Bundle, home: Path, folder: Path) -> None:
        """Install it where it is not, and start it."""
        self.name, self.networks = peer.name, networks
        network = bundle.manifest.network
        port, *spare = free_ports(3)
        site = Site(install(peer, home), folder, networks, network.input_size, network.classes, port, tuple(spare))
        self._launch = peer.prepare(site)
        self.process = ServerProcess(self._launch.command, self._launch.environment, folder / "server.log", folder)
        self.versions = _versions(site.python, peer)

    async def until_ready(self, frames: Frames) -> None:
        """Return once it has classified a frame with every network. Raises StartError."""
        for network in self.networks:
            await _until(self.process, lambda name=network.name: self._answers(name, frames))  # type: ignore[misc]

    async def _answers(self, network: str, frames: Frames) -> bool:
        # a new connection each time: one that has failed waits longer and longer before it tries again
        connection = self._launch.connect(network, frames.images_NHWC[:1])
        try:
            await asyncio.wait_for(connection.ask([0]), READY_TIMEOUT_S)
        except (RefusedError, TimeoutError):
            return False
        finally:
            await connection.close()
        return True

    @asynccontextmanager
    async def lanes(self, frames: Frames, network: str, connections: int) -> AsyncIterator[OpenLane]:
        """What opens lanes to one network."""
        opened: list[Connection] = [self._launch.connect(network, frames.images_NHWC) for _ in range(connections)]
        try:
            yield opener(opened)
        finally:
            for connection in opened:
                await connection.close()


class Bare:
    """The process of bare.py."""

    def __init__(self, bundle: Bundle, frames: Frames, control: str, folder: Path) -> None:
        """Start it; it decides the exits of the frames under a bundle's control, given as JSON."""
        images = folder / "images.npy"
        np.save(images, frames.images_NHWC)
        program = Path(__file__).with_name("bare.py")
        command = [sys.executable, str(program), str(bundle.path), str(images), control]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._read()

    def do(self, what: str, **arguments: float) -> Any:
        """Run one command of bare.py's and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what} | arguments) + "\n")
        self._process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        """End it."""
        self._process.communicate()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StartError("the bare loop's process ended; its own message is above")
        return json.loads(line)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


async def _until(process: ServerProcess, is_ready: Callable[[], Any]) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        ready = is_ready()
        if (await ready) if asyncio.iscoroutine(ready) else ready:
            return
        process.check()
        if time.monotonic() > deadline:
            raise StartError(f"was not ready after {READY_TIMEOUT_S:g} s: {process.last_words()}")
        await asyncio.sleep(0.3)


def _our_path() -> dict[str, str]:
    return {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}


def _versions(python: Path, peer: Peer) -> dict[str, str]:
    """Of what the peer's environment was asked to hold."""
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    wanted = {requirement.partition("[")[0].partition("=")[0].partition(">")[0] for requirement in peer.requirements}
    wanted |= {"onnxruntime", "openvino"}
    return {each["name"]: each["version"] for each in json.loads(listed.stdout) if each["name"] in wanted}
