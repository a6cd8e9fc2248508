"""The multi-exit network: a backbone in stages, such as a ResNet's groups, an exit head after each, routers between them.

The paper, section 4.1 (heads on pooled features). Residual groups: residual.py; stages of any other make: factories.py;
routers: routers.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp_model.config import GRID, MAP, PARTS, NetworkConfig, StatisticsPart, part_columns, stem_channels
from offramp_model.conv_trunk import ConvTrunk
from offramp_model.residual import make_groups, make_stem
from offramp_model.routers import ForecastRouter, RouterBank


class Head(nn.Sequential):
    """An exit's classifier, divided by a calibrated temperature.

    A two-layer MLP on statistics of the exit's feature map, or a ConvTrunk in place of the first layer.
    """

    def __init__(self, config: NetworkConfig, exit: int) -> None:
        self.parts, self.cascade = config.head_parts(exit), config.head_cascade
        channels, inputs = config.widths[exit - 1], config.head_inputs(exit)
        first: nn.Module
        if self.parts == ("map",):
            first = ConvTrunk(channels, inputs - part_columns("map", channels), config.head_hidden)
        else:
            first = nn.Linear(inputs, config.head_hidden)
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
