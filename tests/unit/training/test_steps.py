"""Steps skip what is done, resume what was cut off, and refuse to mix configurations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from offramp_training import backbone, bank, cache
from offramp_training.config import ConfigError, JobConfig, JobError, load_config
from offramp_training.run_directory import MissingStepError, RunDirectory, write_json
from offramp_training.run_directory import say as say_a_line
from offramp_training.steps import NAMES, run_steps

QUICK = (
    "data.synthetic_train=120",
    "backbone.batch_size=20",
    "backbone.phases=[{size: 8, epochs: 1}, {size: 16, epochs: 1}]",
    "cache.batch_size=16",
)


def quick_job(*overrides: str) -> JobConfig:
    return load_config("smoke", [*QUICK, *overrides])


@pytest.fixture
def smoke_copy(smoke_run: Path, tmp_path: Path) -> RunDirectory:
    """A copy of the smoke run that a test may change."""
    shutil.copytree(smoke_run, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def smoke_job(run: RunDirectory, *overrides: str) -> JobConfig:
    store = run.result("backbone")["config"]["publish"]["store"]
    return load_config("smoke", [f"publish.store={store}", *overrides])


class CutOffError(Exception):
    """Stands for a lost machine."""


def test_a_cut_off_backbone_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = quick_job("backbone.pruning=0.5")  # whose losses must survive too
    whole, cut = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "cut")
    run_steps(job, whole, ("backbone",))

    save = backbone._save

    def save_and_fail(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        raise CutOffError

    monkeypatch.setattr(backbone, "_save", save_and_fail)
    with pytest.raises(CutOffError):
        run_steps(job, cut, ("backbone",))
    assert not cut.is_done("backbone")
    monkeypatch.setattr(backbone, "_save", save)
    run_steps(job, cut, ("backbone",))

    weights = [load_file(run.root / "backbone" / "backbone.safetensors") for run in (whole, cut)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=0)
    results = [run.result("backbone") for run in (whole, cut)]
    assert results[0]["history"] == results[1]["history"]


def test_a_cut_off_cache_resumes_to_the_same_features(
    smoke_run: Path, smoke_copy: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(smoke_copy.root / "cache")
    chunks = 0
    write = write_json

    def write_twice(path: Path, content: object) -> None:
        nonlocal chunks
        write(path, content)
        chunks += 1
        if chunks == 2:
            raise CutOffError

    monkeypatch.setattr(cache, "write_json", write_twice)
    with pytest.raises(CutOffError):
        run_steps(smoke_job(smoke_copy), smoke_copy, ("cache",))
    assert json.loads((smoke_copy.root / "cache" / "train.json").read_text())["images"] == 500
    monkeypatch.setattr(cache, "write_json", write)
    run_steps(smoke_job(smoke_copy), smoke_copy, ("cache",))
    for name in ("train-exit1.npy", "train-exit4.npy", "held_out-exit2.npy", "held_out-labels.npy"):
        assert np.array_equal(np.load(smoke_run / "cache" / name), np.load(smoke_copy.root / "cache" / name)), name


def test_cut_off_routers_resume_after_the_last_iteration(
    smoke_copy: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = smoke_copy.result("routers")["objective"]
    shutil.rmtree(smoke_copy.root / "routers")
    say = say_a_line

    def say_and_fail(step: str, text: str) -> None:
        say(step, text)
        if text.startswith("iteration 2"):
            raise CutOffError

    monkeypatch.setattr(bank, "say", say_and_fail)
    with pytest.raises(CutOffError):
        run_steps(smoke_job(smoke_copy), smoke_copy, ("routers",))
    monkeypatch.setattr(bank, "say", say)
    run_steps(smoke_job(smoke_copy), smoke_copy, ("routers",))
    assert "resuming after iteration 2" in capsys.readouterr().out
    after = smoke_copy.result("routers")["objective"]
    assert len(after) == len(before)
    for ours, theirs in zip(after, before, strict=True):
        assert ours["objective"] == pytest.approx(theirs["objective"], abs=1e-4)


def test_what_is_done_is_skipped(smoke_copy: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    run_steps(smoke_job(smoke_copy), smoke_copy)
    assert capsys.readouterr().out.count("already done") == len(NAMES)


def test_a_step_without_the_one_before_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingStepError, match=r"step 'backbone' has not finished .* run `offramp-train backbone` first"):
        run_steps(quick_job(), RunDirectory(tmp_path), ("cache",))


@pytest.mark.parametrize(
    ("override", "step"),
    [
        ("seed=1", "backbone"),
        ("backbone.weight_decay=0.1", "backbone"),
        ("data.held_out_fraction=0.5", "backbone"),
        ("cache.train_views=1", "cache"),
        ("cache.feature_maps=true", "cache"),
        ("network.head_hidden=32", "heads"),
        ("data.select_fraction=0.5", "heads"),
        ("routers.m_step=unweighted", "routers"),
        ("network.router_hidden=4", "routers"),
        ("data.synthetic_test=7", "evaluate"),
        ("evaluate.tolerated_loss=0.2", "evaluate"),
        ("proof.rule_steps=3", "evaluate"),
        ("data.note=another", "report"),
        ("publish.version=2", "publish"),
    ],
)
def test_another_configuration_is_refused_by_the_first_step_that_reads_it(
    smoke_copy: RunDirectory, override: str, step: str
) -> None:
    field = override.partition("=")[0]
    job = smoke_job(smoke_copy, override)
    with pytest.raises(ConfigError, match=rf"^{field} is .* and step '{step}' in .* was run with") as caught:
        run_steps(job, smoke_copy)
    assert "\n" not in str(caught.value)
    earlier = NAMES[: NAMES.index(step)]
    if earlier:
        run_steps(job, smoke_copy, earlier)  # a field that only later steps read does not matter to these


def test_where_the_work_is_done_does_not_matter(smoke_copy: RunDirectory) -> None:
    run_steps(smoke_job(smoke_copy, "backbone.devices=2", "backbone.accelerator=cpu", "backbone.convolution=torch"), smoke_copy)


def test_a_result_of_an_earlier_release_is_read_tolerantly(smoke_copy: RunDirectory) -> None:
    """Fields added since count with their defaults, and sections of later steps don't count."""
    path = smoke_copy.root / "backbone" / "result.json"
    result = json.loads(path.read_text())
    del result["config"]["backbone"]["convolution"], result["config"]["data"]["select_fraction"]
    result["config"]["cache"] = {"views": 4}
    path.write_text(json.dumps(result))
    run_steps(smoke_job(smoke_copy), smoke_copy)


