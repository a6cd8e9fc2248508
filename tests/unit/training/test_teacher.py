"""A backbone that learns from a trained network: the loss is the textbook's, and the teacher stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from offramp_model.config import NetworkConfig
from offramp_model.network import MultiExitResNet
from offramp_training import model_card
from offramp_training.config import ConfigError, JobError, load_config
from offramp_training.distillation import divergence
from offramp_training.run_directory import RunDirectory
from offramp_training.sections import TeacherConfig
from offramp_training.steps import run_steps
from offramp_training.teacher import TaughtNetwork, taught_loss

CONFIG = NetworkConfig(widths=(4, 6), blocks=(1, 1), classes=3, input_size=8)


@given(seed=st.integers(0, 2**31), temperature=st.floats(0.5, 10))
def test_divergence_is_that_of_the_softened_distributions(seed: int, temperature: float) -> None:
    teacher_NC, student_NC = 3 * torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed)).double()
    ours_N = divergence(teacher_NC, student_NC, temperature)
    textbook_NC = F.kl_div((student_NC / temperature).log_softmax(-1), (teacher_NC / temperature).softmax(-1), reduction="none")
    torch.testing.assert_close(ours_N, temperature**2 * textbook_NC.sum(-1))
    torch.testing.assert_close(divergence(teacher_NC, teacher_NC, temperature), torch.zeros(5).double())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_target_is_the_teacher_by_its_share_and_the_label_for_the_rest(share: float) -> None:
    logits_N2C, labels_N = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2, 0, 1, 2])
    loss_N = taught_loss(logits_N2C, labels_N, TeacherConfig(weights=Path("any"), share=share, temperature=2), 0.1)
    label_N = F.cross_entropy(logits_N2C[:, 1], labels_N, reduction="none", label_smoothing=0.1)
    taught_N = divergence(logits_N2C[:, 0], logits_N2C[:, 1], 2)
    torch.testing.assert_close(loss_N, (1 - share) * label_N + share * taught_N)


def test_a_teacher_does_not_change_and_does_not_answer() -> None:
    network, teacher = MultiExitResNet(CONFIG), MultiExitResNet(CONFIG)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    taught, images_NCHW = TaughtNetwork(network, teacher).train(), torch.randn(4, 3, 8, 8)
    logits_N2C = taught(images_NCHW)
    torch.testing.assert_close(logits_N2C[:, 0], teacher.eval()(images_NCHW))
    logits_N2C.sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for name, tensor in teacher.state_dict().items():  # running statistics too
        assert torch.equal(tensor, before[name]), name
    torch.testing.assert_close(taught.eval()(images_NCHW), network(images_NCHW))


def test_a_run_learns_from_its_teacher_alone(smoke_run: Path, tmp_path: Path) -> None:
    weights = smoke_run / "backbone" / "backbone.safetensors"
    published = RunDirectory(smoke_run).result("backbone")["held_out_accuracy"]
    taught = load_config("smoke", [f"backbone.teacher={{weights: {weights}, share: 1}}"])
    run = RunDirectory(tmp_path / "run")
    run_steps(taught, run, ("backbone",))
    assert run.result("backbone")["held_out_accuracy"] > published - 0.15
    card = model_card._backbone_training(taught.backbone, run.result("backbone"))
    assert "with a share of 1 and at temperature 3, from the softmax of a network trained before" in card
    assert set(load_file(run.root / "backbone" / "backbone.safetensors")) == set(load_file(weights))


def test_a_teacher_of_other_classes_is_refused(smoke_run: Path, tmp_path: Path) -> None:
    tensors = load_file(smoke_run / "backbone" / "backbone.safetensors")
    tensors["classifier.bias"] = torch.zeros(7)
    save_file(tensors, tmp_path / "other.safetensors")
    job = load_config("smoke", [f"backbone.teacher={{weights: {tmp_path / 'other.safetensors'}}}"])
    with pytest.raises(JobError, match=r"backbone\.teacher\.weights: .*classifier\.bias is missing or has another shape"):
        run_steps(job, RunDirectory(tmp_path / "run"), ("backbone",))


def test_joint_training_has_its_own_teacher() -> None:
    with pytest.raises(ConfigError, match="teacher: give it where the backbone is trained alone"):
        load_config("smoke", ["backbone.joint={}", "backbone.teacher={weights: any.safetensors}"])
