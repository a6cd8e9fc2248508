"""Stages of any make: measured by a dry run, built only where their factory is allowed."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from offramp_model.config import FactoryError, FactoryNotAllowedError, NetworkConfig
from offramp_model.costs import backbone_stages, cost_table
from offramp_model.factories import build_network, measure_stages
from offramp_model.network import MultiExitResNet
from tests import stages

THREE = "tests.stages:three"
CONFIG = NetworkConfig(
    factory=THREE,
    classes=4,
    input_size=16,
    head_kind="pooled_stats",
    head_hidden=8,
    router_kind="forecast",
    router_hidden=6,
    router_temperature=0.1,
)


def test_a_dry_run_finds_widths_sizes_and_macs() -> None:
    measured = measure_stages(CONFIG, {THREE})
    assert (measured.widths, measured.stage_sizes, measured.exits) == ((12, 20, 32), (8, 4, 2), 3)
    # depthwise, pointwise and gate of the second stage
    assert measured.stage_macs[1] == 12 * 9 * 16 + 12 * 20 * 16 + 20 * 20
    assert NetworkConfig.model_validate_json(measured.model_dump_json()) == measured
    assert backbone_stages(measured) == list(zip(measured.stage_sizes, measured.stage_macs, strict=True))


def test_cost_of_every_exit_is_what_runs() -> None:
    config = measure_stages(CONFIG, {THREE})
    network, costs, image = build_network(config, {THREE}).eval(), cost_table(config), torch.zeros(1, 3, 16, 16)
    for exit in range(1, 4):
        run = network.stages(image)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            for _ in range(exit):
                output = next(run)
        assert costs.exit_macs[exit - 1] == counter.get_total_flops() // 2, exit
        assert output.logits_NEC.shape == (1, exit, 4)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    assert costs.full_macs == counter.get_total_flops() // 2


def test_counting_and_reading_a_configuration_import_nothing() -> None:
    config = measure_stages(CONFIG, {THREE})
    calls = len(stages.imports)
    cost_table(NetworkConfig.model_validate_json(config.model_dump_json()))
    assert len(stages.imports) == calls
    with pytest.raises(ValueError, match=r"stage_macs of the stages that tests\.stages:three returns are not known"):
        cost_table(CONFIG)


@pytest.mark.parametrize("allowed", [(), {"tests.stages:changed"}, {"tests.stages"}, {"three"}])
def test_a_factory_that_is_not_allowed_is_not_imported(allowed: set[str]) -> None:
    config = measure_stages(CONFIG, {THREE})
    calls = len(stages.imports)
    for build in (lambda: build_network(config, allowed), lambda: measure_stages(config, allowed)):
        with pytest.raises(FactoryNotAllowedError, match=r"stages come from tests\.stages:three, code that .* --allow-factory"):
            build()
    assert len(stages.imports) == calls


def test_a_resnet_needs_no_permission() -> None:
    assert isinstance(build_network(NetworkConfig(widths=(4, 8), blocks=(1, 1))), MultiExitResNet)
    with pytest.raises(ValueError, match=r"see factories\.build_network"):
        MultiExitResNet(measure_stages(CONFIG, {THREE}))


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        ("tests.nowhere:three", "can't be used: ModuleNotFoundError"),
        ("tests.stages:four", "can't be used: AttributeError"),
        ("tests.stages:not_callable", "can't be used: TypeError"),
        ("tests.stages:raising", "can't be used: RuntimeError: no licence found"),
        ("tests.stages:empty", "must return a list of at least one stage, and returns list"),
        ("tests.stages:no_modules", "must return torch modules, and returns str"),
        ("tests.stages:flat", r"stage 2 must give a square map \(N, C, H, H\), and gives \(1, 1568\)"),
        ("tests.stages:oblong", r"stage 1 must give a square map \(N, C, H, H\), and gives \(1, 8, 14, 16\)"),
        ("tests.stages:unfitting", "stage 2 can't take what comes before it: RuntimeError"),
        ("tests.stages:idle", "stage 2 has no convolution or matrix product"),
    ],
)
def test_what_can_not_be_used_is_named_in_one_line(factory: str, complaint: str) -> None:
    config = NetworkConfig(factory=factory, input_size=16)
    with pytest.raises(FactoryError, match=rf"^{factory}.*{complaint}") as caught:
        measure_stages(config, {factory})
    assert "\n" not in str(caught.value)


def test_stages_that_have_changed_since_are_refused() -> None:
    other = measure_stages(CONFIG, {THREE}).model_copy(update={"factory": "tests.stages:changed"})
    with pytest.raises(FactoryError, match=r"^tests\.stages:changed returns other stages now"):
        build_network(other, {"tests.stages:changed"})


@pytest.mark.parametrize(
    "fields",
    [
        {"factory": "tests.stages"},
        {"factory": "tests/stages:three"},
        {"factory": THREE, "widths": (8, 8), "stage_sizes": (4,), "stage_macs": (1, 2)},
        {"stage_sizes": (4,)},
        {"stage_macs": (4,)},
        {"widths": (8, 10), "blocks": (1, 1), "block": "bottleneck"},
    ],
)
def test_contradictions_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"factory|stage_macs|multiples of 4"):
        NetworkConfig.model_validate(fields)
