"""Which convolutions the backbone runs with in training and caching: torch's own, or Winograd's where they pay."""

from __future__ import annotations

import torch

from offramp_model.network import MultiExitNetwork
from offramp_training.config import JobConfig, JobError
from offramp_training.run_directory import say
from offramp_training.winograd import CompilerMissingError, keep_freed_memory, use_winograd

_WIDE = 128
"""Channels below which a network is done before the extension would be compiled."""


def choose_convolution(network: MultiExitNetwork, job: JobConfig, device: torch.device) -> None:
    """Switch a network to Winograd convolutions, if the configuration says so or `auto` finds them worthwhile for training.

    Raises JobError where they are asked for by name and can't be compiled.
    """
    wanted = job.backbone.convolution
    if wanted == "torch":
        return
    if wanted == "auto":
        float32_on_cpu = device.type == "cpu" and job.backbone.precision == "32-true"
        if not (float32_on_cpu and max(job.network.widths) >= _WIDE):
            return
    try:
        use_winograd(network)
    except CompilerMissingError as error:
        if wanted == "winograd":
            raise JobError(f"backbone.convolution: {error}") from error
        say("convolution", f"torch's own: {error}")
        return
    keep_freed_memory()
