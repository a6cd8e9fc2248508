"""What each exit costs in multiply-accumulates (MACs), heads and routers on the way counted."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import nn

from offramp_model.network import MultiExitResNet, NetworkConfig


class CostTable(BaseModel):
    """MACs of a frame that leaves at each exit, beside the plain full network's.

    Counted are convolutions and matrix products, as torch.utils.flop_counter does (which gives two operations a MAC).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    full_macs: PositiveInt
    """The plain backbone with its classifier: the unit of every cost ratio."""
    exit_macs: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """MACs on the real path up to and including exit k, for k = 1…K."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """c_k: each exit's MACs over the full network's."""
        return tuple(macs / self.full_macs for macs in self.exit_macs)

    @property
    def nominal(self) -> tuple[float, ...]:
        """The paper's costs: 0.25, 0.5, 0.75, 1 for four exits."""
        exits = len(self.exit_macs)
        return tuple(exit / exits for exit in range(1, exits + 1))


def cost_table(config: NetworkConfig) -> CostTable:
    """Count a network's MACs from its configuration."""
    size, channels = config.input_size, config.widths[0]
    backbone = config.input_channels * 9 * channels * size**2  # the stem
    extras = 0
    exit_macs = []
    with torch.device("meta"):
        network = MultiExitResNet(config)
    for index, (width, depth) in enumerate(zip(config.widths, config.blocks, strict=True)):
        stride = 1 if index == 0 else 2
        size = -(-size // stride)
        shortcut = channels * width if stride != 1 or channels != width else 0
        backbone += (9 * channels * width + shortcut + 9 * width * width * (2 * depth - 1)) * size**2
        channels = width
        extras += matrix_macs(network.heads[index]) + (matrix_macs(network.routers[index]) if index < len(network.routers) else 0)
        exit_macs.append(backbone + extras)
    return CostTable(full_macs=backbone + channels * config.classes, exit_macs=tuple(exit_macs))


def matrix_macs(module: nn.Module) -> int:
    """MACs of a module of matrix products alone, a head or a router, for one frame: one for each weight.

    Biases and temperatures add, they do not multiply.
    """
    return sum(parameter.numel() for name, parameter in module.named_parameters() if "weight" in name)
