"""The shift of a finished run: every condition measured, promises held against what came of them, written and drawn."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from offramp_model.bundle import BundleStore
from offramp_model.drift import DriftReference, confidence_bin
from offramp_model.outcomes import lambda_for_cost
from offramp_training import shift_report
from offramp_training.__main__ import app
from offramp_training.config import load_config
from offramp_training.corruptions import CORRUPTIONS, SEVERITIES
from offramp_training.drift import exits_and_confidences
from offramp_training.run_directory import MissingStepError, RunDirectory
from offramp_training.shift import list_promises, shift
from offramp_training.subject import load_subject, loss_rate
from tests.conftest import FORECAST
from tests.unit.training.test_policies import make_frames

SETTINGS = [part for override in FORECAST for part in ("--set", override)]


@pytest.fixture(scope="module")
def run_dir(forecast_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The forecast run, with room for more steps."""
    root = tmp_path_factory.mktemp("shift") / "run"
    root.mkdir()
    for step in forecast_run.iterdir():
        (root / step.name).symlink_to(step)
    return root


@pytest.fixture(scope="module")
def result(run_dir: Path) -> dict[str, Any]:
    options = ["--config", "smoke", "--run-dir", str(run_dir), *SETTINGS]
    done = CliRunner().invoke(app, ["shift", *options, "--images", "150"])
    assert done.exit_code == 0, done.output
    content: dict[str, Any] = json.loads((run_dir / "shift" / "result.json").read_text())
    return content


def test_every_corruption_is_measured_at_every_severity(result: dict[str, Any]) -> None:
    assert result["images"] == 150
    conditions = result["conditions"]
    assert [(each["corruption"], each["severity"]) for each in conditions] == [
        (None, 0),
        *((name, severity) for name in CORRUPTIONS for severity in SEVERITIES),
    ]
    for each in conditions:
        assert sum(each["exit_fractions"]) == pytest.approx(1, abs=1e-4)
        assert each["full_accuracy"] - each["accuracy"] <= each["losses"] + 1e-4
        assert set(each["drift"]) == {"exit", "confidence"}
        assert each["control"] == result["control"]
    clean, severest = conditions[0], [each for each in conditions if each["severity"] == 5]
    assert min(each["accuracy"] for each in severest) < clean["accuracy"]
    assert max(each["drift"]["confidence"] for each in severest) > max(clean["drift"]["confidence"], 0.15)


def test_promises_are_held_against_what_came_of_them(result: dict[str, Any]) -> None:
    promises = result["promises"]
    assert any(promise["field"] == "max_mean_cost" for promise in promises)
    for each in result["conditions"]:
        assert len(each["realised"]) == len(promises)
    for promise, found in zip(promises, result["conditions"][0]["realised"], strict=True):
        if promise["field"] == "max_mean_cost":
            assert found == pytest.approx(promise["value"], abs=0.2)


def test_figures_and_report(result: dict[str, Any], run_dir: Path, tmp_path: Path) -> None:
    folder = run_dir / "shift"
    for name in shift_report.FIGURES:
        ElementTree.parse(folder / f"{name}.svg")
        assert (folder / f"{name}.png").stat().st_size > 1000
    text = (folder / "shift.md").read_text()
    assert text.count("| fog 3 |") == 2
    assert f"| {result['conditions'][0]['accuracy']:.4f} |" in text
    broken = result | {"promises": [{"field": "max_accuracy_drop", "value": 0.01, "lambda_": 0.2}]}
    broken["conditions"] = [each | {"realised": [0.01 * each["severity"]]} for each in result["conditions"]]
    text = shift_report.write_report(broken)
    assert "| noise 1 | 0.0100 |" in text
    assert "| noise 2 | **0.0200** |" in text
    without = result | {"promises": [], "conditions": [each | {"realised": []} for each in result["conditions"]]}
    shift_report.draw_figures(tmp_path, without)
    assert not (tmp_path / "promises.png").exists()
    assert "can promise none" in shift_report.write_report(without)


def test_a_subject_is_the_bundle(run_dir: Path, smoke_store: Path) -> None:
    manifest = BundleStore(smoke_store).open("smoke", 2).manifest
    subject = load_subject(load_config("smoke", FORECAST), RunDirectory(run_dir))
    assert subject.control == manifest.default_control
    assert subject.frontier == manifest.frontier
    assert subject.reference == manifest.drift_reference
    assert manifest.drift_reference is not None
    assert set(manifest.drift_histograms()) == {"exit", "confidence"}
    assert sum(manifest.drift_reference.exit_counts) == subject.frontier.frames
    (budget,) = [
        promise for promise in list_promises(subject.frontier) if (promise.field, promise.value) == ("max_mean_cost", 0.5)
    ]
    assert budget.lambda_ == lambda_for_cost(subject.frontier, 0.5)


def test_a_subject_draws_its_images_by_the_seed(run_dir: Path) -> None:
    job, run = load_config("smoke", FORECAST), RunDirectory(run_dir)
    everything, some, again = (load_subject(job, run, count).data for count in (None, 40, 40))
    assert len(everything) == 400
    assert torch.equal(some.images_NCHW, again.images_NCHW)
    assert len(some.labels_N.unique()) == 4


def test_batches_do_not_matter(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = load_subject(load_config("smoke", FORECAST), RunDirectory(run_dir), 50)
    whole = subject.run(lambda images, _: images, _ignore)
    monkeypatch.setattr("offramp_training.subject.BATCH", 20)
    firsts: list[int] = []

    def note(images_NCHW: torch.Tensor, first: int) -> torch.Tensor:
        firsts.append(first)
        return images_NCHW

    parted = subject.run(note, _ignore)
    assert firsts == [0, 20, 40]
    torch.testing.assert_close(parted.logits_NKC, whole.logits_NKC, rtol=1e-3, atol=1e-3)
    assert torch.equal(parted.labels_N, whole.labels_N)


def test_a_run_that_is_not_evaluated_is_refused(smoke_run: Path, tmp_path: Path) -> None:
    for step in ("backbone", "cache", "heads", "routers"):
        (tmp_path / step).symlink_to(smoke_run / step)
    with pytest.raises(MissingStepError, match="evaluate"):
        shift(load_config("smoke"), RunDirectory(tmp_path))
    done = CliRunner().invoke(app, ["shift", "--config", "smoke", "--run-dir", str(tmp_path)])
    assert done.exit_code == 2


def test_histograms_and_losses_by_hand() -> None:
    frames = make_frames()  # the full network is the last exit: right on the first frame alone
    exit_N = torch.tensor([1, 3, 4])
    found = exits_and_confidences(frames, exit_N)
    sure, unsure = (float(torch.tensor(logits).softmax(0).max()) for logits in ([4.0, 0, 0], [0, 1.0, 0]))
    expected = [0] * 20
    for confidence in (sure, sure, unsure):
        expected[confidence_bin(confidence)] += 1
    assert found == DriftReference(exit_counts=(1, 0, 1, 1), confidence_counts=tuple(expected))
    assert loss_rate(frames, exit_N) == 0
    always_wrong = replace(frames, logits_NKC=frames.logits_NKC.flip(2))
    assert loss_rate(always_wrong, exit_N) == pytest.approx(1 / 3)


def _ignore(count: int) -> None:
    """No progress is shown."""
