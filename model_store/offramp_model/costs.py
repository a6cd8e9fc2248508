"""What each exit costs in multiply-accumulates (MACs), heads and routers on the way counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from offramp_model.config import (
    MAP,
    NARROWING,
    TRUNK_CHANNELS,
    BlockKind,
    NetworkConfig,
    StemKind,
    part_columns,
    signal_count,
    stem_channels,
)


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
    backbone = extras = 0
    exit_macs = []
    for exit, (_, macs) in enumerate(backbone_stages(config), start=1):
        backbone += macs
        extras += head_macs(config, exit) + router_macs(config, exit)
        exit_macs.append(backbone + extras)
    return CostTable(full_macs=backbone + config.widths[-1] * config.classes, exit_macs=tuple(exit_macs))


def backbone_stages(config: NetworkConfig) -> list[tuple[int, int]]:
    """Of each stage the size of its feature map in pixels and the MACs of its part of the backbone, the stem's in the first.

    Raises ValueError where they are those of a factory's stages, and no dry run has found them.
    """
    if config.factory is None:
        image = (config.input_channels, config.input_size)
        return list(_residual_macs(image, config.stem, config.widths, config.blocks, config.block))
    if not config.stage_macs:
        raise ValueError(f"stage_macs of the stages that {config.factory} returns are not known")
    return list(zip(config.stage_sizes, config.stage_macs, strict=True))


def head_macs(config: NetworkConfig, exit: int) -> int:
    """MACs of an exit's classifier for one frame: of matrix products one for each weight, biases and temperatures only add."""
    inputs, hidden = config.head_inputs(exit), config.head_hidden
    if config.head_parts(exit) != ("map",):
        return inputs * hidden + hidden * config.classes
    channels, trunk = config.widths[exit - 1], TRUNK_CHANNELS
    convolutions = channels * trunk * MAP**2 + (9 * trunk + 2 * trunk * trunk) * (MAP // 2) ** 2
    others = inputs - part_columns("map", channels)
    return convolutions + (4 * trunk + others) * hidden + hidden * config.classes


def router_macs(config: NetworkConfig, exit: int) -> int:
    """MACs of an exit's router for one frame; none at the last exit, and before routers are trained."""
    if not config.has_routers or exit == config.exits:
        return 0
    if config.router_kind == "forecast":
        return config.router_hidden * (signal_count(exit, config.classes) + config.exits - exit + 1)
    return len(config.router_lambdas) * config.router_hidden * (config.widths[exit - 1] + 1)


def _residual_macs(
    image: tuple[int, int], stem: StemKind, widths: Sequence[int], blocks: Sequence[int], block: BlockKind
) -> Iterator[tuple[int, int]]:
    """Of each group in turn its map's size in pixels and its MACs for one image, the stem's among the first group's.

    `image` gives channels and size. Counted are convolutions.
    """
    channels_in, size = image
    channels = stem_channels(widths, block)
    macs = channels_in * channels * (9 * size**2 if stem == "cifar" else 49 * _halved(size) ** 2)
    size = size if stem == "cifar" else _halved(_halved(size))
    for index, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
        before, size = size, size if index == 0 else _halved(size)
        shortcut = channels * width if index or channels != width else 0
        if block == "basic":
            macs += (9 * channels * width + shortcut + 9 * width * width * (2 * depth - 1)) * size**2
        else:
            inner = width // NARROWING
            macs += channels * inner * before**2  # the stride comes after it
            macs += (shortcut + (9 * inner * inner + inner * width) * depth + width * inner * (depth - 1)) * size**2
        yield size, macs
        channels, macs = width, 0


def _halved(size: int) -> int:
    return -(-size // 2)
