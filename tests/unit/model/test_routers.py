"""What routers are told, and what they say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from offramp_model.config import NetworkConfig, signal_count
from offramp_model.network import MultiExitResNet
from offramp_model.routers import ForecastRouter, exit_signals


@given(st.integers(1, 4), st.integers(2, 14), st.integers(0, 2**31))
def test_signals_of_an_exit(exits: int, classes: int, seed: int) -> None:
    logits_NEC = 3 * torch.randn(5, exits, classes, generator=torch.Generator().manual_seed(seed))
    signals = exit_signals(logits_NEC)
    assert signals.shape == (5, signal_count(exits, classes))
    largest = min(classes, 10)
    for row, logits_EC in zip(signals, logits_NEC, strict=True):
        probabilities_EC = logits_EC.softmax(-1)
        now = probabilities_EC[-1].sort(descending=True).values
        torch.testing.assert_close(row[:largest], now[:largest])
        torch.testing.assert_close(row[largest].exp(), now[0] / now[1], rtol=1e-4, atol=0.0)
        torch.testing.assert_close(row[largest + 1], -(now * now.log()).sum())
        torch.testing.assert_close(row[largest + 2].exp(), logits_EC[-1].exp().sum())
        guess = int(probabilities_EC[-1].argmax())
        earlier = row[largest + 3 :].view(4, exits - 1)
        for index in range(exits - 1):
            torch.testing.assert_close(earlier[0, index], probabilities_EC[index].max())
            assert bool(earlier[2, index]) is (int(probabilities_EC[index].argmax()) == guess)
            torch.testing.assert_close(earlier[3, index], probabilities_EC[index, guess])


def test_a_forecast_covers_this_exit_and_those_after_it() -> None:
    for exit in range(1, 4):
        router = ForecastRouter(exit, 4, 10, 32)
        utilities = router(None, torch.randn(6, exit, 10))
        assert utilities.shape == (6, 4 - exit + 1)
        assert bool(((utilities > 0) & (utilities < 1)).all())


def test_routers_of_resnet18_are_small() -> None:
    network = MultiExitResNet(NetworkConfig(router_kind="forecast", router_hidden=48, router_temperature=0.02))
    sizes = [sum(parameter.numel() for parameter in router.parameters()) for router in network.routers]
    assert len(sizes) == 3
    assert max(sizes) <= 3000


CONFIG = NetworkConfig(
    widths=(4, 6, 8),
    blocks=(1, 1, 1),
    classes=5,
    input_size=16,
    head_kind="pooled_stats",
    head_cascade=True,
    router_kind="forecast",
    router_temperature=0.05,
)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        CONFIG.model_copy(update={"head_pooling": ("max", "grid"), "head_cascade": False}),
        CONFIG.model_copy(update={"head_kind": "gap_mlp"}),
        CONFIG.model_copy(update={"head_kind": "conv"}),
        NetworkConfig(widths=(4, 6, 8), blocks=(1, 1, 1), classes=5, input_size=16, router_lambdas=(0.0, 1.0)),
    ],
    ids=["everything", "some parts", "cascade of averages", "convolutions", "the paper's"],
)
def test_exits_from_statistics_are_those_of_the_stages(config: NetworkConfig) -> None:
    network = MultiExitResNet(config).eval()
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stages = list(network.stages(images))
        logits_NEC, router_outputs = network.exits(network.statistics(images))
    torch.testing.assert_close(logits_NEC, stages[-1].logits_NEC)
    for exit, stage in enumerate(stages, 1):
        torch.testing.assert_close(stage.logits, logits_NEC[:, exit - 1])
        torch.testing.assert_close(stage.logits_NEC, logits_NEC[:, :exit])
    assert stages[-1].router_output is None
    for stage, output in zip(stages, router_outputs, strict=False):
        torch.testing.assert_close(stage.router_output, output)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"router_temperature": 0.1}, "belongs to router_kind `forecast`"),
        ({"router_kind": "forecast", "router_lambdas": (0.0, 1.0)}, "belongs to router_kind `bank`"),
        ({"head_pooling": ("grid", "average")}, "each once and in this order"),
        ({"head_pooling": ()}, "must name some of"),
    ],
)
def test_a_network_that_contradicts_itself_is_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        NetworkConfig.model_validate(fields)
