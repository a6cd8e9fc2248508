"""Whose threads run what: torch steps back where another runtime brings its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from offramp_client import Client
from offramp_model.bundle import Bundle
from offramp_server.app import Server
from offramp_server.backends import TorchBackend
from offramp_server.config import Settings
from offramp_server.engine.types import StageResult
from tests.integration.conftest import PATIENCE_S


@pytest.mark.parametrize(("runtime", "threads"), [("torch", 3), ("openvino", 1)])
async def test_torch_gets_one_thread_where_openvino_alone_runs_the_networks(
    settings: Settings, runtime: str, threads: int
) -> None:
    seen: list[int] = []

    class Backend(TorchBackend):
        name = runtime

        def run_stage(self, exit: int, features: Tensor, earlier_NEC: Tensor) -> StageResult:
            seen.append(torch.get_num_threads())
            return super().run_stage(exit, features, earlier_NEC)

    def load(bundle: Bundle, device: str) -> Backend:
        return Backend(bundle, device)

    async with Server(settings.model_copy(update={"torch_threads": 3}), load) as server:
        seen.clear()  # of the warming up
        async with Client(server.grpc_address, timeout_s=PATIENCE_S) as client:
            await client.classify(np.zeros((32, 32, 3), np.uint8))
    assert seen
    assert set(seen) == {threads}
