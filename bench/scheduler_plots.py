"""The pictures of bench/scheduler.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

COLOURS = {
    "deepest first": "#b5651d",
    "fullest first": "#7a7a7a",
    "efficient batches": "#1f4e79",
    "false": "#b5651d",
    "true": "#1f4e79",
}
Rows = Sequence[Mapping[str, float | str]]


def draw_strategies(rows: Rows, path: Path) -> None:
    """Throughput, p50 and p99 of every strategy, a group of bars a load."""
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(2, 3)
    for line, (loop, unit) in enumerate((("closed", "in flight"), ("open", "of capacity, Poisson"))):
        values = sorted({float(row["value"]) for row in rows if row["loop"] == loop})
        for column, (field, title) in enumerate((("answered_fps", "frames/s"), ("p50_ms", "p50, ms"), ("p99_ms", "p99, ms"))):
            ax = axes[line][column]
            for place, name in enumerate(dict.fromkeys(str(row["strategy"]) for row in rows)):
                heights = [
                    next(float(r[field]) for r in rows if (r["strategy"], r["loop"], r["value"]) == (name, loop, value))
                    for value in values
                ]
                spots = [index + (place - 1) * 0.27 for index in range(len(values))]
                ax.bar(spots, heights, 0.25, label=name, color=COLOURS[name])
            ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
            ax.set(title=title, xlabel=unit)
            ax.grid(axis="y", alpha=0.3)
            if field != "answered_fps":
                ax.set_yscale("log")
    axes[0][0].legend(fontsize=8)
    _save(figure, path)


def draw_overload(rows: Rows, path: Path) -> None:
    """Goodput, p99, accuracy and refusals over the offered load, with and without allow_degrade."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    fields = {
        "goodput_fps": "answers in time, a second",
        "p99_ms": "p99, ms",
        "accuracy": "accuracy of answers",
        "refused": "share refused",
    }
    for ax, (field, title) in zip(figure.subplots(1, 4), fields.items(), strict=True):
        for allowed, label in (("false", "refused past the limit"), ("true", "allow_degrade")):
            points = [(float(r["load"]), float(r[field])) for r in rows if r["allow_degrade"] == allowed]
            ax.plot([x for x, _ in points], [y for _, y in points], "o-", label=label, color=COLOURS[allowed])
        ax.set(title=title, xlabel="offered load over capacity")
        ax.set_ylim(bottom=None if field == "accuracy" else 0)
        ax.grid(alpha=0.3)
        if field == "goodput_fps":
            ax.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "offramp"}):  # the same picture gives the same bytes
        figure.savefig(path, metadata={"Date": None})
