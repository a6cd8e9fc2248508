"""How the backbone runs in training and caching: its number format, and torch's own convolutions or Winograd's."""

from __future__ import annotations

import torch

from offramp_model.network import MultiExitNetwork
from offramp_training.config import JobConfig, JobError
from offramp_training.run_directory import say
from offramp_training.sections import BackboneConfig, Precision
from offramp_training.winograd import CompilerMissingError, keep_freed_memory, use_winograd

_WIDE = 128
"""Channels below which a network is done before the extension would be compiled."""


def backbone_precision(config: BackboneConfig) -> Precision:
    """What was asked for; of `auto`, bf16 where the processor that trains computes in it, float32 elsewhere."""
    if config.precision != "auto":
        return config.precision
    if config.accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    processor = torch.cpu.get_capabilities() if config.accelerator in ("auto", "cpu") else {}
    return "bf16-mixed" if processor.get("avx512_bf16") or processor.get("amx_bf16") else "32-true"


def choose_convolution(network: MultiExitNetwork, job: JobConfig, precision: Precision, device: torch.device) -> None:
    """Switch a network to Winograd convolutions, if the configuration says so or `auto` finds them worthwhile for training.

    On a CPU the process keeps the memory that any of them frees.
    Raises JobError where they are asked for by name and can't be compiled.
    """
    if device.type == "cpu":
        keep_freed_memory()
    wanted = job.backbone.convolution
    if wanted == "torch":
        return
    if wanted == "auto":
        float32_on_cpu = device.type == "cpu" and precision == "32-true"
        if not (float32_on_cpu and max(job.network.widths) >= _WIDE):
            return
    try:
        use_winograd(network)
    except CompilerMissingError as error:
        if wanted == "winograd":
            raise JobError(f"backbone.convolution: {error}") from error
        say("convolution", f"torch's own: {error}")
