"""The multi-exit network: a backbone in stages, such as a ResNet's groups, an exit head after each, routers between them.

The paper, section 4.1 (heads on pooled features). Residual groups: residual.py; stages of any other make: factories.py;
routers: routers.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from offramp_model.conv_trunk import MAP, ConvTrunk
from offramp_model.residual import NARROWING, BlockKind, StemKind, make_groups, make_stem, stem_channels
from offramp_model.routers import ForecastRouter, RouterBank

Architecture = Literal["multi-exit-resnet", "multi-exit-stages"]
PoolingPart = Literal["average", "max", "deviation", "grid", "grid_max"]
PARTS: tuple[PoolingPart, ...] = get_args(PoolingPart)
StatisticsPart = PoolingPart | Literal["map"]
"""`map` is a finer grid, which `conv` heads see; it comes after all others, where it is there at all."""
GRID = 4
"""Cells along each side of the coarse grid of averages, and of that of maxima."""
FACTORY_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
"""A factory's name, `package.module:function`."""


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


class Head(nn.Sequential):
    """An exit's classifier, divided by a calibrated temperature.

    A two-layer MLP on statistics of the exit's feature map, or a ConvTrunk in place of the first layer.
    """

    def __init__(self, config: NetworkConfig, exit: int) -> None:
        channels, last = config.widths[exit - 1], exit == config.exits
        self.parts: tuple[StatisticsPart, ...] = ("average",)
        if config.head_kind != "gap_mlp" and not last:
            self.parts = config.head_pooling if config.head_kind == "pooled_stats" else ("map",)
        self.cascade = config.head_cascade
        earlier = config.classes * (exit - 1) if self.cascade else 0
        first: nn.Module
        if self.parts == ("map",):
            first = ConvTrunk(channels, earlier, config.head_hidden)
        else:
            first = nn.Linear(sum(part_columns(part, channels) for part in self.parts) + earlier, config.head_hidden)
        super().__init__(first, nn.ReLU(), nn.Linear(config.head_hidden, config.classes))
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones(()))

    def inputs(self, statistics_NS: Tensor, earlier_NEC: Tensor) -> Tensor:
        """What the first layer sees: statistics of this head's parts and, in a cascade, the earlier exits' log-probabilities."""
        return torch.cat([statistics_NS, earlier_NEC.log_softmax(-1).flatten(-2)], -1) if self.cascade else statistics_NS

    def forward(self, inputs_NI: Tensor) -> Tensor:
        """Calibrated logits, shape (N, classes), from what `inputs` gives."""
        logits_NC: Tensor = super().forward(inputs_NI)  # type: ignore[no-untyped-call]
        return logits_NC / self.temperature


@dataclass(frozen=True, slots=True)
class StageOutput:
    """What one stage gives: its features for the next stage, and what the exit decides on.

    `features_NCHW` is the residual group's output, `logits_NEC` the calibrated class logits of every
    exit so far, `router_output` what the exit's router says (None at the last exit and before routers are trained):
    see routers.py.
    """

    features_NCHW: Tensor
    logits_NEC: Tensor
    router_output: Tensor | None

    @property
    def logits(self) -> Tensor:
        """This exit's class logits, shape (N, classes)."""
        return self.logits_NEC[:, -1]


