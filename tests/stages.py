"""Stages of no ResNet, as a user's package would bring them; factories that are no good beside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

imports: list[str] = []
"""The factories that were called, in order: tests see here what was run."""


class Mixer(nn.Module):
    """A depthwise and a pointwise convolution beside a gate, so that no list of layers describes it."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels_in, channels_in, 3, 2, 1, groups=channels_in, bias=False)
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)
        self.gate = nn.Linear(channels_out, channels_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = torch.relu(self.norm(self.pointwise(self.depthwise(x_NCHW))))
        return y_NCHW * self.gate(y_NCHW.mean((2, 3))).sigmoid()[:, :, None, None]


def three() -> list[nn.Module]:
    imports.append("three")
    first = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.SiLU(), Mixer(8, 12))
    return [first, Mixer(12, 20), Mixer(20, 32)]


def changed() -> list[nn.Module]:
    imports.append("changed")
    return [nn.Conv2d(3, 8, 3, 2, 1), Mixer(8, 16)]


def one() -> list[nn.Module]:
    return [Mixer(3, 8)]


def raising() -> list[nn.Module]:
    raise RuntimeError("no licence\nfound")


def empty() -> list[nn.Module]:
    return []


def no_modules() -> list[str]:
    return ["layer1"]


def flat() -> list[nn.Module]:
    return [nn.Conv2d(3, 8, 3), nn.Flatten()]


def oblong() -> list[nn.Module]:
    return [nn.Conv2d(3, 8, (3, 1))]


def unfitting() -> list[nn.Module]:
    return [nn.Conv2d(3, 8, 3), nn.Conv2d(9, 8, 3)]


def idle() -> list[nn.Module]:
    return [nn.Conv2d(3, 8, 3), nn.MaxPool2d(2)]


not_callable = 3
