"""The whole road on the smoke preset: it learns, chooses on held-out data, and publishes what it measured."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from offramp_model.bundle import BundleStore
from offramp_model.weights import load_network
from offramp_training import publish, report
from offramp_training.assembly import Standardiser, load_whole
from offramp_training.cache import open_features
from offramp_training.config import JobError, load_config
from offramp_training.em import uniform_banks
from offramp_training.heads import fit_and_select
from offramp_training.run_directory import RunDirectory
from offramp_training.steps import NAMES


@pytest.fixture(scope="module")
def metrics(smoke_run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((smoke_run / "evaluate" / "metrics.json").read_text())
    return content


def test_every_step_leaves_seed_configuration_and_duration(smoke_run: Path) -> None:
    for step in NAMES:
        result = RunDirectory(smoke_run).result(step)
        assert result["seed"] == 0
        assert result["duration_seconds"] >= 0
        assert result["config"]["publish"]["name"] == "smoke"


def test_it_learns(smoke_run: Path, metrics: dict[str, Any]) -> None:
    assert RunDirectory(smoke_run).result("backbone")["held_out_accuracy"] > 0.7
    accuracies = [exit["test"]["accuracy"] for exit in metrics["exits"]]
    assert accuracies[0] > 0.4
    assert accuracies[-1] > 0.7


def test_the_objective_is_logged_for_every_lambda_and_never_falls(smoke_run: Path) -> None:
    log = RunDirectory(smoke_run).result("routers")["objective"]
    objective = np.array([entry["objective"] for entry in log])
    assert objective.shape[1] == 6
    assert (np.diff(objective, axis=0) >= -1e-5).all()


def test_parts_do_not_overlap(smoke_run: Path) -> None:
    split = np.load(smoke_run / "backbone" / "split.npz")
    parts = np.load(smoke_run / "heads" / "parts.npz")
    assert not set(split["train"]) & set(split["held_out"])
    assert not set(parts["fit"]) & set(parts["select"])
    assert len(parts["fit"]) + len(parts["select"]) == len(split["held_out"])


def test_the_table_has_the_papers_rows(metrics: dict[str, Any]) -> None:
    names = [row["name"] for row in metrics["table"]]
    assert set(report.PAPER_TABLE) <= set(names)
    oracle, em = (next(row for row in metrics["table"] if row["kind"] == kind) for kind in ("oracle", "router"))
    assert all(oracle["test"]["accuracy"] >= row["test"]["accuracy"] for row in metrics["table"] if row["kind"] != "full")
    assert em["control"]["policy"] == "router"
    for row in metrics["table"]:
        assert sum(row["test"]["exit_fractions"]) == pytest.approx(1, abs=1e-3)


def test_sweeps_reach_both_extremes(metrics: dict[str, Any]) -> None:
    for policy in ("entropy", "confidence", "router"):
        costs = [point["test"]["mean_cost"] for point in metrics["sweeps"][policy]]
        assert min(costs) == pytest.approx(metrics["cost_ratios"][0], abs=1e-4)
        assert max(costs) > metrics["cost_ratios"][1]


def test_the_bundle_is_what_was_measured(smoke_run: Path, smoke_store: Path, metrics: dict[str, Any]) -> None:
    bundle = BundleStore(smoke_store).open("smoke", 1)
    assert bundle.manifest.exit_accuracies == tuple(exit["select"]["accuracy"] for exit in metrics["exits"])
    assert bundle.manifest.default_control.policy == "router"
    assert bundle.manifest.provenance.data_note in (bundle.path / "README.md").read_text()
    assert {"metrics.json", "README.md", "plots/pareto.png"} <= set(bundle.manifest.files)
    job = load_config("smoke")
    ours, theirs = load_whole(job, RunDirectory(smoke_run)).state_dict(), load_network(bundle).state_dict()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), f"{name}: evaluated and published weights differ"
    costs = [point.mean_cost for point in bundle.manifest.operating_points]
    assert max(costs) - min(costs) > 0.4
    assert {point.control.policy for point in bundle.manifest.operating_points} == {"router", "entropy", "confidence", "fixed"}


def test_a_bundle_that_is_not_what_was_measured_is_refused(smoke_run: Path, smoke_store: Path) -> None:
    bundle = BundleStore(smoke_store).open("smoke", 1)
    wrong = bundle.manifest.model_copy(update={"exit_accuracies": (0.1,) * 4})
    with pytest.raises(JobError, match=r"weights\.safetensors: exit 1 is right on"):
        publish.verify(load_config("smoke"), RunDirectory(smoke_run), type(bundle)(bundle.path, wrong))


def test_weights_that_are_too_large_are_refused(smoke_run: Path, tmp_path: Path) -> None:
    job = load_config("smoke", ["publish.max_megabytes=0.01", f"publish.store={tmp_path}"])
    with pytest.raises(JobError, match=r"publish\.max_megabytes: the weights take 0\.1 MB"):
        publish.publish(job, RunDirectory(smoke_run))
    assert list(tmp_path.iterdir()) == []


def test_figures_are_drawn_and_repeatable(metrics: dict[str, Any], smoke_run: Path, tmp_path: Path) -> None:
    for name in ("pareto", "exits_over_lambda", "baselines"):
        with Image.open(smoke_run / "report" / f"{name}.png") as image:
            assert image.size[0] > 600
        ElementTree.parse(smoke_run / "report" / f"{name}.svg")
    with report.saved_figure(tmp_path / "pareto", 7.2, 4.6) as figure:
        report.draw_pareto(figure.subplots(), metrics)
    assert (tmp_path / "pareto.svg").read_bytes() == (smoke_run / "report" / "pareto.svg").read_bytes()


def test_report_shows_the_papers_table_beside_ours_for_ten_classes_and_four_exits(metrics: dict[str, Any]) -> None:
    text = report.markdown(load_config("cifar10"), metrics)
    assert "| Exit 3 only |" in text
    assert "0.8984 | 0.7500 |" in text
    assert "JPEG" in text


def test_views_are_plain_and_mirrored_ones(smoke_run: Path) -> None:
    features = open_features(smoke_run / "cache", "held_out", 4)
    assert features.views == 4
    assert [statistics.shape[2] for statistics in features.statistics] == [8 * 35, 16 * 35, 24 * 35, 32]
    assert len(features.all_views(torch.arange(5))[0]) == 20
    assert not torch.equal(features.statistics[0][:, 0], features.statistics[0][:, 1])
    fit, select = fit_and_select(load_config("smoke"), features)
    assert np.array_equal(np.load(smoke_run / "heads" / "parts.npz")["select"], select.numpy())
    assert len(fit) > len(select)


def test_folding_the_standardisation_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    features = 5 + 3 * torch.randn(100, 6, generator=generator)
    features[:, 2] = 0  # a dead channel
    standardise = Standardiser(features)
    bank = uniform_banks((6, 8), 4, 3, generator)[0]
    torch.nn.init.normal_(bank.weight_LH1, generator=generator)
    with torch.no_grad():
        before = bank(standardise(features))
        standardise.fold_into(bank)
        torch.testing.assert_close(bank(features), before, rtol=1e-4, atol=1e-4)


def test_forecast_routers_come_the_same_way(smoke_run: Path, forecast_run: Path, smoke_store: Path) -> None:
    metrics = json.loads((forecast_run / "evaluate" / "metrics.json").read_text())
    router = [point for point in metrics["sweeps"]["router"] if point["control"]["lambda_"] <= 100]
    costs = [point["test"]["mean_cost"] for point in sorted(router, key=lambda point: point["control"]["lambda_"])]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1] == pytest.approx(metrics["cost_ratios"][0], abs=1e-4)
    result = RunDirectory(forecast_run).result("routers")
    assert [router["exit"] for router in result["routers"]] == [1, 2, 3]
    manifest = BundleStore(smoke_store).open("smoke", 2).manifest
    assert (manifest.network.router_kind, manifest.network.router_temperature) == ("forecast", result["temperature"])
    assert manifest.network.head_cascade
    # the whole statistics of a feature map tell more than their average
    first = [
        json.loads((run / "evaluate" / "metrics.json").read_text())["exits"][0]["test"]["accuracy"]
        for run in (smoke_run, forecast_run)
    ]
    assert first[1] > first[0]


def test_everything_is_compared_at_the_same_costs(forecast_run: Path) -> None:
    metrics = json.loads((forecast_run / "evaluate" / "metrics.json").read_text())
    proof, first, last = metrics["proof"], metrics["cost_ratios"][0], metrics["cost_ratios"][-1]
    methods = proof["methods"]
    assert {"Fixed mixtures", "Entropy", "Max-softmax", "Patience", "Learned scores (EENet)", "Backward induction"} <= set(
        methods
    )
    assert {"Halting network (PonderNet)", "Forecast routing", "EM bank", "EM bank, paper's heads"} <= set(methods)
    assert {"FiLM router (YOTO)", "Forecast, cross-fitted", "Forecast of log-likelihood"} <= set(methods)
    for name in ("Fixed mixtures", "Entropy", "Forecast routing"):
        for cost, figures in zip(proof["costs"], methods[name], strict=True):
            if figures is None:  # a router may not go as deep as that at any λ
                assert name == "Forecast routing" or not first <= cost <= last
            else:
                assert figures["test_cost"] == pytest.approx(cost, abs=0.08)  # chosen on 144 images
                assert figures["deviation"] is not None
    assert any(methods["Forecast routing"])
    assert set(proof["own_minus"]) == set(methods) - {"Forecast routing"}
    index = next(i for i, cost in enumerate(proof["costs"]) if first < cost < last)
    difference = proof["own_minus"]["Entropy"][index]
    ours, theirs = (methods[name][index]["test_accuracy"] for name in ("Forecast routing", "Entropy"))
    assert difference["mean"] == pytest.approx(ours - theirs, abs=2e-5)
    assert difference["low"] <= difference["mean"] <= difference["high"]


def test_nothing_is_fitted_to_compare_with_where_no_steps_are_given(metrics: dict[str, Any]) -> None:
    assert set(metrics["proof"]["methods"]) == {"Fixed mixtures", "Entropy", "Max-softmax", "Patience", "EM routing"}


def test_replicas_share_a_backbone_and_differ_in_heads(forecast_run: Path) -> None:
    other, paper = forecast_run / "arms" / "own-1", forecast_run / "arms" / "paper-1"
    assert (other / "cache" / "train-labels.npy").samefile(forecast_run / "cache" / "train-labels.npy")
    heads = [(run / "heads" / "heads.safetensors").read_bytes() for run in (forecast_run, other, paper)]
    assert len(set(heads)) == 3
    assert (forecast_run / "arms" / "bank-1" / "heads" / "heads.safetensors").read_bytes() == heads[1]


def test_the_papers_own_system_stands_beside_ours(forecast_run: Path, smoke_store: Path) -> None:
    metrics = json.loads((forecast_run / "evaluate" / "metrics.json").read_text())
    card = (smoke_store / "smoke" / "2" / "README.md").read_text()
    assert "one router for every λ" in card
    assert "λ is in accuracy per full network's compute" in card
    assert "The paper's own system on this backbone" in card
    assert metrics["paper"]["routing_verdict"] in card
    assert {row["name"] for row in metrics["paper"]["table"]} >= {"EM routing (best)", "Exit 1 only", "Oracle routing"}
    assert "| Forecast routing |" in card


def test_one_more_generation_of_jpeg_is_measured_where_asked_for(
    metrics: dict[str, Any], forecast_run: Path, smoke_store: Path
) -> None:
    assert "recoded" not in metrics
    measured = json.loads((forecast_run / "evaluate" / "metrics.json").read_text())
    recoded = measured["recoded"]
    assert recoded["quality"] == 50
    assert recoded["full"]["test"] == measured["table"][0]["test"]
    assert [exit["test"] for exit in recoded["exits"]] == [exit["test"]["accuracy"] for exit in measured["exits"]]
    assert recoded["full"]["recoded"] != recoded["full"]["test"]
    assert "Coded as JPEG once more (quality 50" in (smoke_store / "smoke" / "2" / "README.md").read_text()


def test_a_frontier_is_published_for_those_who_ask_for_an_outcome(forecast_run: Path, smoke_store: Path) -> None:
    frontier = BundleStore(smoke_store).open("smoke", 2).manifest.frontier
    assert frontier is not None
    costs = [point.mean_cost for point in frontier.points]
    assert costs == sorted(costs, reverse=True)
    full = RunDirectory(forecast_run).result("heads")["full_select"]["accuracy"]
    for point in frontier.points:
        assert full - point.accuracy <= point.losses / frontier.frames + 1e-5


def test_a_network_that_fills_in_what_training_finds_is_refused() -> None:
    with pytest.raises(JobError, match=r"give forecast\.temperatures instead"):
        load_config("smoke", ["network.router_kind=forecast", "network.router_temperature=0.1"])
