"""Stages of a bundle's network on PyTorch: a CPU, or a CUDA device, where stages are captured as CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from offramp_model.bundle import Bundle
from offramp_model.network import StageOutput
from offramp_model.routing import halting_rule
from offramp_model.weights import load_network
from offramp_server.backends.cuda_graphs import CapturedStages
from offramp_server.engine.types import StageResult

TorchPrecision = Literal["bf16", "f32"]


class TorchBackend:
    """Implements engine.types.Backend."""

    name = "torch"
    batch_step = batches_a_share = 1

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        precision: TorchPrecision = "f32",
        reason: str = "asked for",
        threads: int = 0,
    ) -> None:
        """`device` is `auto` (CUDA where there is one), `cpu`, or any torch device string. Raises BundleError.

        In bf16 the backbone runs in bfloat16, heads and routers in float32. `threads` run a batch on the CPU; 0 leaves it to
        torch.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device, self._threads = torch.device(device), threads
        self._network = load_network(bundle).to(self._device).requires_grad_(False)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
        if precision == "bf16":
            self._network.stem = _Bfloat16(self._network.stem)
            for index, group in enumerate(self._network.groups):
                self._network.groups[index] = _Bfloat16(group)
        self._features_type = torch.bfloat16 if precision == "bf16" else torch.float32
        self._captured = CapturedStages(self._run) if self._device.type == "cuda" else None
        manifest = bundle.manifest
        self.device_description = f"{device}, {'bfloat16' if precision == 'bf16' else 'float32'}"
        self.reason = reason
        self.exits = manifest.network.exits
        self.input_size = manifest.network.input_size
        self.classes = manifest.network.classes
        self.rule = halting_rule(manifest.network, manifest.costs.ratios)
        mean_C11, std_C11 = (
            torch.tensor(values, device=self._device).view(-1, 1, 1)
            for values in (manifest.preprocessing.mean, manifest.preprocessing.std)
        )
        # (x / 255 − mean) / std as one multiplication and one subtraction
        self._scale_C11, self._shift_C11 = 1 / (255 * std_C11), mean_C11 / std_C11

    @torch.inference_mode()
    def prepare(self, images: Sequence[np.ndarray]) -> Tensor:
        """Normalise uint8 (H, W, 3) images, or stack float32 (3, H, W) ones as they are; shape (N, 3, H, W), channels last."""
        if self._threads:
            torch.set_num_threads(self._threads)  # of the calling thread's batches, which the stages are run in too
        batch = torch.from_numpy(np.stack(images)).to(self._device)
        if batch.dtype == torch.uint8:
            return batch.permute(0, 3, 1, 2).float().mul_(self._scale_C11).sub_(self._shift_C11)
        return batch.contiguous(memory_format=torch.channels_last)

    def take(self, features: Tensor, rows_S: np.ndarray) -> Tensor:
        """A copy of these rows."""
        return features.index_select(0, torch.from_numpy(rows_S).to(self._device))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of several as one."""
        return torch.cat(list(parts))

    @torch.inference_mode()
    def run_stage(self, exit: int, features: Tensor, earlier_NEC: np.ndarray) -> StageResult:
        """Run one stage on (N, …) features; stage 1 takes what `prepare` gives, and no earlier logits."""
        output = self._run_on(exit, features, torch.from_numpy(earlier_NEC).to(self._device))
        router_output = None if output.router_output is None else _read(output.router_output)
        return StageResult(output.features_NCHW, _read(output.logits_NEC), router_output)

    @torch.inference_mode()
    def run_whole(self, pixels: Tensor) -> tuple[np.ndarray, list[np.ndarray]]:
        """Run every stage in a row on what `prepare` gives, for frames that go to the last exit anyway.

        Returns the class logits of every exit, shape (N, K, classes), and each router's output.
        """
        features, logits_NEC, routers = pixels, pixels.new_zeros(len(pixels), 0, self.classes), list[Tensor]()
        for exit in range(1, self.exits + 1):
            output = self._run_on(exit, features, logits_NEC)
            features, logits_NEC = output.features_NCHW, output.logits_NEC
            routers += [output.router_output] if output.router_output is not None else []
        return _read(logits_NEC), [_read(output) for output in routers]

    def split(self) -> Sequence[TorchBackend]:
        """Not at all: torch's threads run one batch best."""
        return ()

    def _run_on(self, exit: int, features: Tensor, earlier_NEC: Tensor) -> StageOutput:
        features = features.contiguous(memory_format=torch.channels_last)
        return self._run(exit, features, earlier_NEC) if self._captured is None else self._captured(exit, features, earlier_NEC)

    def _run(self, exit: int, features: Tensor, earlier_NEC: Tensor) -> StageOutput:
        output = self._network.stage(exit, features, earlier_NEC)
        return replace(output, features_NCHW=output.features_NCHW.to(self._features_type))


def _read(outputs: Tensor) -> np.ndarray:
    """Wait for the device."""
    array: np.ndarray = outputs.float().cpu().numpy()
    return array


class _Bfloat16(nn.Module):
    """Runs a part of the backbone in bfloat16 between float32 tensors."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._inner = inner

    def forward(self, features_NCHW: Tensor) -> Tensor:
        with torch.autocast(features_NCHW.device.type, torch.bfloat16):
            output: Tensor = self._inner(features_NCHW)
        return output.float()
