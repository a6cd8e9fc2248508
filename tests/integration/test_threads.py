"""On how many threads torch runs a batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from offramp_client import Client
from offramp_model.bundle import Bundle
from offramp_server.app import Server
from offramp_server.backends import TorchBackend
from offramp_server.config import Settings
from offramp_server.engine.types import StageResult
from tests.integration.conftest import PATIENCE_S


async def test_torch_runs_batches_on_as_many_threads_as_the_setting_says(settings: Settings) -> None:
    seen: list[int] = []

    class Backend(TorchBackend):
        def run_stage(self, exit: int, features: Tensor, earlier_NEC: np.ndarray) -> StageResult:
            seen.append(torch.get_num_threads())
            return super().run_stage(exit, features, earlier_NEC)

    def load(bundle: Bundle, device: str) -> Backend:
        return Backend(bundle, device)

    async with Server(settings.model_copy(update={"torch_threads": 3}), load) as server:
        seen.clear()  # of the warming up
        async with Client(server.grpc_address, timeout_s=PATIENCE_S) as client:
            await client.classify(np.zeros((32, 32, 3), np.uint8))
    assert seen
    assert set(seen) == {3}
