"""Stages captured as CUDA graphs give what uncaptured ones give; padding is dropped. Most of it needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from offramp_model.bundle import open_bundle
from offramp_server.backends.cuda_graphs import SIZES, _padded
from offramp_server.backends.torch_backend import TorchBackend
from offramp_server.engine.execution import no_logits

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.parametrize("shape", [(3, 5, 4, 4), (3, 2, 4), (3, 0, 4)])
def test_padding_keeps_rows_and_memory_format(shape: tuple[int, ...]) -> None:
    rows = torch.randn(shape)
    if len(shape) == 4:
        rows = rows.contiguous(memory_format=torch.channels_last)
    padded = _padded(rows, 8)
    assert padded.shape == (8, *shape[1:])
    assert torch.equal(padded[:3], rows)
    assert not padded[3:].any()
    if len(shape) == 4:
        assert padded.is_contiguous(memory_format=torch.channels_last)


@needs_gpu
@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("count", [1, 3, 32, SIZES[-1] + 1])
def test_captured_stages_are_near_those_of_the_cpu(smoke_store: Path, precision: Literal["f32", "bf16"], count: int) -> None:
    bundle = open_bundle(smoke_store / "smoke" / "2")
    frames = list(np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8))
    gpu, cpu = TorchBackend(bundle, "cuda", precision), TorchBackend(bundle, "cpu")
    expected, _ = cpu.run_whole(cpu.prepare(frames))
    for _ in range(2):  # the second run replays what the first captured
        logits_NEC, routers = gpu.run_whole(gpu.prepare(frames))
        assert len(routers) == gpu.exits - 1
        tolerance = 0.05 if precision == "bf16" else 1e-3
        assert float(np.sqrt(np.square(logits_NEC - expected).mean())) < tolerance * float(expected.std())


@needs_gpu
def test_a_result_outlives_the_next_replay(smoke_store: Path) -> None:
    backend = TorchBackend(open_bundle(smoke_store / "smoke" / "2"), "cuda", "bf16")
    black, white = (np.full((16, 16, 3), value, np.uint8) for value in (0, 255))
    empty = no_logits(1, backend.classes)
    first = backend.run_stage(1, backend.prepare([black]), empty)
    before, features = first.logits_NEC.copy(), first.features.clone()
    backend.run_stage(1, backend.prepare([white]), empty)
    np.testing.assert_array_equal(first.logits_NEC, before)
    assert torch.equal(first.features, features)
