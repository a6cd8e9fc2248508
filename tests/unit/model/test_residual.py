"""Blocks, stems and groups of a ResNet."""

from __future__ import annotations

import pytest
import torch

from offramp_model.config import NetworkConfig
from offramp_model.network import MultiExitResNet
from offramp_model.residual import BasicBlock, BottleneckBlock, make_stem


@pytest.mark.parametrize("kind", [BasicBlock, BottleneckBlock])
def test_a_new_block_is_its_shortcut(kind: type[BasicBlock] | type[BottleneckBlock]) -> None:
    torch.manual_seed(0)
    features = torch.rand(2, 8, 6, 6)
    torch.testing.assert_close(kind(8, 8, 1)(features), features)
    wider = kind(8, 12, 2).eval()
    torch.testing.assert_close(wider(features), wider.shortcut(features).relu())
    assert wider(features).shape == (2, 12, 3, 3)


def test_the_imagenet_stem_quarters_the_size() -> None:
    images = torch.rand(1, 3, 33, 33)
    assert make_stem("imagenet", 3, 8)(images.repeat(2, 1, 1, 1)).shape == (2, 8, 9, 9)
    assert make_stem("cifar", 3, 8)(images).shape == (1, 8, 33, 33)


@pytest.mark.parametrize(("block", "parameters"), [("basic", 21_797_672), ("bottleneck", 25_557_032)])
def test_resnet34_and_resnet50_have_the_published_parameters(block: str, parameters: int) -> None:
    """As many as torchvision's, without heads and routers."""
    widths = (64, 128, 256, 512) if block == "basic" else (256, 512, 1024, 2048)
    config = NetworkConfig.model_validate(
        {"widths": widths, "blocks": (3, 4, 6, 3), "block": block, "stem": "imagenet", "classes": 1000, "input_size": 224}
    )
    with torch.device("meta"):
        network = MultiExitResNet(config)
    assert sum(p.numel() for name, p in network.named_parameters() if not name.startswith("heads.")) == parameters
