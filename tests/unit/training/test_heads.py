"""Heads: standardised in training, plain in serving; chosen and calibrated on held-out images; distilled; in cascade."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from offramp_model.config import MAP
from offramp_model.network import Head, MultiExitResNet
from offramp_training.assembly import load_with_heads
from offramp_training.cache import Features
from offramp_training.candidates import Candidate, choose, drop
from offramp_training.config import JobConfig, JobError
from offramp_training.distillation import distilled_loss
from offramp_training.heads import fit_and_select, train_exits, train_heads
from offramp_training.run_directory import RunDirectory
from tests.unit.training.fakes import CLASSES, WIDTHS, accuracy, make_features, make_run, tiny_job

RICH = ("network.head_kind=pooled_stats", "network.head_cascade=true")
TRAIN, HELD_OUT = 160, 150


def trained(job: JobConfig, root: Path, train: Features, held_out: Features) -> tuple[MultiExitResNet, RunDirectory]:
    run = make_run(root, job, train, held_out)
    train_heads(job, run)
    return load_with_heads(job, run), run


@pytest.mark.parametrize("overrides", [(), RICH, ("network.head_kind=pooled_stats", "network.head_pooling=[average, grid]")])
def test_what_is_saved_gives_what_was_trained(overrides: tuple[str, ...], tmp_path: Path) -> None:
    """Standardisation folded in, half precision and calibration leave the likelihood that the head was chosen for."""
    job = tiny_job(*overrides, "heads.dropouts=[0.1]")
    held_out = make_features(HELD_OUT, 2, (1, 2, 3), seed=2, strength=3)
    network, run = trained(job, tmp_path, make_features(TRAIN, 2, (1, 2, 3), seed=1, strength=3), held_out)
    fit_N, select_N = fit_and_select(job, held_out)
    fit_logits, select_logits = (network.exits(held_out.plain(rows_N))[0] for rows_N in (fit_N, select_N))
    for exit, report in enumerate(run.result("heads")["exits"], start=1):
        assert report["exit"] == exit
        nll = float(F.cross_entropy(fit_logits[:, exit - 1], held_out.labels_N[fit_N]))
        assert nll == pytest.approx(report["fit_nll"], abs=5e-3)
        on_select = accuracy(select_logits[:, exit - 1], held_out.labels_N[select_N])
        assert on_select == pytest.approx(report["select_after"]["accuracy"], abs=1e-5)
        assert report["select_after"]["accuracy"] == report["select_before"]["accuracy"] > 0.5
    for tensor in load_file(run.root / "heads" / "heads.safetensors").values():
        assert torch.equal(tensor, tensor.half().float())


@pytest.mark.parametrize("cascade", [False, True])
def test_only_a_cascade_hears_of_earlier_exits(cascade: bool, tmp_path: Path) -> None:
    pooling = "network.head_pooling=[average, max, deviation]"
    job = tiny_job("network.head_kind=pooled_stats", pooling, f"network.head_cascade={str(cascade).lower()}")
    train, held_out = make_features(TRAIN, 2, (1,), seed=1), make_features(HELD_OUT, 1, (1,), seed=2)
    _, run = trained(job, tmp_path, train, held_out)
    first, *later = (report["select_after"]["accuracy"] for report in run.result("heads")["exits"])
    assert first > 0.9
    assert all((exit_accuracy > 0.8) == cascade for exit_accuracy in later)


def test_candidates_are_judged_by_held_out_images_and_exit_by_exit(tmp_path: Path) -> None:
    """Held-out images contradict at exit 2 what the training images teach: who learns the least does best there."""
    train, held_out = make_features(TRAIN, 1, (1, 2, 3), seed=1), make_features(HELD_OUT, 1, (1, 2, 3), seed=2)
    held_out.statistics[1].copy_(held_out.statistics[1].roll(1, 0))  # the classes take turns
    job = tiny_job(
        "heads.weight_decays=[0.01, 30]",
        "heads.dropouts=[0, 0.1]",
        "heads.epochs=1",
        "heads.batch_size=8",
        "network.head_kind=pooled_stats",
    )
    _, run = trained(job, tmp_path, train, held_out)
    reports = run.result("heads")["exits"]
    assert [report["weight_decay"] for report in reports] == [0.01, 30, 0.01]
    for report in reports:
        tried = [(candidate["weight_decay"], candidate["dropout"]) for candidate in report["candidates"]]
        assert tried == [(0.01, 0), (0.01, 0.1), (30, 0), (30, 0.1)]
        assert report["fit_nll"] == min(candidate["fit_nll"] for candidate in report["candidates"])


@pytest.mark.parametrize(
    ("epoch", "gains", "chosen"),
    [(0, [0.5, -0.3, 0.4, -0.2], 0), (0, [0.5, 0.3, 0.4, 0.2], 1), (5, [0.5, -0.3, 0.4, -0.2], 1), (0, [-0.1, -0.1, 0, 0], 0)],
    ids=["within a standard error", "clearly behind", "not from the joint training", "ahead"],
)
def test_a_head_of_the_joint_training_is_kept_unless_another_is_clearly_likelier(
    epoch: int, gains: list[float], chosen: int
) -> None:
    head = Head(tiny_job().network, 1)
    losses_N = torch.tensor([1.0, 2.0, 1.5, 0.5])
    candidates = [Candidate(0, 0, epoch, losses_N + torch.tensor(gains), head), Candidate(0.1, 0.3, 7, losses_N, head)]
    assert choose(candidates) is candidates[chosen]


@pytest.mark.parametrize("cascade", [False, True])
def test_convolutional_heads_learn_from_maps_and_are_saved_as_they_were(cascade: bool, tmp_path: Path) -> None:
    """Averages tell nothing at exit 1 and 2 here, which is what the maps are for."""
    job = tiny_job("cache.feature_maps=true", "network.head_kind=conv", f"network.head_cascade={str(cascade).lower()}")
    train, held_out = (make_features(count, 2, (1, 2, 3), seed, maps=True) for count, seed in ((TRAIN, 1), (HELD_OUT, 2)))
    for features in (train, held_out):
        for statistics_NVS, width in zip(features.statistics[:2], WIDTHS, strict=False):
            statistics_NVS[..., : -width * MAP * MAP] = 0.4
    network, run = trained(job, tmp_path, train, held_out)
    fit_N, _ = fit_and_select(job, held_out)
    logits_NKC = network.exits(held_out.plain(fit_N))[0]
    for exit, report in enumerate(run.result("heads")["exits"], start=1):
        assert report["select_after"]["accuracy"] > 0.9
        nll = float(F.cross_entropy(logits_NKC[:, exit - 1], held_out.labels_N[fit_N]))
        assert nll == pytest.approx(report["fit_nll"], abs=5e-3)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_dropout_leaves_out_its_share_and_keeps_the_mean(share: float) -> None:
    ones = torch.ones(301, 333)
    dropped = drop(ones, share, torch.Generator().manual_seed(0))
    assert float((dropped == 0).double().mean()) == pytest.approx(share, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)
    assert len(dropped.unique()) == (2 if share else 1)
    for dim in (0, 1):  # no row and no column is special
        assert float((dropped == 0).double().mean(dim).std()) < 0.04


def test_the_loss_of_distillation() -> None:
    """Teacher (¾, ¼), head (½, ½): KL = ¾ ln 1.5 + ¼ ln 0.5; at temperature 2 a teacher twice as sharp is the same one."""
    logits, labels = torch.zeros(1, 2), torch.tensor([0])
    teacher = torch.tensor([[math.log(3), 0.0]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(distilled_loss(logits, labels, teacher, 0.0, 5.0)) == pytest.approx(math.log(2))
    assert float(distilled_loss(logits, labels, teacher, 1.0, 1.0)) == pytest.approx(divergence)
    assert float(distilled_loss(logits, labels, 2 * teacher, 1.0, 2.0)) == pytest.approx(4 * divergence)
    assert float(distilled_loss(logits, labels, teacher, 0.25, 1.0)) == pytest.approx(0.75 * math.log(2) + 0.25 * divergence)


def test_distillation_learns_what_the_full_network_says_of_the_very_view(tmp_path: Path) -> None:
    """Labels of the training images are worthless here, and the two views of an image show different classes."""
    train, held_out = make_features(TRAIN, 2, (1, 3), seed=1), make_features(HELD_OUT, 1, (1, 3), seed=2)
    other_view = make_features(TRAIN, 2, (1, 3), seed=3)
    for statistics_NVS, other_NVS in zip(train.statistics, other_view.statistics, strict=True):
        statistics_NVS[:, 1] = other_NVS.roll(1, 0)[:, 1]
    noise_N = torch.randint(CLASSES, (TRAIN,), generator=torch.Generator().manual_seed(4))
    columns = train.statistics[-1].shape[2]
    classifier = torch.nn.Linear(columns, CLASSES).requires_grad_(False)
    classifier.weight.copy_(torch.eye(CLASSES, columns) * 100)
    classifier.bias.fill_(-40)
    job = tiny_job("heads.distillation=1", "heads.distillation_temperature=1", "network.head_kind=pooled_stats")
    reports = train_exits(job, Features(train.statistics, noise_N), held_out, classifier, tmp_path)
    assert reports[0]["select_after"]["accuracy"] > 0.9


def test_as_many_views_are_learned_from_as_asked_for(tmp_path: Path) -> None:
    two, held_out = make_features(TRAIN, 2, (1, 2, 3), seed=1), make_features(HELD_OUT, 1, (1, 2, 3), seed=2)
    one = Features([statistics_NVS[:, :1] for statistics_NVS in two.statistics], two.labels_N)
    classifier = torch.nn.Linear(two.statistics[-1].shape[2], CLASSES).requires_grad_(False)
    figures = []
    for name, features, override in (("a", one, "null"), ("b", two, "1"), ("c", two, "null")):
        (tmp_path / name).mkdir()
        figures.append(train_exits(tiny_job(f"heads.views={override}"), features, held_out, classifier, tmp_path / name))
    assert figures[0] == figures[1] != figures[2]
    with pytest.raises(JobError, match=r"heads\.views is 3 and cached are 2"):
        train_exits(tiny_job("heads.views=3"), two, held_out, classifier, tmp_path)


@pytest.mark.parametrize("overrides", [(), RICH])
def test_a_cut_off_attempt_goes_on_with_the_next_exit(overrides: tuple[str, ...], tmp_path: Path) -> None:
    job = tiny_job(*overrides)
    train, held_out = make_features(TRAIN, 2, (1, 2, 3), seed=1), make_features(HELD_OUT, 1, (1, 2, 3), seed=2)
    _, run = trained(job, tmp_path, train, held_out)
    folder = run.root / "heads"
    whole = load_file(folder / "heads.safetensors")
    for name in ("exit3.json", "heads.safetensors", "result.json"):
        (folder / name).unlink()
    report = json.loads((folder / "exit1.json").read_text())
    (folder / "exit1.json").write_text(json.dumps(report | {"note": "not trained again"}))
    train_heads(job, run)
    assert run.result("heads")["exits"][0]["note"] == "not trained again"
    resumed = load_file(folder / "heads.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_dead_statistic_does_no_harm(tmp_path: Path) -> None:
    """A channel that never fires in training and does later must not outweigh all others."""
    job = tiny_job("network.head_kind=pooled_stats", "network.head_pooling=[average, max, deviation, grid]")
    train, held_out = make_features(TRAIN, 1, (1, 2, 3), seed=1), make_features(HELD_OUT, 1, (1, 2, 3), seed=2)
    for features, value in ((train, 0.0), (held_out, 0.01)):
        features.statistics[0][..., 19 * WIDTHS[0] - 1] = value  # the last of the grid
    network, run = trained(job, tmp_path, train, held_out)
    assert run.result("heads")["exits"][0]["select_after"]["accuracy"] > 0.9
    assert float(network.head(1)[0].weight.abs().max()) < 1000


def test_weights_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    train, held_out = make_features(TRAIN, 1, (1,), seed=1), make_features(HELD_OUT, 1, (1,), seed=2)
    tiny = Features([statistics_NVS.float() * 1e-9 for statistics_NVS in train.statistics], train.labels_N)
    run = make_run(tmp_path, tiny_job(), tiny, held_out)
    with pytest.raises(JobError, match="half precision can't hold"):
        train_heads(tiny_job(), run)
    assert not (run.root / "heads" / "exit1.json").exists()
