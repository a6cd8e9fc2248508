"""On how many threads torch runs a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from offramp_client import Client
from offramp_server.app import Server
from offramp_server.backends.torch_backend import TorchBackend
from offramp_server.config import Settings
from tests.integration.conftest import PATIENCE_S


async def test_torch_runs_batches_on_as_many_threads_as_the_setting_says(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Backend(TorchBackend):
        def run_stage(self, *arguments: Any) -> Any:
            seen.append(torch.get_num_threads())
            return super().run_stage(*arguments)

    monkeypatch.setattr("offramp_server.backends.torch_backend.TorchBackend", Backend)
    async with Server(settings.model_copy(update={"torch_threads": 3})) as server:
        seen.clear()  # of the warming up
        async with Client(server.grpc_address, timeout_s=PATIENCE_S) as client:
            await client.classify(np.zeros((32, 32, 3), np.uint8))
    assert seen
    assert set(seen) == {3}
