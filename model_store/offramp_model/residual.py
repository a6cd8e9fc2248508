"""The parts of a ResNet: its stem and its residual groups of basic or bottleneck blocks (He et al. 2016).

A group is known by the channels that it gives, whatever its blocks are like: those are what exits see.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from offramp_model.config import NARROWING, BlockKind, StemKind, stem_channels


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = make_shortcut(channels_in, channels_out, stride)
        nn.init.zeros_(self.norm2.weight)  # the block begins as the identity (Goyal et al. 2017, section 5.1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Features of the block, shape (N, channels_out, H / stride, W / stride)."""
        y_NCHW = F.relu(self.norm1(self.conv1(x_NCHW)))
        return F.relu(self.norm2(self.conv2(y_NCHW)) + self.shortcut(x_NCHW))


class BottleneckBlock(nn.Module):
    """1×1, 3×3 and 1×1 convolutions with batch norm and a shortcut; the 3×3 one takes the stride (Goyal et al. 2017)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        inner = channels_out // NARROWING
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels_out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels_out)
        self.shortcut = make_shortcut(channels_in, channels_out, stride)
        nn.init.zeros_(self.norm3.weight)  # as in a basic block

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Features of the block, shape (N, channels_out, H / stride, W / stride)."""
        y_NCHW = F.relu(self.norm1(self.conv1(x_NCHW)))
        y_NCHW = F.relu(self.norm2(self.conv2(y_NCHW)))
        return F.relu(self.norm3(self.conv3(y_NCHW)) + self.shortcut(x_NCHW))


def make_shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """The identity where shapes agree, else a 1×1 convolution with batch norm."""
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))


def make_stem(kind: StemKind, channels_in: int, channels_out: int) -> nn.Sequential:
    """`cifar`: a 3×3 convolution at full size; `imagenet`: a 7×7 one and max-pooling, each of which halves the size."""
    if kind == "cifar":
        convolution = nn.Conv2d(channels_in, channels_out, 3, 1, 1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())
    convolution = nn.Conv2d(channels_in, channels_out, 7, 2, 3, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU(), nn.MaxPool2d(3, 2, 1))


def make_groups(widths: Sequence[int], blocks: Sequence[int], block: BlockKind) -> list[nn.Module]:
    """The residual groups, whose first blocks halve the size but for the first group's."""
    kind = BottleneckBlock if block == "bottleneck" else BasicBlock
    groups: list[nn.Module] = []
    channels = stem_channels(widths, block)
    for index, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
        strides = [1 if index == 0 else 2] + [1] * (depth - 1)
        inputs = [channels] + [width] * (depth - 1)
        groups.append(nn.Sequential(*(kind(i, width, s) for i, s in zip(inputs, strides, strict=True))))
        channels = width
    return groups
