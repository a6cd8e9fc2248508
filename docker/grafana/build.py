"""Write dashboards/offramp.json from the server's metric definitions; with --check, fail where it is not current."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, heatmap, table
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    AxisPlacement,
    GraphThresholdsStyleMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DynamicConfigValue,
    Panel,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from prometheus_client import CollectorRegistry

from offramp_server.ops.metrics import MetricFamilies
from panels import SOURCE, Query, graph, label_variable, quantiles, stat, target, thresholds
from promql import OF_POLICY, WINDOW, buckets, gauge, mean, name, of_servers, quantile, rate

TARGET = Path(__file__).with_name("dashboards") / "offramp.json"
GRID_WIDTH = 24
EXIT_COLOURS = ("super-light-blue", "light-blue", "semi-dark-blue", "dark-blue")
"""Deeper is darker; exits past these get Grafana's own."""
WARN_DRIFT, BAD_DRIFT = 0.15, 0.25
WARN_REFUSED, BAD_REFUSED = 0.001, 0.01

PanelBuilder = Builder[Panel]


def build_dashboard(metrics: MetricFamilies) -> dashboard.Dashboard:
    """The dashboard, row by row, from what a stranger asks first."""
    board = (
        dashboard.Dashboard("Offramp")
        .uid("offramp")
        .description("Early-exit image classification: where frames leave the network, what they cost, and what callers ask for.")
        .tags(["offramp"])
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .refresh("5s")
        .time("now-15m", "now")
        .with_variable(dashboard.DatasourceVariable("datasource").label("data source").type("prometheus"))
        .with_variable(label_variable("model", f"label_values({name(metrics.info)}, model)"))
        .with_variable(label_variable("version", f'label_values({name(metrics.info)}{{model=~"$model"}}, version)'))
        .with_variable(label_variable("policy", f"label_values({name(metrics.frames)}_total, policy)"))
    )
    _add(board, _glance(metrics))
    for title, panels in (
        ("Where frames leave", _exits(metrics)),
        ("How fast", _speed(metrics)),
        ("What callers ask for", _requests(metrics)),
        ("Trouble", _trouble(metrics)),
        ("Servers", _servers(metrics)),
    ):
        board.with_row(dashboard.Row(title))
        _add(board, panels)
    return board


def _glance(m: MetricFamilies) -> list[PanelBuilder]:
    spent, saved = rate(m.macs_spent), rate(m.macs_saved)
    refused, admitted = rate(m.refused), rate(m.admitted)
    return [
        stat("Frames/s", "Frames classified a second.", "short", rate(m.frames, where=OF_POLICY)),
        stat("Mean exit", "Mean number of the exit at which frames leave.", "short", mean(m.exit_depth)),
        stat(
            "Mean compute",
            "MACs spent on a frame over those of the plain full network, heads and routers counted.",
            "percentunit",
            mean(m.compute, where=OF_POLICY),
        ),
        stat("MACs saved", "Part of the full network's MACs not spent.", "percentunit", f"{saved} / ({spent} + {saved})"),
        stat("p99 latency", "From a frame's admission to its answer.", "s", quantile(0.99, m.latency)),
        stat(
            "Refused",
            "Part of the frames that were not admitted: malformed, or more than the server takes at a time.",
            "percentunit",
            f"{refused} / ({admitted} + {refused})",
            bounds=(WARN_REFUSED, BAD_REFUSED),
        ),
        stat(
            "Drift",
            "How far the last frames' exits or confidences are from the bundle's own held-out images, 0 to 1; empty while too "
            "few frames came under the model's default control.",
            "short",
            gauge(m.drift, aggregation="max"),
            bounds=(WARN_DRIFT, BAD_DRIFT),
        ),
        stat("Streams", "Streams that are open.", "short", gauge(m.streams)),
    ]


def _exits(m: MetricFamilies) -> list[PanelBuilder]:
    exits = graph(
        "Exits",
        "Frames a second by the exit at which they left: 1 is the shallowest and cheapest.",
        "short",
        Query(rate(m.frames, "exit", where=OF_POLICY), "exit {{exit}}"),
        width=12,
        stacked=True,
    )
    for exit, colour in enumerate(EXIT_COLOURS, 1):
        fixed = DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
        exits.override_by_name(f"exit {exit}", [fixed])
    compute = (
        heatmap.Panel()
        .title("Compute ratio")
        .description("Frames a second by MACs spent over the full network's. A band is an exit; where it is dark, frames leave.")
        .datasource(SOURCE)
        .height(8)
        .span(12)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit("percentunit").axis_placement(AxisPlacement.LEFT))
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64))
        .mode(TooltipDisplayMode.SINGLE)
        .with_target(target(0, Query(buckets(m.compute, where=OF_POLICY), "{{le}}")).format(PromQueryFormat.HEATMAP))
    )
    macs = graph(
        "MACs spent and saved",
        "Multiply-accumulates a second, under every policy; spent and saved together are the full network's on the same frames.",
        "si: MAC/s",
        Query(rate(m.macs_spent), "spent"),
        Query(rate(m.macs_saved), "saved"),
        stacked=True,
    )
    return [
        exits,
        compute,
        graph(
            "Mean compute",
            "MACs spent on a frame over those of the plain full network, by policy.",
            "percentunit",
            Query(mean(m.compute, "policy", where=OF_POLICY), "{{policy}}"),
        ),
        macs,
        graph(
            "Why they left",
            "policy: the exit was good enough; last_exit: there was no further one; max_exit, max_cost: the caller's bound cut "
            "the frame short, which under the fixed policy is what was asked for; deadline: going on would have been too late.",
            "short",
            Query(rate(m.frames, "reason", where=OF_POLICY), "{{reason}}"),
            stacked=True,
        ),
    ]


