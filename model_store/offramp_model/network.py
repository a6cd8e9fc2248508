"""The multi-exit network: a ResNet with a CIFAR stem, an exit head after every residual group, routers between them.

He et al. 2016 (residual groups, basic blocks); the paper, sections 4.1 (heads on pooled features) and 4.4 (routers).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn


class NetworkConfig(BaseModel):
    """Everything that fixes the shape of a network; part of every bundle's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: tuple[PositiveInt, ...] = Field(default=(64, 128, 256, 512), min_length=1)
    """Channels of each residual group; an exit follows each group, so their number is the number of exits K."""
    blocks: tuple[PositiveInt, ...] = Field(default=(2, 2, 2, 2), min_length=1)
    """Basic blocks of each residual group; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) is ResNet-34."""
    classes: PositiveInt = 10
    input_channels: PositiveInt = 3
    input_size: PositiveInt = 32
    """Height and width of the images, in pixels."""
    head_hidden: PositiveInt = 128
    """Hidden units of each exit's two-layer MLP."""
    router_hidden: PositiveInt = 16
    """Hidden units of each router."""
    router_lambdas: tuple[Annotated[float, Field(ge=0.0, allow_inf_nan=False)], ...] = ()
    """The λ that the bank of routers was trained for, ascending; empty before the routers are trained."""

    @model_validator(mode="after")
    def _consistent(self) -> NetworkConfig:
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"widths names {len(self.widths)} residual groups and blocks {len(self.blocks)}: give both the same length"
            )
        if list(self.router_lambdas) != sorted(set(self.router_lambdas)):
            raise ValueError("router_lambdas must be strictly ascending")
        return self

    @property
    def exits(self) -> int:
        """K, the number of exits."""
        return len(self.widths)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels_out))
        nn.init.zeros_(self.norm2.weight)  # the block begins as the identity (Goyal et al. 2017, section 5.1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Features of the block, shape (N, channels_out, H / stride, W / stride)."""
        y_NCHW = F.relu(self.norm1(self.conv1(x_NCHW)))
        return F.relu(self.norm2(self.conv2(y_NCHW)) + self.shortcut(x_NCHW))


class Head(nn.Sequential):
    """An exit's classifier: a two-layer MLP on pooled features, divided by a calibrated temperature."""

    def __init__(self, channels: int, hidden: int, classes: int) -> None:
        super().__init__(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, pooled_NC: Tensor) -> Tensor:
        """Calibrated logits, shape (N, classes)."""
        logits_NK: Tensor = super().forward(pooled_NC)  # type: ignore[no-untyped-call]
        return logits_NK / self.temperature


class RouterBank(nn.Module):
    """The routers of one exit, one two-layer MLP for each λ of the grid, evaluated together as one matrix product.

    The networks are independent of each other; keeping them in shared tensors lets frames of different λ share a batch.
    """

    def __init__(self, channels: int, hidden: int, lambdas: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, lambdas * hidden)
        self.weight_LH1 = nn.Parameter(torch.empty(lambdas, hidden, 1).uniform_(-(hidden**-0.5), hidden**-0.5))
        self.bias_L11 = nn.Parameter(torch.zeros(lambdas, 1, 1))

    def forward(self, pooled_NC: Tensor) -> Tensor:
        """Halting logits s_k of every grid λ, shape (N, L)."""
        lambdas, hidden, _ = self.weight_LH1.shape
        hidden_LNH = F.relu(self.hidden(pooled_NC)).view(-1, lambdas, hidden).transpose(0, 1)
        return torch.baddbmm(self.bias_L11, hidden_LNH, self.weight_LH1).squeeze(2).T


@dataclass(frozen=True, slots=True)
class StageOutput:
    """What one stage gives: its features for the next stage, and what the exit decides on.

    `features_NCHW` is the residual group's output, `pooled_NC` its global average, `logits_NK` the head's calibrated
    class logits, `router_logits_NL` the halting logits of every grid λ (None at the last exit and in a bank-less network).
    """

    features_NCHW: Tensor
    pooled_NC: Tensor
    logits_NK: Tensor
    router_logits_NL: Tensor | None


class MultiExitResNet(nn.Module):
    """Backbone, heads and routers. Exits are counted from 1 to K, as everywhere outside tensors."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.widths[0], config.widths[-1]
        self.stem = nn.Sequential(nn.Conv2d(config.input_channels, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.groups = nn.ModuleList()
        channels = first
        for index, (width, depth) in enumerate(zip(config.widths, config.blocks, strict=True)):
            strides = [1 if index == 0 else 2] + [1] * (depth - 1)
            inputs = [channels] + [width] * (depth - 1)
            self.groups.append(nn.Sequential(*(BasicBlock(i, width, s) for i, s in zip(inputs, strides, strict=True))))
            channels = width
        self.classifier = nn.Linear(last, config.classes)  # the plain backbone's own, for training it and as the reference
        self.heads = nn.ModuleList(Head(width, config.head_hidden, config.classes) for width in config.widths)
        lambdas = len(config.router_lambdas)
        self.routers = nn.ModuleList(
            RouterBank(width, config.router_hidden, lambdas) for width in (config.widths[:-1] if lambdas else ())
        )

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """The plain full-depth network: images → class logits, shape (N, classes)."""
        features_NCHW = self.stem(images_NCHW)
        for group in self.groups:
            features_NCHW = group(features_NCHW)
        logits_NK: Tensor = self.classifier(pool(features_NCHW))
        return logits_NK

    def stage(self, exit: int, features_NCHW: Tensor) -> StageOutput:
        """Run stage `exit` (1…K) on the images (stage 1) or on the previous stage's features."""
        if exit == 1:
            features_NCHW = self.stem(features_NCHW)
        features_NCHW = self.groups[exit - 1](features_NCHW)
        pooled_NC = pool(features_NCHW)
        router_logits_NL = self.routers[exit - 1](pooled_NC) if exit <= len(self.routers) else None
        return StageOutput(features_NCHW, pooled_NC, self.heads[exit - 1](pooled_NC), router_logits_NL)

    def stages(self, images_NCHW: Tensor) -> Iterator[StageOutput]:
        """Every stage in turn on the whole batch; a caller who has seen enough stops iterating."""
        features_NCHW = images_NCHW
        for exit in range(1, self.config.exits + 1):
            output = self.stage(exit, features_NCHW)
            features_NCHW = output.features_NCHW
            yield output

    def pooled(self, images_NCHW: Tensor) -> list[Tensor]:
        """Pooled features of every exit, the only thing that heads and routers ever see; heads are not run."""
        features_NCHW, pooled = self.stem(images_NCHW), []
        for group in self.groups:
            features_NCHW = group(features_NCHW)
            pooled.append(pool(features_NCHW))
        return pooled


def pool(features_NCHW: Tensor) -> Tensor:
    """Global average pooling, shape (N, C)."""
    return features_NCHW.mean(dim=(2, 3))
