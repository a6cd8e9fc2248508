"""The ablation of the heads: what can be a variant, how it is measured, and that finished ones are not run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from offramp_model.costs import cost_table
from offramp_model.network import MultiExitResNet
from offramp_training.ablation import ablate, area, head_macs, load_variants, variant_job
from offramp_training.config import ConfigError, JobError, load_config
from offramp_training.run_directory import RunDirectory
from tests.unit.training.fakes import WIDTHS, make_features, make_run, tiny_job

QUICK = ("heads.epochs=2",)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that has come as far as its cache; read-only for tests."""
    train, held_out = make_features(80, 2, (1, 2, 3), seed=1), make_features(90, 1, (1, 2, 3), seed=2)
    return make_run(tmp_path_factory.mktemp("run"), tiny_job(*QUICK), train, held_out)


def test_variants_are_measured_written_down_and_done_once(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tiny_job(*QUICK)
    variants = {"paper": {}, "rich": {"network.head_kind": "pooled_stats", "network.head_cascade": True}}
    before = sorted(path.relative_to(run.root) for path in run.root.rglob("*"))
    ablate(job, run, variants, tmp_path)
    paper, rich = (json.loads((tmp_path / f"{name}.json").read_text()) for name in variants)
    assert paper["select_images"] == round(90 * job.data.select_fraction)
    assert paper["settings"] == {}
    assert rich["settings"] == variants["rich"]
    assert sum(rich["head_macs"]) > sum(paper["head_macs"])
    for result in (paper, rich):
        assert 1 / 3 < result["area"] <= 1
        assert [report["exit"] for report in result["exits"]] == [1, 2, 3]
        # nobody waits
        assert result["curve"][0] == pytest.approx(
            [result["cost_ratios"][0], result["exits"][0]["select_after"]["accuracy"]], abs=1e-5
        )
    table = (tmp_path / "ablation.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table[-2:]] == ["| paper", "| rich"]
    assert f"{paper['area']:.4f}" in table[-2]
    assert sorted(path.relative_to(run.root) for path in run.root.rglob("*")) == before

    (tmp_path / "paper.json").write_text(json.dumps(paper | {"area": 0.1234}))
    capsys.readouterr()
    ablate(job, run, variants | {"narrow": {"network.head_hidden": 2}}, tmp_path)
    assert capsys.readouterr().out.count("already done") == 2
    table = (tmp_path / "ablation.md").read_text().splitlines()
    assert [line.split(" | ")[:2] for line in table[-3:-2]] == [["| paper", "0.1234"]]
    assert table[-1].startswith("| narrow")

    with pytest.raises(ConfigError, match=r"^network\.head_hidden is 4 and step 'heads' in .*narrow was run with 2"):
        ablate(job, run, {"narrow": {"network.head_hidden": 4}}, tmp_path)


def test_convolutional_heads_are_left_out_where_there_are_no_maps(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ablate(tiny_job(*QUICK), run, {"conv": {"network.head_kind": "conv"}, "paper": {}}, tmp_path)
    assert "conv: left out, since the cache of" in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("*.json")] == ["paper.json"]


def test_a_cut_off_variant_goes_on_with_the_next_exit(run: RunDirectory, tmp_path: Path) -> None:
    ablate(tiny_job(*QUICK), run, {"paper": {}}, tmp_path)
    (tmp_path / "paper.json").unlink()
    report = tmp_path / "paper" / "heads" / "exit1.json"
    report.write_text(json.dumps(json.loads(report.read_text()) | {"note": "not trained again"}))
    ablate(tiny_job(*QUICK), run, {"paper": {}}, tmp_path)
    assert json.loads((tmp_path / "paper.json").read_text())["exits"][0]["note"] == "not trained again"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("a", {"network.widths": [8]}, r"variant 'a': network\.widths is not about heads"),
        ("a", {"routers.rate": 1}, r"variant 'a': routers\.rate is not about heads"),
        ("a", {"heads.epochs": 0}, r"variant 'a': heads\.epochs: Input should be greater than 0"),
        ("a", {"network.head_size": 3}, r"variant 'a': network\.head_size: Extra inputs"),
        ("../a", {}, "a name is"),
        ("a", {"heads.views": 3}, r"heads\.views is 3 and cached are 2"),
    ],
)
def test_a_variant_that_cannot_be_is_named_before_any_is_trained(
    run: RunDirectory, name: str, settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=message):
        ablate(tiny_job(*QUICK), run, {"first": {}, name: settings}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_area_by_hand() -> None:
    """Two classes: the best mixtures go from (0, ½) over (.2, .7) to (.6, .9), and stay there."""
    points = [(0.2, 0.7), (0.4, 0.75), (0.6, 0.9), (1.01, 0.8)]
    assert area(points, 0.2, 2) == pytest.approx((0.4 * 0.8 + 0.4 * 0.9) / 0.8)
    # from .1 on, half of the frames at cost .1 are guessed
    assert area(points, 0.1, 2) == pytest.approx((0.1 * 0.65 + 0.4 * 0.8 + 0.4 * 0.9) / 0.9)
    # of a last exit beyond cost 1 only what costs up to 1 counts
    assert area([(0.5, 0.5), (1.5, 1.0)], 0.5, 4) == pytest.approx(0.625)


def test_macs_of_heads_are_those_that_the_cost_table_counts() -> None:
    for overrides in ((), ("network.head_kind=pooled_stats", "network.head_cascade=true")):  # conv: see test_costs.py
        config = tiny_job(*overrides).network
        network = MultiExitResNet(config)
        macs = head_macs(config)
        assert macs == [
            sum(layer.weight.numel() for layer in network.head(exit) if isinstance(layer, torch.nn.Linear)) for exit in (1, 2, 3)
        ]
        wider = cost_table(config.model_copy(update={"head_hidden": 2 * config.head_hidden}))
        dearer = [a - b for a, b in zip(wider.exit_macs, cost_table(config).exit_macs, strict=True)]
        assert dearer == [sum(macs[:exit]) for exit in range(1, len(WIDTHS) + 1)]


def test_the_default_variants_can_all_be() -> None:
    variants = load_variants()
    job = load_config("cifar10", ["cache.feature_maps=true"])
    networks = [variant_job(job, name, settings) for name, settings in variants.items()]
    assert len({variant.model_dump_json() for variant in networks}) == len(variants) > 15
    assert len({variant.network.head_pooling for variant in networks}) >= 7
    assert {variant.heads.views for variant in networks} == {None, 1}


@pytest.mark.parametrize("content", ["", "[a]", "a: 1", "a: [", None])
def test_a_list_of_variants_that_is_none_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"own\.yaml"):
        load_variants(path)
    path.write_text("narrow: {network.head_hidden: 8}")
    assert load_variants(path) == {"narrow": {"network.head_hidden": 8}}
