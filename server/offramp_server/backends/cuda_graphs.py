"""Stages captured as CUDA graphs at a few batch sizes, so that a small batch does not wait for its kernels to be launched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from offramp_model.network import StageOutput

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""A batch is padded to the next of these; a larger one runs uncaptured."""
WARM_UPS = 3

RunStage = Callable[[int, Tensor, Tensor], StageOutput]


class CapturedStages:
    """Runs a stage from its graph of the right size, capturing it at its first use."""

    def __init__(self, run: RunStage) -> None:
        self._run, self._captured = run, dict[tuple[int, int], _Captured]()

    def __call__(self, exit: int, features: Tensor, earlier_NEC: Tensor) -> StageOutput:
        """What `run` gives, row by row; the padding's rows are dropped."""
        size = next((size for size in SIZES if size >= len(features)), None)
        if size is None:
            return self._run(exit, features, earlier_NEC)
        if (exit, size) not in self._captured:
            self._captured[exit, size] = _Captured(self._run, exit, _padded(features, size), _padded(earlier_NEC, size))
        return self._captured[exit, size].replay(features, earlier_NEC)


class _Captured:
    """One stage at one batch size, with the memory that its graph reads and writes."""

    def __init__(self, run: RunStage, exit: int, features: Tensor, earlier_NEC: Tensor) -> None:
        self._features, self._earlier_NEC = features, earlier_NEC
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are chosen and memory is taken outside the capture
            for _ in range(WARM_UPS):
                run(exit, features, earlier_NEC)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = run(exit, features, earlier_NEC)

    def replay(self, features: Tensor, earlier_NEC: Tensor) -> StageOutput:
        count, result = len(features), self._result
        self._features[:count].copy_(features)
        self._earlier_NEC[:count].copy_(earlier_NEC)
        self._graph.replay()
        # copies, since the next replay writes over them
        router_output = None if result.router_output is None else result.router_output[:count].clone()
        return StageOutput(result.features_NCHW[:count].clone(), result.logits_NEC[:count].clone(), router_output)


def _padded(rows: Tensor, size: int) -> Tensor:
    """Room for `size` rows of this shape, memory format and type, the rows first."""
    room = torch.zeros_like(rows[:1].expand(size, *rows.shape[1:]), memory_format=torch.contiguous_format)
    if rows.dim() == 4:
        room = room.contiguous(memory_format=torch.channels_last)
    room[: len(rows)] = rows
    return room
