"""Figures and tables of a slowdown attack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from offramp_training.report import DEPTHS, saved_figure

FIGURES = ("exits", "controls")
_COLOURS = {"clean": "#009E73", "noise": "#E69F00", "attacked": "#D55E00"}

Result = dict[str, Any]


def draw_figures(folder: Path, result: Result) -> None:
    """Write exits and controls, as PNG and SVG."""
    with saved_figure(folder / "exits", 6.2, 3.0) as figure:
        draw_exits(figure.subplots(), result)
    with saved_figure(folder / "controls", 8.2, 6.0) as figure:
        draw_controls(figure, result)


def draw_exits(axes: Axes, result: Result) -> None:
    """Where frames leave under the default control: clean, under noise, attacked."""
    rows = {name: controls["default"] for name, controls in result["conditions"].items()}
    left = [0.0] * len(rows)
    for index in range(len(result["cost_ratios"])):
        widths = [row["exit_fractions"][index] for row in rows.values()]
        axes.barh(list(rows), widths, 0.7, left=left, color=DEPTHS[index % len(DEPTHS)], label=f"exit {index + 1}")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(xlabel="share of frames under the default control", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    axes.figure.legend(loc="outside upper center", ncols=len(result["cost_ratios"]), fontsize=9)


def draw_controls(figure: Figure, result: Result) -> None:
    """Mean cost and accuracy under every control, the three kinds of images side by side."""
    conditions, labels = result["conditions"], list(result["conditions"]["clean"])
    for axes, key, title in zip(
        figure.subplots(2, 1, sharex=True), ("mean_cost", "accuracy"), ("mean cost", "accuracy"), strict=True
    ):
        for index, (name, controls) in enumerate(conditions.items()):
            places = [place + 0.27 * (index - 1) for place in range(len(labels))]
            axes.bar(places, [controls[label][key] for label in labels], 0.25, color=_COLOURS[name], label=name)
        axes.set_ylabel(title)
        axes.grid(axis="x", visible=False)
    axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right", fontsize=9)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(conditions), fontsize=9)


def write_report(result: Result) -> str:
    """Everything in Markdown."""
    aim, controls = result["aim"], [result["conditions"][name]["default"] for name in ("clean", "attacked")]
    cost, accuracy = (" to ".join(f"{control[key]:.4f}" for control in controls) for key in ("mean_cost", "accuracy"))
    return f"""\
# A slowdown attack

{result["images"]:,} test images, each changed by at most {result["epsilon"]} of 255 grey levels a pixel, in {result["steps"]}
steps of projected gradient descent, so that the routers at λ = {aim["lambda_"]:g}, τ = {aim["threshold"]:g} let as few frames
go as possible. *Noise* changes every pixel by just as much, up or down at random. Under the default control the mean cost goes
from {cost}, and accuracy from {accuracy}.

{_table(result)}

The plain full network's accuracy, at cost 1: {_list(result, lambda row: row["full_accuracy"])}.
Drift scores under the default control: of exits {_list(result, lambda row: row["drift"]["exit"])}; of confidences
{_list(result, lambda row: row["drift"]["confidence"])}.

![exits](exits.png)

![controls](controls.png)
"""


def _table(result: Result) -> str:
    """A line for each control: accuracy, mean cost and exits, clean, under noise and attacked."""
    conditions, exits = result["conditions"], len(result["cost_ratios"])
    heads = [f"{name}: {what}" for name in conditions for what in ("accuracy", "mean cost", f"exits 1…{exits}")]
    lines = [f"| control | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    for label in conditions["clean"]:
        cells = [label]
        for controls in conditions.values():
            row = controls[label]
            shares = " / ".join(f"{100 * fraction:.1f}" for fraction in row["exit_fractions"])
            cells += [f"{row['accuracy']:.4f}", f"{row['mean_cost']:.4f}", shares]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _list(result: Result, read: Callable[[Result], float]) -> str:
    """A figure of the default control in each condition."""
    return ", ".join(f"{name} {read(controls['default']):.4f}" for name, controls in result["conditions"].items())
