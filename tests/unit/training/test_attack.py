"""The slowdown attack: within its bound, through the routers' own gradients, and effective on trained networks."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from offramp_model.bundle import Control
from offramp_model.costs import cost_table
from offramp_model.network import MultiExitResNet
from offramp_model.routing import Controls, Policy, decide, halting_rule
from offramp_training.__main__ import app
from offramp_training.attack import margins, slow_down
from offramp_training.data import synthetic_images
from tests.conftest import FORECAST
from tests.unit.training.fakes import tiny_job

IMAGES = synthetic_images(12, 8, seed=5).images_NCHW
KINDS = {
    "bank": tiny_job().network.model_copy(update={"router_lambdas": (0.0, 1.0)}),
    "forecast": tiny_job("network.router_kind=forecast", "network.head_kind=pooled_stats").network.model_copy(
        update={"router_temperature": 0.05}
    ),
}


@pytest.fixture(params=list(KINDS))
def network(request: pytest.FixtureRequest) -> MultiExitResNet:
    torch.manual_seed(0)
    return MultiExitResNet(KINDS[request.param]).eval().requires_grad_(False)


def test_margins_are_those_that_the_server_decides_by(network: MultiExitResNet) -> None:
    control, images = Control(policy="router", lambda_=0.3, threshold=0.4), IMAGES.float() / 255
    rule = halting_rule(network.config, cost_table(network.config).ratios)
    found = margins(network, images, rule, control)
    assert found.shape == (12, 2)
    controls = Controls(
        policy_N=torch.full((12,), Policy.ROUTER),
        lambda_N=torch.full((12,), 0.3),
        threshold_NE=torch.full((12, 2), 0.4),
        min_exit_N=torch.ones(12, dtype=torch.long),
        max_exit_N=torch.full((12,), 3),
    )
    for exit, output in zip((1, 2), network.stages(images), strict=False):
        decision = decide(exit, output.logits, output.router_output, controls, rule)
        assert torch.equal(decision.leaves_N, found[:, exit - 1] >= 0)


def test_gradients_reach_the_pixels_from_every_router(network: MultiExitResNet) -> None:
    images = (IMAGES.float() / 255).requires_grad_()
    rule = halting_rule(network.config, cost_table(network.config).ratios)
    found = margins(network, images, rule, Control(policy="router", lambda_=0.3))
    for exit in (1, 2):
        (gradient,) = torch.autograd.grad(found[:, exit - 1].sum(), images, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).abs().amax(1) > 0).all()


def attacked(network: MultiExitResNet, epsilon: int, steps: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The images, and the log-odds of leaving before and after."""
    rule = halting_rule(network.config, cost_table(network.config).ratios)
    control = Control(policy="router", lambda_=0.3)

    def halting(pixels_NCHW: Tensor) -> Tensor:
        return margins(network, pixels_NCHW / 255, rule, control)

    images = slow_down(IMAGES, halting, epsilon, steps, torch.Generator().manual_seed(seed))
    return images, halting(IMAGES.float()), halting(images.float())


def test_it_stays_within_its_bound_and_makes_leaving_less_likely(network: MultiExitResNet) -> None:
    images, before, after = attacked(network, epsilon=8, steps=5)
    assert images.dtype == torch.uint8
    changed = images.int() - IMAGES.int()
    assert int(changed.abs().max()) == 8
    assert float(torch.nn.functional.softplus(after).sum()) < float(torch.nn.functional.softplus(before).sum())
    assert torch.equal(images, attacked(network, epsilon=8, steps=5)[0])


def test_a_frame_is_attacked_for_itself_alone() -> None:
    """A gradient that is not a number stays with its frame."""

    def halting(pixels_NCHW: Tensor) -> Tensor:
        levels_N = pixels_NCHW.flatten(1).mean(1)
        return torch.stack([levels_N, levels_N * torch.tensor([float("nan")] + [1.0] * 11)], 1)

    images = slow_down(IMAGES, halting, 4, 6, torch.Generator().manual_seed(0))
    assert (images[0].int() - IMAGES[0].int()).abs().max() <= 4
    assert torch.equal(images[1:].int(), (IMAGES[1:].int() - 4).clamp_min(0))  # darker by all that is allowed


@pytest.mark.parametrize(
    ("fixture", "overrides", "aim"),
    # the forecast run's default λ lets every frame go at exit 1 by far: nothing is to be slowed down there
    [("smoke_run", (), ()), ("forecast_run", FORECAST, ("--aim-lambda", "0.03"))],
    ids=["bank", "forecast"],
)
def test_the_command_slows_a_trained_network_down(
    fixture: str, overrides: tuple[str, ...], aim: tuple[str, ...], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for step in request.getfixturevalue(fixture).iterdir():
        (run_dir / step.name).symlink_to(step)
    settings = [part for override in overrides for part in ("--set", override)]
    options = ["--config", "smoke", "--run-dir", str(run_dir), *settings]
    done = CliRunner().invoke(app, ["attack", *options, "--images", "60", "--steps", "6", "--epsilon", "16", *aim])
    assert done.exit_code == 0, done.output
    folder = run_dir / "attack"
    result = json.loads((folder / "result.json").read_text())
    assert (result["images"], result["steps"], result["epsilon"]) == (60, 6, 16)
    clean, noise, slowed = (result["conditions"][name] for name in ("clean", "noise", "attacked"))
    label = next(label for label, row in slowed.items() if row["control"] == result["aim"])
    assert slowed[label]["mean_cost"] > max(clean[label]["mean_cost"], noise[label]["mean_cost"])
    bounded = [row for label, row in slowed.items() if label.startswith("max_cost")]
    for exit, row in enumerate(bounded, start=1):
        assert row["control"]["max_exit"] == exit
        assert row["mean_cost"] <= result["cost_ratios"][exit - 1] + 1e-5
        assert sum(row["exit_fractions"][exit:]) == 0
    dearer = [row for row in slowed.values() if row["control"]["lambda_"] > slowed["default"]["control"]["lambda_"]]
    assert dearer
    assert all(row["mean_cost"] <= slowed["default"]["mean_cost"] for row in dearer if fixture == "forecast_run")
    text = (folder / "attack.md").read_text()
    assert f"{slowed['default']['mean_cost']:.4f}" in text
    assert text.count("max_cost = ") == len(bounded) == 3
    for name in ("exits", "controls"):
        ElementTree.parse(folder / f"{name}.svg")
        assert (folder / f"{name}.png").stat().st_size > 1000
