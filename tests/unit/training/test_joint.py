"""Backbone and exits trained together: the loss is what docs/joint.md derives, and the run goes the whole road."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from offramp_model.bundle import open_bundle
from offramp_model.config import NetworkConfig
from offramp_model.latent import evidence
from offramp_model.network import MultiExitResNet
from offramp_model.weights import load_network
from offramp_training import backbone, joint
from offramp_training.assembly import load_backbone, load_joint_heads, load_whole
from offramp_training.cache import open_features
from offramp_training.config import ConfigError, JobConfig, load_config
from offramp_training.joint import JointNetwork, joint_loss, responsibility_weights
from offramp_training.run_directory import RunDirectory
from offramp_training.sections import JointConfig
from offramp_training.steps import run_steps
from tests.unit.training.fakes import accuracy

COST_K = torch.tensor([0.28, 0.52, 0.76, 1.0])
CONFIG = NetworkConfig(
    widths=(4, 6, 8), blocks=(1, 1, 1), classes=3, input_size=8, head_kind="pooled_stats", head_cascade=True, head_hidden=5
)


def random_logits(seed: int, count: int = 7, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_NEC = 3 * torch.randn(count, len(COST_K) + 1, classes, generator=generator)
    return logits_NEC, torch.randint(classes, (count,), generator=generator)


@given(seed=st.integers(0, 2**31), floor=st.floats(0, 1), lambdas=st.lists(st.floats(0, 50), min_size=1, max_size=4))
def test_weights_starve_no_exit_and_are_one_in_the_mean(seed: int, floor: float, lambdas: list[float]) -> None:
    log_likelihood_NK = random_logits(seed)[0].log_softmax(-1)[:, :-1, 0]
    weight_NK = responsibility_weights(log_likelihood_NK, COST_K, JointConfig(lambdas=tuple(lambdas), floor=floor))
    assert float(weight_NK.min()) >= floor - 1e-6
    torch.testing.assert_close(weight_NK.mean(1), torch.ones(len(weight_NK)), rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 2**31), low=st.floats(0, 20), more=st.floats(0, 20))
def test_a_higher_price_gives_weight_to_cheaper_exits(seed: int, low: float, more: float) -> None:
    log_likelihood_NK = random_logits(seed)[0].log_softmax(-1)[:, :-1, 0]
    cheap, dear = (
        responsibility_weights(log_likelihood_NK, COST_K, JointConfig(lambdas=(value,), floor=0.2)) @ COST_K
        for value in (low + more, low)
    )
    assert bool((cheap <= dear + 1e-4).all())


@given(seed=st.integers(0, 2**31), floor=st.floats(0, 1))
def test_its_gradient_is_that_of_the_evidence_and_of_deep_supervision(seed: int, floor: float) -> None:
    """Without distillation the weighted loss descends −(1 − ρ) K J − ρ Σ log p_k, with J's E-step exact at every step."""
    logits_NEC, labels_N = random_logits(seed)
    config = JointConfig(lambdas=(0.0, 0.7, 3.0), floor=floor, distillation=0)
    ours = logits_NEC.clone().requires_grad_()
    joint_loss(ours, labels_N, COST_K, config, label_smoothing=0).mean().backward()

    theirs = logits_NEC.clone().requires_grad_()
    log_likelihood_NK = theirs.log_softmax(-1)[torch.arange(len(labels_N)), :-1, labels_N]
    log_prior_K, lambda_L11 = -torch.full((4,), 4.0).log(), torch.tensor(config.lambdas).view(-1, 1, 1)
    climbed = evidence(log_likelihood_NK, log_prior_K, lambda_L11, COST_K).mean()
    full = torch.nn.functional.cross_entropy(theirs[:, -1], labels_N)
    (full - (1 - floor) * 4 * climbed - floor * log_likelihood_NK.sum(1).mean()).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_an_exit_that_says_what_the_full_network_says_has_nothing_to_distil() -> None:
    logits_NEC, labels_N = random_logits(1)
    logits_NEC = logits_NEC[:, -1:].repeat(1, 5, 1).requires_grad_()
    joint_loss(logits_NEC, labels_N, COST_K, JointConfig(distillation=1), 0.1).mean().backward()
    assert logits_NEC.grad is not None
    torch.testing.assert_close(logits_NEC.grad[:, :-1], torch.zeros(7, 4, 3), rtol=0, atol=1e-6)
    assert float(logits_NEC.grad[:, -1].abs().max()) > 0.01  # the teacher learns from labels


