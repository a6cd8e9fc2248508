"""What each exit costs in multiply-accumulates (MACs), heads and routers on the way counted."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import nn

from offramp_model.conv_trunk import ConvTrunk
from offramp_model.network import Head, MultiExitNetwork, NetworkConfig
from offramp_model.residual import count_macs


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
    with torch.device("meta"):
        network = MultiExitNetwork(config, nn.Identity(), ())  # what hangs on the backbone
    backbone = extras = 0
    exit_macs = []
    for exit, (_, macs) in enumerate(backbone_stages(config), start=1):
        backbone += macs
        extras += head_macs(network.head(exit))
        if exit <= len(network.routers):
            extras += matrix_macs(network.routers[exit - 1])
        exit_macs.append(backbone + extras)
    return CostTable(full_macs=backbone + matrix_macs(network.classifier), exit_macs=tuple(exit_macs))


def backbone_stages(config: NetworkConfig) -> list[tuple[int, int]]:
    """Of each stage the size of its feature map in pixels and the MACs of its part of the backbone, the stem's in the first.

    Raises ValueError where they are those of a factory's stages, and no dry run has found them.
    """
    if config.factory is None:
        image = (config.input_channels, config.input_size)
        return list(count_macs(image, config.stem, config.widths, config.blocks, config.block))
    if not config.stage_macs:
        raise ValueError(f"stage_macs of the stages that {config.factory} returns are not known")
    return list(zip(config.stage_sizes, config.stage_macs, strict=True))


def head_macs(head: Head) -> int:
    """MACs of an exit's classifier for one frame."""
    first, _, output = head
    return (first.macs() if isinstance(first, ConvTrunk) else matrix_macs(first)) + matrix_macs(output)


def matrix_macs(module: nn.Module) -> int:
    """MACs of a module of matrix products alone, such as a router, for one frame: one for each weight.

    Biases and temperatures add, they do not multiply.
    """
    return sum(parameter.numel() for name, parameter in module.named_parameters() if "weight" in name)