class MultiExitNetwork(nn.Module):
    """Backbone, heads and routers. Exits are counted from 1 to K, as everywhere outside tensors."""

    def __init__(self, config: NetworkConfig, stem: nn.Module, groups: Sequence[nn.Module]) -> None:
        """`groups` are the stages' backbone, (N, C, H, W) → (N, C', H', W') each; the stem runs before the first."""
        super().__init__()
        self.config = config
        self.stem = stem
        self.groups = nn.ModuleList(groups)
        # the plain backbone's own, for training it and as the reference
        self.classifier = nn.Linear(config.widths[-1], config.classes)
        self.heads = nn.ModuleList(Head(config, exit) for exit in range(1, config.exits + 1))
        self.routers = nn.ModuleList(make_routers(config) if config.has_routers else ())

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """The plain full-depth network: images → class logits, shape (N, classes)."""
        features_NCHW = self.stem(images_NCHW)
        for group in self.groups:
            features_NCHW = group(features_NCHW)
        logits_NC: Tensor = self.classifier(pool(features_NCHW))
        return logits_NC

    def stage(self, exit: int, features_NCHW: Tensor, earlier_NEC: Tensor) -> StageOutput:
        """Run stage `exit` (1…K) on the images (stage 1) or on the previous stage's features.

        `earlier_NEC` are the class logits of the exits before, shape (N, exit − 1, classes): see `no_exits`.
        """
        if exit == 1:
            features_NCHW = self.stem(features_NCHW)
        features_NCHW = self.groups[exit - 1](features_NCHW)
        head = self.head(exit)
        logits_NC = head(head.inputs(pool_parts(features_NCHW, head.parts), earlier_NEC))
        logits_NEC = torch.cat([earlier_NEC, logits_NC[:, None]], 1)
        router_output = self.routers[exit - 1](pool(features_NCHW), logits_NEC) if exit <= len(self.routers) else None
        return StageOutput(features_NCHW, logits_NEC, router_output)

    def stages(self, images_NCHW: Tensor) -> Iterator[StageOutput]:
        """Every stage in turn on the whole batch; a caller who has seen enough stops iterating."""
        features_NCHW, logits_NEC = images_NCHW, self.no_exits(len(images_NCHW))
        for exit in range(1, self.config.exits + 1):
            output = self.stage(exit, features_NCHW, logits_NEC)
            features_NCHW, logits_NEC = output.features_NCHW, output.logits_NEC
            yield output

    def head(self, exit: int) -> Head:
        """The classifier of exit 1…K."""
        head = self.heads[exit - 1]
        assert isinstance(head, Head)
        return head

    def no_exits(self, count: int) -> Tensor:
        """The logits of no exits at all, shape (count, 0, classes): what stage 1 gets."""
        return self.classifier.weight.new_zeros(count, 0, self.config.classes)

    def statistics(self, images_NCHW: Tensor, maps: bool | None = None) -> list[Tensor]:
        """Of each exit all that heads and routers ever see of the images: every part, of the last exit the average alone.

        The maps that `conv` heads see are among them where `maps` says so, by default where the heads are such.
        """
        features_NCHW, statistics = self.stem(images_NCHW), []
        for exit, group in enumerate(self.groups, start=1):
            features_NCHW = group(features_NCHW)
            statistics.append(pool_parts(features_NCHW, self._cached_parts(exit, maps)))
        return statistics

    def statistics_columns(self, maps: bool | None = None) -> list[int]:
        """How many statistics each exit has."""
        widths = enumerate(self.config.widths, start=1)
        return [sum(part_columns(part, width) for part in self._cached_parts(exit, maps)) for exit, width in widths]

    def _cached_parts(self, exit: int, maps: bool | None) -> tuple[StatisticsPart, ...]:
        if exit == self.config.exits:
            return PARTS[:1]
        return (*PARTS, "map") if (self.config.head_kind == "conv" if maps is None else maps) else PARTS

    def exits(self, statistics: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Class logits of every exit, shape (N, K, classes), and each router's output, from what `statistics` gave."""
        logits_NEC, router_outputs = self.no_exits(len(statistics[0])), []
        for exit, (statistics_NS, width) in enumerate(zip(statistics, self.config.widths, strict=True), start=1):
            head = self.head(exit)
            logits_NC = head(head.inputs(select_parts(statistics_NS, width, head.parts), logits_NEC))
            logits_NEC = torch.cat([logits_NEC, logits_NC[:, None]], 1)
            if exit <= len(self.routers):
                router_outputs.append(self.routers[exit - 1](statistics_NS[:, :width], logits_NEC))
        return logits_NEC, router_outputs


class MultiExitResNet(MultiExitNetwork):
    """The network on a ResNet's residual groups."""

    def __init__(self, config: NetworkConfig) -> None:
        if config.factory is not None:
            raise ValueError(f"the stages come from {config.factory}: see factories.build_network")
        stem = make_stem(config.stem, config.input_channels, stem_channels(config.widths, config.block))
        super().__init__(config, stem, make_groups(config.widths, config.blocks, config.block))


def make_routers(config: NetworkConfig) -> list[RouterBank | ForecastRouter]:
    """An untrained router for every exit but the last."""
    if config.router_kind == "forecast":
        return [ForecastRouter(exit, config.exits, config.classes, config.router_hidden) for exit in range(1, config.exits)]
    return [RouterBank(width, config.router_hidden, len(config.router_lambdas)) for width in config.widths[:-1]]


def pool(features_NCHW: Tensor) -> Tensor:
    """Global average pooling, shape (N, C)."""
    return features_NCHW.mean(dim=(2, 3))


def pool_parts(features_NCHW: Tensor, parts: Sequence[StatisticsPart]) -> Tensor:
    """Statistics of each channel over the map, part after part, shape (N, Σ part_columns).

    Average, maximum, population standard deviation, averages over the cells of a GRID × GRID grid, maxima over the same cells,
    and averages over those of a MAP × MAP one.
    """
    pooled = []
    for part in parts:
        if part == "average":
            pooled.append(pool(features_NCHW))
        elif part == "max":
            pooled.append(features_NCHW.amax(dim=(2, 3)))
        elif part == "deviation":
            variance_NC = features_NCHW.var(dim=(2, 3), correction=0)
            # a dead channel's root has no gradient: without the floor it would be infinite times zero
            pooled.append(variance_NC.clamp_min(torch.finfo(variance_NC.dtype).tiny).sqrt())
        elif part == "grid_max":
            pooled.append(F.adaptive_max_pool2d(features_NCHW, GRID).flatten(1))
        else:
            pooled.append(F.adaptive_avg_pool2d(features_NCHW, GRID if part == "grid" else MAP).flatten(1))
    return torch.cat(pooled, 1)


def part_columns(part: StatisticsPart, channels: int) -> int:
    """How many statistics a part has."""
    return channels * {"grid": GRID * GRID, "grid_max": GRID * GRID, "map": MAP * MAP}.get(part, 1)


def select_parts(statistics_NS: Tensor, channels: int, parts: Sequence[StatisticsPart]) -> Tensor:
    """Some of the parts, shape (…, Σ part_columns), out of an exit's statistics as `MultiExitNetwork.statistics` gives them.

    The map, which goes with no other part, is not copied: those of all training images may be more than memory holds.
    """
    if tuple(parts) == ("map",):
        return statistics_NS[..., -part_columns("map", channels) :]
    ends: dict[StatisticsPart, int] = dict(
        zip(PARTS, itertools.accumulate(part_columns(part, channels) for part in PARTS), strict=True)
    )
    return torch.cat([statistics_NS[..., ends[part] - part_columns(part, channels) : ends[part]] for part in parts], -1)
