"""Dashboard, rules and alerts ask for what the server exposes, and for all of it."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Histogram

from offramp_model.drift import Histogram as DriftHistogram
from offramp_model.routing import Policy
from offramp_server.config import Settings
from offramp_server.engine.types import FrameControl
from offramp_server.ops.drift import DriftWindow
from offramp_server.ops.metrics import MODEL, SECONDS, MetricFamilies, ModelMetrics, register_process_metrics

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = DOCKER / "grafana" / "dashboards" / "offramp.json"
OF_PROMETHEUS = {"up": {"job", "instance"}}
UNUSED = {"offramp_build_info"}
"""What operators read by hand."""


def panel_expressions() -> Iterator[tuple[str, str]]:
    """Every panel's title and query."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def rules() -> list[dict[str, Any]]:
    """Every recording and alerting rule."""
    files = (DOCKER / "prometheus" / name for name in ("recording.yml", "alerts.yml"))
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def exposed() -> dict[str, set[str]]:
    """Every series that a server exposes, with its labels."""
    registry = CollectorRegistry()
    register_process_metrics(registry, "0")
    even = DriftHistogram((1, 1), math.inf)
    drift = DriftWindow(FrameControl(Policy.ROUTER, 0.0, (0.5,), 1, 2), {"exit": even, "confidence": even}, 100)
    ModelMetrics(MetricFamilies(registry, exits=2), ("m", "1"), ("torch", "cpu"), (1, 2), 2, drift)
    series = {sample.name: set(sample.labels) for family in registry.collect() for sample in family.samples}
    return {name: labels | {"job", "instance"} for name, labels in series.items()}


def known() -> dict[str, set[str]]:
    """What expressions may name, with its labels: what is exposed, what Prometheus adds, and what rules record."""
    recorded = {rule["record"]: labels_in(rule["expr"])[1] for rule in rules() if "record" in rule}
    return exposed() | OF_PROMETHEUS | recorded


def labels_in(expression: str) -> tuple[list[tuple[str, set[str]]], set[str]]:
    """Each series that an expression names with the labels that it is chosen by, and the labels that are kept."""
    chosen = re.findall(r"((?:\w+:)?(?:offramp|process)_\w+(?::\w+)?|\bup\b)(?:\{([^}]*)\})?", expression)
    kept = re.findall(r"\b(?:by|on) ?\(([^)]*)\)", expression)
    return [(name, set(re.findall(r"(\w+)\s*(?:=|!)", where))) for name, where in chosen], set(re.findall(r"\w+", " ".join(kept)))


QUERIES = [*panel_expressions(), *((rule.get("alert") or rule["record"], rule["expr"]) for rule in rules())]


@pytest.mark.parametrize(("title", "expression"), QUERIES, ids=[title for title, _ in QUERIES])
def test_an_expression_names_only_series_and_labels_that_there_are(title: str, expression: str) -> None:
    series = known()
    chosen, kept = labels_in(expression)
    assert chosen, expression
    for name, labels in chosen:
        assert name in series, f"{title}: no server exposes {name}"
        assert labels <= series[name], f"{title}: {name} has no {labels - series[name]}"
    assert kept <= set.union(*(series[name] for name, _ in chosen)), f"{title}: nothing there has {kept}"


def test_every_metric_of_ours_is_looked_at() -> None:
    series = exposed()
    used = {name for _, expression in QUERIES for name, _ in labels_in(expression)[0]}
    used_families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    ours = {name for name in series if name.startswith("offramp_") and not name.endswith("_created")}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in ours} - used_families == UNUSED


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("grafana_foundation_sdk", reason="the dashboard library is not installed")
    monkeypatch.syspath_prepend(DOCKER / "grafana")
    spec = importlib.util.spec_from_file_location("offramp_dashboard", DOCKER / "grafana" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_dashboard_is_current(builder: ModuleType) -> None:
    assert builder.render(MetricFamilies(CollectorRegistry(), exits=4)) == DASHBOARD.read_text()


def test_a_renamed_metric_changes_the_dashboard_and_a_lost_one_breaks_its_build(builder: ModuleType) -> None:
    families = MetricFamilies(CollectorRegistry(), exits=4)
    families.latency = Histogram("offramp_delay_seconds", "…", MODEL, buckets=SECONDS, registry=None)
    rendered = builder.render(families)
    assert "offramp_delay_seconds_bucket" in rendered
    assert "offramp_latency_seconds" not in rendered
    del families.latency
    with pytest.raises(AttributeError, match="latency"):
        builder.render(families)


def test_no_two_panels_overlap() -> None:
    cells = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        own = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert max(x for x, _ in own) < 24, panel["title"]
        assert not own & cells, panel["title"]
        cells |= own


def test_the_configurations_agree() -> None:
    scrape = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    source = yaml.safe_load((DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    assert scrape["global"]["scrape_interval"] == source["datasources"][0]["jsonData"]["timeInterval"]
    (job,) = scrape["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"server:{Settings.model_fields['http_port'].default}"]
    assert f'job="{job["job_name"]}"' in (DOCKER / "prometheus" / "alerts.yml").read_text()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Debian's package prometheus, is not installed")
@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "rules_test.yml")])
def test_promtool_is_content(arguments: tuple[str, ...]) -> None:
    result = subprocess.run(["promtool", *arguments], cwd=DOCKER / "prometheus", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("alert", [rule["alert"] for rule in rules() if "alert" in rule])
def test_every_alert_is_tested_and_explained(alert: str) -> None:
    assert f"alertname: {alert}\n" in (DOCKER / "prometheus" / "rules_test.yml").read_text()
    assert alert in (DOCKER.parent / "docs" / "monitoring.md").read_text()