def _speed(m: MetricFamilies) -> list[PanelBuilder]:
    return [
        graph(
            "Frames/s",
            "Frames classified a second, by model and version.",
            "short",
            Query(rate(m.frames, "model", "version", where=OF_POLICY), "{{model}} {{version}}"),
        ),
        graph("Latency", "From a frame's admission to its answer.", "s", *quantiles(m.latency)),
        graph("Queue time", "A frame's whole time in the queues of all stages.", "s", *quantiles(m.queue)),
        graph(
            "Batch size by stage",
            "Mean frames in a batch. Survivors are batched anew before every stage.",
            "short",
            Query(mean(m.batch_size, "stage"), "stage {{stage}}"),
        ),
        graph("Stage time", "Mean time to run one stage on one batch.", "s", Query(mean(m.stage, "stage"), "stage {{stage}}")),
        graph(
            "Wait before a stage",
            "95th percentile of a frame's time in one stage's queue.",
            "s",
            Query(quantile(0.95, m.stage_wait, "stage"), "stage {{stage}}"),
        ),
    ]


def _requests(m: MetricFamilies) -> list[PanelBuilder]:
    return [
        graph(
            "λ in use",
            "Price of compute of frames under the router policy: a larger one leaves earlier.",
            "short",
            Query(mean(m.lambda_), "mean"),
            Query(quantile(0.5, m.lambda_), "p50"),
            Query(quantile(0.95, m.lambda_), "p95"),
        ),
        graph(
            "τ in use",
            "Mean threshold by policy, the mean over exits where they differ.",
            "short",
            Query(mean(m.threshold, "policy", where=OF_POLICY), "{{policy}}"),
        ),
        graph(
            "Confidence",
            "Mean of the largest class probability, by the exit taken.",
            "percentunit",
            Query(mean(m.confidence, "exit"), "exit {{exit}}"),
        ),
    ]


def _trouble(m: MetricFamilies) -> list[PanelBuilder]:
    drift = (
        graph(
            "Drift score",
            "Distance of the last frames' histogram from the bundle's own, from 0 (the same) to 1 (nothing in common). Only "
            "frames under the model's default control count.",
            "short",
            Query(gauge(m.drift, "model", "version", "kind", aggregation="max"), "{{kind}}, {{model}} {{version}}"),
            width=12,
        )
        .min(0)
        .max(1)
        .thresholds(thresholds(WARN_DRIFT, BAD_DRIFT))
        .thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    )
    return [
        graph("Refused", "Frames a second not admitted.", "short", Query(rate(m.refused, "reason"), "{{reason}}"), width=8),
        graph(
            "Dropped",
            "Frames a second admitted and not answered: the caller went, the deadline passed, or the server failed.",
            "short",
            Query(rate(m.dropped, "reason"), "{{reason}}"),
            width=8,
        ),
        graph(
            "Under pressure",
            "Frames a second that were run at a larger λ under overload, or left early so as not to miss their deadline; only "
            "those whose callers allow it.",
            "short",
            Query(rate(m.degraded), "degraded"),
            Query(rate(m.frames, where=f'{OF_POLICY},reason="deadline"'), "left before the deadline"),
            width=8,
        ),
        drift,
        graph(
            "Frames behind the drift score",
            "Frames in the window. The score starts when a quarter of it is full.",
            "short",
            Query(gauge(m.drift_frames, "model", "version", aggregation="max"), "{{model}} {{version}}"),
            width=12,
        ),
    ]


def _servers(m: MetricFamilies) -> list[PanelBuilder]:
    loaded = gauge(m.info, "instance", "model", "version", "backend", "device", aggregation="max") + " == 1"
    runs = (
        table.Panel()
        .title("What runs")
        .description("Each server's models, and where it runs them.")
        .datasource(SOURCE)
        .height(6)
        .span(GRID_WIDTH)
        .with_target(target(0, Query(loaded)).format(PromQueryFormat.TABLE).instant())
    )
    return [
        graph("Open streams", "By server.", "short", Query(gauge(m.streams, "instance"), "{{instance}}"), width=6),
        graph(
            "Frames in flight",
            "Admitted and not yet answered, by server. At --max-in-flight a model refuses more.",
            "short",
            Query(gauge(m.in_flight, "instance"), "{{instance}}"),
            width=6,
        ),
        graph(
            "Memory", "Resident.", "bytes", Query(of_servers("process_resident_memory_bytes", m.info), "{{instance}}"), width=6
        ),
        graph(
            "CPU",
            "Cores in use.",
            "short",
            Query(of_servers(f"rate(process_cpu_seconds_total[{WINDOW}])", m.info), "{{instance}}"),
            width=6,
        ),
        runs,
    ]


def _add(board: dashboard.Dashboard, panels: Sequence[PanelBuilder]) -> None:
    for panel in panels:
        board.with_panel(panel)


def render(metrics: MetricFamilies) -> str:
    """The dashboard as JSON, the same for the same metrics."""
    built = build_dashboard(metrics).build()
    for number, panel in enumerate(built.panels or (), 1):
        panel.id_val = number
    return json.dumps(built, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the dashboard, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the file is not current")
    rendered = render(MetricFamilies(CollectorRegistry(), exits=len(EXIT_COLOURS)))
    if parser.parse_args(arguments).check:
        if not TARGET.exists() or TARGET.read_text() != rendered:
            raise SystemExit(f"{TARGET.name} is not what the metrics give: run python docker/grafana/build.py")
    else:
        TARGET.write_text(rendered)


if __name__ == "__main__":
    main()
