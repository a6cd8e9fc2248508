"""Panels as this dashboard has them: one look, and a data source that its viewer chooses."""

from __future__ import annotations

from typing import NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.builders import stat as stats
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from offramp_server.ops.instruments import Histogram
from promql import quantile

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


class Query(NamedTuple):
    """A series of a panel, or several."""

    expression: str
    legend: str = ""


def graph(title: str, description: str, unit: str, *queries: Query, width: int = 8, stacked: bool = False) -> timeseries.Panel:
    """Lines over time, or stacked areas. `unit` is one of Grafana's names; `width` is of the 24 columns."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .height(8)
        .span(width)
        .unit(unit)
        .axis_soft_min(0)
        .line_width(1)
        .fill_opacity(60 if stacked else 0)
        .show_points(VisibilityMode.NEVER)
        .stacking(common.StackingConfig().mode(StackingMode.NORMAL if stacked else StackingMode.NONE))
        .legend(
            common.VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    for index, query in enumerate(queries):
        panel.with_target(target(index, query))
    return panel


def stat(title: str, description: str, unit: str, expression: str, bounds: tuple[float, float] | None = None) -> stats.Panel:
    """One number with its recent course; yellow and red from `bounds` on."""
    return (
        stats.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .height(4)
        .span(3)
        .unit(unit)
        .decimals(1 if unit == "short" else 2)
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(thresholds(*(bounds or ())))
        .with_target(target(0, Query(expression)))
    )


def quantiles(histogram: Histogram) -> list[Query]:
    """The median and the tail of a histogram."""
    return [Query(quantile(q, histogram), f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99)]


def target(index: int, query: Query) -> prometheus.Dataquery:
    """A query as the panel's `index`-th, from 0."""
    built = prometheus.Dataquery().ref_id(chr(ord("A") + index)).expr(query.expression)
    return built.legend_format(query.legend) if query.legend else built


def thresholds(*bounds: float) -> dashboard.ThresholdsConfig:
    """Green, then yellow and red from the bounds on."""
    steps = [Threshold(color="green")]
    steps += [Threshold(value=bound, color=colour) for bound, colour in zip(bounds, ("yellow", "red"), strict=False)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def label_variable(label: str, query: str) -> dashboard.QueryVariable:
    """A choice among a label's values: one, several or, at first, all."""
    return (
        dashboard.QueryVariable(label)
        .datasource(SOURCE)
        .query({"qryType": 1, "query": query, "refId": label})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )
