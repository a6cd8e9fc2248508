"""A bundle of random weights, and real servers on free ports that serve it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc.aio
import httpx
import numpy as np
import pytest
import torch
from torch import Tensor

from offramp.v1 import classification_pb2_grpc
from offramp_model.bundle import Bundle
from offramp_model.network import MultiExitResNet
from offramp_model.weights import publish_bundle
from offramp_server.app import Server
from offramp_server.backends.torch_backend import TorchBackend
from offramp_server.config import Settings
from offramp_server.engine.types import StageResult
from tests.unit.server.rpc.manifests import tiny_manifest

PATIENCE_S = 120.0
"""Bounds every wait, so that a fault fails a test and never hangs it."""


def publish_tiny(store: Path, version: int = 1) -> Bundle:
    manifest = tiny_manifest(version=version)
    torch.manual_seed(version)
    return publish_bundle(store, manifest, MultiExitResNet(manifest.network).state_dict(), {})


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the model `tiny` in versions 1 and 2; read-only for tests."""
    store = tmp_path_factory.mktemp("store")
    for version in (1, 2):
        publish_tiny(store, version)
    return store


@pytest.fixture
def settings(tiny_store: Path) -> Settings:
    return Settings(store=tiny_store, grpc_port=0, http_port=0, device="cpu", torch_threads=1, drain_timeout_s=PATIENCE_S)


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Server]:
    async with Server(settings) as server:
        yield server


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> classification_pb2_grpc.ClassificationServiceStub:
    return classification_pb2_grpc.ClassificationServiceStub(channel)


async def get(server: Server, path: str, method: str = "GET") -> httpx.Response:
    """Ask the HTTP side."""
    async with httpx.AsyncClient(base_url=f"http://{server.http_address}", timeout=PATIENCE_S, trust_env=False) as client:
        return await client.request(method, path)


class GatedBackend(TorchBackend):
    """Runs batches only while its gate is open, and remembers them as (stage, frames)."""

    def __init__(self, bundle: Bundle, device: str) -> None:
        super().__init__(bundle, device)
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[tuple[int, int]] = []

    def run_stage(self, exit: int, features: Tensor, earlier_NEC: np.ndarray) -> StageResult:
        assert self.gate.wait(PATIENCE_S)
        self.batches.append((exit, len(features)))
        return super().run_stage(exit, features, earlier_NEC)


class Gate:
    """Loads gated backends and moves their gates together."""

    def __init__(self) -> None:
        self.backends: list[GatedBackend] = []

    def load(self, bundle: Bundle, device: str) -> GatedBackend:
        self.backends.append(GatedBackend(bundle, device))
        return self.backends[-1]

    def load_closed(self, bundle: Bundle, device: str) -> GatedBackend:
        backend = self.load(bundle, device)
        backend.gate.clear()
        return backend

    def close(self) -> None:
        for backend in self.backends:
            backend.gate.clear()
            backend.batches.clear()

    def open(self) -> None:
        for backend in self.backends:
            backend.gate.set()


@pytest.fixture
def gate() -> AsyncIterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fail where it never does."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # what is awaited lies in another thread or process
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def started(server: Server) -> AsyncIterator[Server]:
    """A server that the test stops by itself, and that is stopped in any case."""
    try:
        await server.startup()
        yield server
    finally:
        await server.shutdown()


async def failure(call: grpc.aio.Call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value