def test_a_cut_off_step_is_not_resumed_with_another_configuration(smoke_copy: RunDirectory) -> None:
    shutil.rmtree(smoke_copy.root / "publish")
    (smoke_copy.root / "cache" / "result.json").unlink()
    with pytest.raises(ConfigError, match=r"^cache\.held_out_views is 2 and step 'cache'"):
        run_steps(smoke_job(smoke_copy, "cache.held_out_views=2"), smoke_copy, ("cache",))


def test_data_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"network\.classes is 10 and the data has 4 classes"):
        run_steps(quick_job("network.classes=10"), RunDirectory(tmp_path / "a"), ("backbone",))
    with pytest.raises(JobError, match=r"backbone\.batch_size is 500 and there are 84"):
        run_steps(quick_job("backbone.batch_size=500"), RunDirectory(tmp_path / "b"), ("backbone",))


def test_a_backbone_goes_on_from_a_published_bundle(smoke_run: Path, smoke_store: Path, tmp_path: Path) -> None:
    weights = smoke_store / "smoke" / "1" / "weights.safetensors"
    published = RunDirectory(smoke_run).result("backbone")["held_out_accuracy"]
    job = load_config(
        "smoke", [f"backbone.start_from={weights}", "backbone.phases=[{size: 16, epochs: 1}]", "backbone.peak_rate=0.001"]
    )
    run = RunDirectory(tmp_path / "run")
    run_steps(job, run, ("backbone",))
    # one epoch at a small rate would leave a new network at chance, which is a quarter
    assert run.result("backbone")["held_out_accuracy"] > published - 0.1


def test_a_backbone_without_epochs_is_taken_as_it_is(smoke_store: Path, tmp_path: Path) -> None:
    weights = smoke_store / "smoke" / "1" / "weights.safetensors"
    run = RunDirectory(tmp_path / "run")
    run_steps(load_config("smoke", [f"backbone.start_from={weights}", "backbone.phases=[]"]), run, ("backbone",))
    published, taken = load_file(weights), load_file(run.root / "backbone" / "backbone.safetensors")
    backbone_names = [name for name in published if not name.startswith(("heads.", "routers."))]
    assert len(backbone_names) > 50
    for name in backbone_names:
        torch.testing.assert_close(taken[name], published[name].to(taken[name].dtype), rtol=0, atol=0)


def test_a_backbone_with_neither_epochs_nor_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"phases is empty: name at least one, or the weights"):
        quick_job("backbone.phases=[]")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("backbone.start_from=nowhere.safetensors", r"^backbone\.start_from: nowhere\.safetensors can't be read"),
        ("network.widths=[8, 16, 24, 40]", r"^backbone\.start_from: .* holds another network"),
        ("backbone.teacher={weights: nowhere.safetensors}", r"^backbone\.teacher\.weights: nowhere\.safetensors can't be read"),
    ],
)
def test_weights_that_do_not_fit_are_refused(smoke_store: Path, tmp_path: Path, override: str, complaint: str) -> None:
    weights = smoke_store / "smoke" / "1" / "weights.safetensors"
    job = load_config("smoke", [*QUICK, f"backbone.start_from={weights}", override])
    with pytest.raises(JobError, match=complaint):
        run_steps(job, RunDirectory(tmp_path / "run"), ("backbone",))