def test_a_stage_gets_the_mean_of_the_gradients_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = MultiExitResNet(CONFIG)
    for block in network.modules():
        if isinstance(block, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(block.weight, 0.5, 1.5)
    model, images, outputs = JointNetwork(network).eval(), torch.randn(4, 3, 8, 8), CONFIG.exits + 1
    firsts = [next(group.parameters()) for group in network.groups]
    direction_EC = torch.randn(outputs, CONFIG.classes)

    parameters = [*firsts, network.head(2)[0].weight]
    balanced = torch.autograd.grad((model(images) * direction_EC).sum(), parameters)
    monkeypatch.setattr(joint, "scale_gradient", lambda values, factor: values)
    alone = [
        torch.autograd.grad((model(images)[:, output] * direction_EC[output]).sum(), parameters) for output in range(outputs)
    ]
    for stage in range(CONFIG.exits):
        beyond = [gradients[stage] for gradients in alone[stage:]]
        torch.testing.assert_close(balanced[stage], torch.stack(beyond).mean(0), rtol=1e-3, atol=1e-5)
        assert not any(bool(gradients[stage].any()) for gradients in alone[:stage])
    # a head learns from its own exit alone, a cascade notwithstanding, and at full strength
    torch.testing.assert_close(balanced[-1], alone[1][-1], rtol=1e-4, atol=1e-6)
    assert not bool(alone[2][-1].any())


def test_folding_the_norms_changes_nothing_but_the_inputs() -> None:
    torch.manual_seed(0)
    model = JointNetwork(MultiExitResNet(CONFIG))
    for _ in range(5):
        model(2 + torch.randn(16, 3, 8, 8))
    model.eval()
    images = 2 + torch.randn(5, 3, 8, 8)
    network = model.folded()
    *_, last = network.stages(images)
    torch.testing.assert_close(last.logits_NEC, model(images)[:, :-1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(network(images), model(images)[:, -1])
    assert network.state_dict().keys() == MultiExitResNet(CONFIG).state_dict().keys()


def test_dead_channels_have_finite_gradients() -> None:
    model = JointNetwork(MultiExitResNet(CONFIG))
    model(torch.zeros(4, 3, 8, 8)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name


class CutOffError(Exception):
    """Stands for a lost machine."""


# --- the run ----------------------------------------------------------------------------------------------------------

JOINT = (
    "network.head_kind=pooled_stats",
    "network.router_kind=forecast",
    "backbone.joint={}",
    "backbone.phases=[{size: 12, epochs: 1}, {size: 16, epochs: 2}]",
    "backbone.peak_rate=0.05",
    "routers.lambdas=[0, 0.02, 0.05, 0.1, 0.2, 0.5, 2]",
    "heads.epochs=4",
    "forecast.steps=60",
    "proof.rule_steps=0",
    "export.graphs=false",
    "publish.name=smoke-joint",
)


@pytest.fixture(scope="module")
def joint_job(smoke_run: Path, smoke_store: Path, tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    start = smoke_run / "backbone" / "backbone.safetensors"
    store, reference = tmp_path_factory.mktemp("store"), smoke_store / "smoke" / "2"
    paths = (f"backbone.start_from={start}", f"publish.store={store}", f"proof.reference={reference}")
    return load_config("smoke", [*JOINT, *paths])


@pytest.fixture(scope="module")
def joint_run(joint_job: JobConfig, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = RunDirectory(tmp_path_factory.mktemp("joint"))
    run_steps(joint_job, run)
    return run


def test_every_exit_learns_and_the_full_network_keeps_what_it_knew(joint_run: RunDirectory, smoke_run: Path) -> None:
    result, before = joint_run.result("backbone"), RunDirectory(smoke_run).result("backbone")
    assert result["held_out_accuracy"] > before["held_out_accuracy"] - 0.1
    assert min(result["exit_accuracies"]) > 0.4
    assert [len(epoch["exit_accuracies"]) for epoch in result["history"]] == [4, 4, 4]
    trained, start = (load_file(run / "backbone" / "backbone.safetensors") for run in (joint_run.root, smoke_run))
    assert not torch.equal(trained["groups.0.0.conv1.weight"], start["groups.0.0.conv1.weight"])


def test_the_same_images_stay_held_out(joint_run: RunDirectory, smoke_run: Path) -> None:
    splits = [np.load(run / "backbone" / "split.npz")["held_out"] for run in (joint_run.root, smoke_run)]
    assert np.array_equal(*splits)


def test_the_heads_of_the_joint_training_are_candidates(joint_run: RunDirectory, joint_job: JobConfig) -> None:
    for exit in joint_run.result("heads")["exits"]:
        tried = {candidate["epoch"]: candidate["fit_nll"] for candidate in exit["candidates"]}
        assert 0 in tried
        assert exit["fit_nll"] in (tried[0], min(tried.values()))
    heads = load_joint_heads(joint_job, joint_run)
    assert len(heads) == 4
    paper = joint_job.model_copy(update={"network": joint_job.network.model_copy(update={"head_kind": "gap_mlp"})})
    assert load_joint_heads(paper, joint_run) == []


def test_what_is_published_is_what_was_measured_and_its_card_says_how(joint_run: RunDirectory, joint_job: JobConfig) -> None:
    bundle = open_bundle(joint_job.publish.store / "smoke-joint" / "1")
    ours, theirs = load_whole(joint_job, joint_run).state_dict(), load_network(bundle).state_dict()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    card = (bundle.path / "README.md").read_text()
    assert "Its heads were\n  trained with it" in card
    assert "### Beside smoke version 2" in card
    report = (joint_run.root / "report" / "report.md").read_text()
    frozen = json.loads((joint_job.proof.reference / "metrics.json").read_text())  # type: ignore[operator]
    assert f"{frozen['exits'][0]['test']['accuracy']:.4f} ({frozen['cost_ratios'][0]:.3f}) |" in report
    assert "| routed at mean cost 0.5 |" in report


def test_a_cut_off_joint_training_resumes_to_the_same_weights(
    joint_job: JobConfig, joint_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, save = RunDirectory(tmp_path), backbone._save

    def save_and_fail(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        raise CutOffError

    monkeypatch.setattr(backbone, "_save", save_and_fail)
    for _ in range(2):
        with pytest.raises(CutOffError):
            run_steps(joint_job, cut, ("backbone",))
    monkeypatch.setattr(backbone, "_save", save)
    run_steps(joint_job, cut, ("backbone",))
    whole, resumed = (load_file(run.root / "backbone" / "backbone.safetensors") for run in (joint_run, cut))
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=0, msg=name)
    assert cut.result("backbone")["history"] == joint_run.result("backbone")["history"]


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("backbone.joint=null", "backbone.joint"),
        ("backbone.joint={floor: 0.1}", "backbone.joint"),
        ("network.head_hidden=9", "network.head_hidden"),
    ],
)
def test_the_backbone_is_not_gone_on_with_under_another_joint_configuration(
    joint_job: JobConfig, joint_run: RunDirectory, override: str, field: str
) -> None:
    start = joint_job.backbone.start_from
    other = load_config("smoke", [*JOINT, f"backbone.start_from={start}", override])
    with pytest.raises(ConfigError, match=rf"^{field} is .* and step 'backbone' in .* was run with"):
        run_steps(other, joint_run, ("backbone",))


def test_convolutional_heads_are_not_trained_jointly() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.joint trains heads of pooled statistics"):
        load_config("smoke", [*JOINT, "network.head_kind=conv", "cache.feature_maps=true"])


def test_joint_heads_are_as_good_when_they_are_loaded_again(joint_run: RunDirectory, joint_job: JobConfig) -> None:
    """The exits of backbone.safetensors, norms folded, are right as often as the last epoch said."""
    network, held_out = load_backbone(joint_job, joint_run), open_features(joint_run.root / "cache", "held_out", 4)
    for head, loaded in zip(network.heads, load_joint_heads(joint_job, joint_run), strict=True):
        head.load_state_dict(loaded.state_dict())
    logits_NKC, _ = network.exits(held_out.plain(torch.arange(len(held_out.labels_N))))
    measured = [accuracy(logits_NKC[:, exit], held_out.labels_N) for exit in range(4)]
    assert measured == pytest.approx(joint_run.result("backbone")["exit_accuracies"], abs=0.02)
