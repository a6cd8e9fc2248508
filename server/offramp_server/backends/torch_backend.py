"""Stages of a bundle's network on PyTorch: float32 on the CPU, float32 on a CUDA device where there is one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from offramp_model.bundle import Bundle
from offramp_model.routing import halting_rule
from offramp_server.engine.types import StageResult


class TorchBackend:
    """Implements engine.types.Backend."""

    name = "torch"

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        """`device` is `auto` (CUDA where there is one), `cpu`, or any torch device string. Raises BundleError."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        self._network = bundle.load_network().to(self._device).requires_grad_(False)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
        manifest = bundle.manifest
        self.device_description = f"{device}, float32"
        self.exits = manifest.network.exits
        self.input_size = manifest.network.input_size
        self.classes = manifest.network.classes
        self.rule = halting_rule(manifest.network, manifest.costs.ratios, self._device)
        mean_C11, std_C11 = (
            torch.tensor(values, device=self._device).view(-1, 1, 1)
            for values in (manifest.preprocessing.mean, manifest.preprocessing.std)
        )
        # (x / 255 − mean) / std as one multiplication and one subtraction
        self._scale_C11, self._shift_C11 = 1 / (255 * std_C11), mean_C11 / std_C11

    def prepare(self, images: list[np.ndarray]) -> Tensor:
        """Normalise uint8 (H, W, 3) images, take float32 (3, H, W) ones as they are; shape (N, 3, H, W), channels last."""
        pixels = [index for index, image in enumerate(images) if image.dtype == np.uint8]
        if len(pixels) == len(images):
            return self._normalise(images)
        size = self.input_size
        batch = torch.empty((len(images), 3, size, size), device=self._device).to(memory_format=torch.channels_last)
        if pixels:
            batch[pixels] = self._normalise([images[index] for index in pixels])
        tensors = [index for index in range(len(images)) if index not in set(pixels)]
        batch[tensors] = torch.from_numpy(np.stack([images[index] for index in tensors])).to(self._device)
        return batch

    def _normalise(self, images: list[np.ndarray]) -> Tensor:
        pixels_NHWC = torch.from_numpy(np.stack(images)).to(self._device)
        return pixels_NHWC.permute(0, 3, 1, 2).float().mul_(self._scale_C11).sub_(self._shift_C11)

    def run_stage(self, exit: int, features: Tensor, earlier_NEC: Tensor) -> StageResult:
        """Run one stage on (N, …) features; stage 1 takes what `prepare` gives, and no earlier logits."""
        output = self._network.stage(exit, features.contiguous(memory_format=torch.channels_last), earlier_NEC)
        return StageResult(output.features_NCHW, output.logits_NEC, output.router_output)
