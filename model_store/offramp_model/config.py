"""The shape of a multi-exit network in plain numbers: what a manifest says of it, and what follows without building it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Architecture = Literal["multi-exit-resnet", "multi-exit-stages"]
BlockKind = Literal["basic", "bottleneck"]
StemKind = Literal["cifar", "imagenet"]
NARROWING = 4
"""A bottleneck block's inner channels are its outer ones over this."""
PoolingPart = Literal["average", "max", "deviation", "grid", "grid_max"]
PARTS: tuple[PoolingPart, ...] = get_args(PoolingPart)
StatisticsPart = PoolingPart | Literal["map"]
"""`map` is a finer grid, which `conv` heads see; it comes after all others, where it is there at all."""
GRID = 4
"""Cells along each side of the coarse grid of averages, and of that of maxima."""
MAP = 8
"""Cells along each side of the map of averages: four for one of the coarse grid that `pooled_stats` heads see."""
TRUNK_CHANNELS = 64
"""Channels after a `conv` head's first convolution; twice as many after the second."""
LARGEST = 10
"""At most this many of the largest class probabilities are signals of a `forecast` router."""
EARLIER_SIGNALS = 4
"""Its signals of each earlier exit."""
FACTORY_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
"""A factory's name, `package.module:function`."""


class FactoryError(ValueError):
    """A factory that can't be used; the message names it and the reason."""


class FactoryNotAllowedError(FactoryError):
    """A factory that nobody has allowed here."""

    def __init__(self, factory: str) -> None:
        super().__init__(
            f"the network's stages come from {factory}, code that would be imported and run: if you trust it, allow it by that "
            "name (offramp-server --allow-factory)"
        )


class NetworkConfig(BaseModel):
    """Everything that fixes the shape of a network; part of every bundle's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: tuple[PositiveInt, ...] = Field(default=(64, 128, 256, 512), min_length=1)
    """Channels that each stage gives; an exit follows each stage, so their number is the number of exits K."""
    blocks: tuple[PositiveInt, ...] = (2, 2, 2, 2)
    """Blocks of each residual group; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) is ResNet-34, and with bottleneck blocks and
    widths (256, 512, 1024, 2048) ResNet-50."""
    block: BlockKind = "basic"
    stem: StemKind = "cifar"
    factory: Annotated[str, Field(pattern=FACTORY_PATTERN)] | None = None
    """`package.module:function` that returns the stages, in place of a ResNet: see factories.py. `blocks`, `block` and `stem`
    then say nothing, and `widths`, `stage_sizes` and `stage_macs` are what a dry run of the stages found."""
    stage_sizes: tuple[PositiveInt, ...] = ()
    """Height and width of the feature map that each of a factory's stages gives, in pixels."""
    stage_macs: tuple[PositiveInt, ...] = ()
    """Multiply-accumulates of each of a factory's stages for one image."""
    classes: PositiveInt = 10
    input_channels: PositiveInt = 3
    input_size: PositiveInt = 32
    """Height and width of the images, in pixels."""
    head_kind: Literal["gap_mlp", "pooled_stats", "conv"] = "gap_mlp"
    """`gap_mlp` sees the global average alone, as in the paper; `pooled_stats` sees the parts that `head_pooling` names; `conv`
    has small convolutions over an 8×8 map of averages. At the last exit these two too see the average alone, like the plain
    network's classifier."""
    head_pooling: tuple[PoolingPart, ...] = PARTS
    """What a `pooled_stats` head sees of its exit's feature map."""
    head_cascade: bool = False
    """Whether a head sees the log-probabilities of every earlier exit too (Wołczyk et al. 2021)."""
    head_hidden: PositiveInt = 128
    """Hidden units of each exit's two-layer MLP."""
    router_kind: Literal["bank", "forecast"] = "bank"
    """`bank`: the paper's, a router for each λ of a grid; `forecast`: one router for every λ (docs/routing.md)."""
    router_hidden: PositiveInt = 16
    """Hidden units of each router."""
    router_lambdas: tuple[Annotated[float, Field(ge=0.0, allow_inf_nan=False)], ...] = ()
    """The λ that a `bank` was trained for, ascending; empty before the routers are trained, and for `forecast`."""
    router_temperature: PositiveFloat | None = None
    """τ_s of a `forecast` router, in units of probability; None before the routers are trained, and for `bank`."""

    @model_validator(mode="after")
    def _consistent(self) -> NetworkConfig:
        if self.factory is not None:
            if self.stage_macs and not len(self.widths) == len(self.stage_sizes) == len(self.stage_macs):
                raise ValueError("widths, stage_sizes and stage_macs must have the same length")
        elif len(self.widths) != len(self.blocks):
            raise ValueError(
                f"widths names {len(self.widths)} residual groups and blocks {len(self.blocks)}: give both the same length"
            )
        elif self.stage_sizes or self.stage_macs:
            raise ValueError("stage_sizes and stage_macs belong to a factory's stages: leave them out")
        elif self.block == "bottleneck" and any(width % NARROWING for width in self.widths):
            raise ValueError(f"widths must be multiples of {NARROWING} where block is `bottleneck`")
        if list(self.router_lambdas) != sorted(set(self.router_lambdas)):
            raise ValueError("router_lambdas must be strictly ascending")
        if self.router_kind == "bank" and self.router_temperature is not None:
            raise ValueError("router_temperature belongs to router_kind `forecast`: leave it out for `bank`")
        if self.router_kind == "forecast" and self.router_lambdas:
            raise ValueError("router_lambdas belongs to router_kind `bank`: leave it out for `forecast`")
        if list(self.head_pooling) != [part for part in PARTS if part in self.head_pooling] or not self.head_pooling:
            raise ValueError(f"head_pooling must name some of {', '.join(PARTS)}, each once and in this order")
        return self

    @property
    def has_routers(self) -> bool:
        """Whether the routers have been trained."""
        return bool(self.router_lambdas) if self.router_kind == "bank" else self.router_temperature is not None

    @property
    def architecture(self) -> Architecture:
        """What a manifest calls it: a ResNet, or stages from a factory."""
        return "multi-exit-resnet" if self.factory is None else "multi-exit-stages"

    @property
    def exits(self) -> int:
        """K, the number of exits."""
        return len(self.widths)

    def head_parts(self, exit: int) -> tuple[StatisticsPart, ...]:
        """What the head of exit 1…K sees of its feature map."""
        if self.head_kind == "gap_mlp" or exit == self.exits:
            return ("average",)
        return self.head_pooling if self.head_kind == "pooled_stats" else ("map",)

    def head_inputs(self, exit: int) -> int:
        """How many numbers the head of exit 1…K takes: statistics and, in a cascade, the earlier exits' log-probabilities."""
        statistics = sum(part_columns(part, self.widths[exit - 1]) for part in self.head_parts(exit))
        return statistics + (self.classes * (exit - 1) if self.head_cascade else 0)


def signal_count(exit: int, classes: int) -> int:
    """How many signals a `forecast` router has at exit k: those of routers.exit_signals."""
    return min(LARGEST, classes) + 3 + EARLIER_SIGNALS * (exit - 1)


def part_columns(part: StatisticsPart, channels: int) -> int:
    """How many statistics a part has."""
    return channels * {"grid": GRID * GRID, "grid_max": GRID * GRID, "map": MAP * MAP}.get(part, 1)


def stem_channels(widths: Sequence[int], block: BlockKind) -> int:
    """Channels that the stem gives to the first group: the inner ones of the group's blocks."""
    return widths[0] // (NARROWING if block == "bottleneck" else 1)
