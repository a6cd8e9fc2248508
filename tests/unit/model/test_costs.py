"""The cost table against torch's own count of what really runs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from offramp_model.config import BlockKind, NetworkConfig
from offramp_model.costs import cost_table
from offramp_model.network import MultiExitResNet

CONFIGS = {
    "ResNet-18": NetworkConfig(),
    "ResNet-18 with routers": NetworkConfig(router_lambdas=(0.0, 0.5, 2.0, 20.0)),
    "ResNet-34 with routers": NetworkConfig(blocks=(3, 4, 6, 3), classes=100, router_hidden=8, router_lambdas=(0.0, 1.0)),
    "two narrow exits": NetworkConfig(widths=(8, 24), blocks=(1, 3), classes=4, input_size=16, router_lambdas=(1.0,)),
    "odd size, one channel": NetworkConfig(
        widths=(6, 6, 10), blocks=(1, 2, 1), input_channels=1, input_size=27, router_lambdas=(0.0, 3.0)
    ),
    "rich heads and forecast routers": NetworkConfig(head_kind="pooled_stats", router_kind="forecast", router_temperature=0.1),
    "some parts, in a cascade": NetworkConfig(
        widths=(8, 24, 30),
        blocks=(1, 1, 1),
        input_size=16,
        head_kind="pooled_stats",
        head_pooling=("average", "deviation"),
        head_cascade=True,
    ),
    "convolutional heads": NetworkConfig(head_kind="conv", router_kind="forecast", router_temperature=0.1),
    "convolutional heads in a cascade, small maps": NetworkConfig(
        widths=(8, 24, 30), blocks=(1, 1, 1), input_size=16, head_kind="conv", head_cascade=True
    ),
    "bottlenecks, odd size": NetworkConfig(
        widths=(16, 16, 40), blocks=(1, 3, 2), block="bottleneck", input_size=27, router_lambdas=(0.0, 3.0)
    ),
    "bottlenecks, ImageNet stem": NetworkConfig(
        widths=(16, 24, 40), blocks=(2, 1, 3), block="bottleneck", stem="imagenet", input_size=75, input_channels=2
    ),
    "basic blocks, ImageNet stem": NetworkConfig(widths=(8, 16), blocks=(2, 1), stem="imagenet", input_size=64),
}


def macs(run: object) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()  # type: ignore[operator]
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_cost_of_every_exit_is_what_runs(config: NetworkConfig) -> None:
    network = MultiExitResNet(config).eval()
    image = torch.zeros(1, config.input_channels, config.input_size, config.input_size)
    costs = cost_table(config)
    assert costs.full_macs == macs(lambda: network(image))
    for exit in range(1, config.exits + 1):
        stages = network.stages(image)
        assert costs.exit_macs[exit - 1] == macs(lambda stages=stages, exit=exit: [next(stages) for _ in range(exit)]), exit


@pytest.mark.parametrize(
    ("block", "widths", "blocks", "macs"),
    [
        ("basic", (64, 128, 256, 512), (2, 2, 2, 2), 1_814_073_344),
        ("basic", (64, 128, 256, 512), (3, 4, 6, 3), 3_663_761_408),
        ("bottleneck", (256, 512, 1024, 2048), (3, 4, 6, 3), 4_089_184_256),
    ],
    ids=["ResNet-18", "ResNet-34", "ResNet-50"],
)
def test_costs_on_imagenet_are_the_published_ones(
    block: BlockKind, widths: tuple[int, ...], blocks: tuple[int, ...], macs: int
) -> None:
    """1.814, 3.664 and 4.089 billion in torchvision's documentation."""
    config = NetworkConfig(widths=widths, blocks=blocks, block=block, stem="imagenet", classes=1000, input_size=224)
    assert cost_table(config).full_macs == macs


def test_resnet18_costs() -> None:
    costs = cost_table(NetworkConfig())
    assert costs.full_macs == 555_422_720
    assert costs.nominal == (0.25, 0.5, 0.75, 1.0)
    assert costs.ratios == pytest.approx((0.2750, 0.5167, 0.7583, 1.0), abs=5e-4)
