"""Figures and tables of a shift: accuracy, cost, exits, promises and drift scores over the severity of each corruption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from offramp_training.report import DEPTHS, saved_figure

ALERT = 0.15
"""Drift score from which the recommended alert fires."""
FIGURES = ("accuracy", "cost", "exits", "promises", "drift")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_AXIS = "severity"

Result = dict[str, Any]


def by_corruption(result: Result) -> dict[str, list[Result]]:
    """Each corruption's conditions by severity, the clean images at their head."""
    clean, *shifted = result["conditions"]
    names = dict.fromkeys(condition["corruption"] for condition in shifted)
    return {name: [clean, *(each for each in shifted if each["corruption"] == name)] for name in names}


def draw_figures(folder: Path, result: Result) -> None:
    """Write each figure as PNG and SVG; that of the promises only where there is one."""
    with saved_figure(folder / "accuracy", 7.2, 4.4) as figure:
        draw_accuracy(figure.subplots(), result)
    with saved_figure(folder / "cost", 7.2, 4.2) as figure:
        axes = figure.subplots()
        _draw_curves(axes, result, lambda condition: condition["mean_cost"], "mean cost (MACs over the full network's)")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=9)
    with saved_figure(folder / "exits", 2.4 * len(by_corruption(result)), 3.2) as figure:
        draw_exits(figure.subplots(1, len(by_corruption(result)), sharey=True, squeeze=False)[0], result)
    if result["promises"]:
        columns = min(len(result["promises"]), 3)
        rows = -(-len(result["promises"]) // columns)
        with saved_figure(folder / "promises", 3.4 * columns, 3.2 * rows) as figure:
            draw_promises(list(figure.subplots(rows, columns, squeeze=False).flat), result)
    with saved_figure(folder / "drift", 8.2, 3.8) as figure:
        for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("exit", "confidence"), strict=True):
            _draw_curves(axes, result, partial(_read, "drift", kind), f"drift score, {kind}")
            axes.axhline(ALERT, color="#666666", lw=1, ls=":")
            axes.set_ylim(bottom=0)
        axes.legend(fontsize=9)


def draw_accuracy(axes: Axes, result: Result) -> None:
    """Accuracy of the routed network (solid) and of the plain full one (dashed)."""
    _draw_curves(axes, result, lambda condition: condition["accuracy"], "accuracy on the test images")
    for conditions, colour in zip(by_corruption(result).values(), _COLOURS, strict=False):
        full = [condition["full_accuracy"] for condition in conditions]
        axes.plot([condition["severity"] for condition in conditions], full, "--", lw=1, color=colour)
    axes.plot([], [], "--", lw=1, color="#666666", label="full network")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(fontsize=9)


def draw_exits(panels: Sequence[Axes], result: Result) -> None:
    """Where frames leave under each corruption, a panel each."""
    for axes, (name, conditions) in zip(panels, by_corruption(result).items(), strict=True):
        severities, bottom = [condition["severity"] for condition in conditions], [0.0] * len(conditions)
        for index in range(len(conditions[0]["exit_fractions"])):
            heights = [condition["exit_fractions"][index] for condition in conditions]
            axes.bar(severities, heights, 0.82, bottom=bottom, color=DEPTHS[index % len(DEPTHS)], label=f"exit {index + 1}")
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        axes.set(title=name, xlabel=_AXIS, xticks=severities, ylim=(0, 1))
        axes.grid(axis="x", visible=False)
    panels[0].set_ylabel("share of frames")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panels[0].figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=8, fontsize=9)


def draw_promises(panels: Sequence[Axes], result: Result) -> None:
    """What each promise came to, with a line at what was promised."""
    for index, (axes, promise) in enumerate(zip(panels, result["promises"], strict=False)):
        label = "losses" if promise["field"] == "max_accuracy_drop" else "mean cost"
        _draw_curves(axes, result, partial(_read, "realised", index), f"realised {label}")
        axes.axhline(promise["value"], color="black", lw=1, ls=":")
        axes.set_ylim(bottom=0)
        axes.set_title(f"{promise['field']} {promise['value']:g}", fontsize=10)
        if index == 0:
            axes.legend(fontsize=8)
    for axes in panels[len(result["promises"]) :]:
        axes.set_visible(False)


def _read(key: str, part: str | int, condition: Result) -> float:
    """One entry of a condition's list or object."""
    value: float = condition[key][part]
    return value


def _draw_curves(axes: Axes, result: Result, read: Callable[[Result], float], label: str) -> None:
    """A curve for each corruption over severity; `read` gives its height from a condition."""
    for (name, conditions), colour in zip(by_corruption(result).items(), _COLOURS, strict=False):
        severities = [condition["severity"] for condition in conditions]
        axes.plot(severities, [read(condition) for condition in conditions], "o-", ms=3.5, lw=1.4, color=colour, label=name)
    axes.set(xlabel=f"{_AXIS} (0: clean)", ylabel=label)


def write_report(result: Result) -> str:
    """Everything in Markdown."""
    control = result["control"]
    return f"""\
# When the world shifts

{result["images"]:,} test images, under the bundle's default control (policy `{control["policy"]}`, λ = {control["lambda_"]:g},
τ = {control["threshold"]:g}) and on the plain full network, whose cost is 1. *Losses*: the share of frames on which the full
network is right and the routed answer is wrong. Drift scores are those that a server would show with these frames in its window.

{_table(result)}

![accuracy](accuracy.png)

![cost](cost.png)

![exits](exits.png)

![drift scores](drift.png)

{_promises(result)}"""


def _name(condition: Result) -> str:
    return "clean" if condition["corruption"] is None else f"{condition['corruption']} {condition['severity']}"


def _table(result: Result) -> str:
    exits = len(result["conditions"][0]["exit_fractions"])
    lines = [
        f"| images | full network | accuracy | losses | mean cost | exits 1…{exits} | drift: exit | drift: confidence |",
        "| --- " * 8 + "|",
    ]
    for condition in result["conditions"]:
        shares = " / ".join(f"{100 * fraction:.1f}" for fraction in condition["exit_fractions"])
        lines.append(
            f"| {_name(condition)} | {condition['full_accuracy']:.4f} | {condition['accuracy']:.4f} | {condition['losses']:.4f} "
            f"| {condition['mean_cost']:.4f} | {shares} | {condition['drift']['exit']:.3f} "
            f"| {condition['drift']['confidence']:.3f} |"
        )
    return "\n".join(lines)


def _promises(result: Result) -> str:
    """Promised and realised; bold where it is more than promised."""
    promises = result["promises"]
    if not promises:
        return "The bundle's frontier can promise none of the accuracy drops and mean costs that are tried here.\n"
    heads = [f"{p['field']} {p['value']:g} (λ = {p['lambda_']:g})" for p in promises]
    lines = [f"| images | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    for condition in result["conditions"]:
        cells = [
            f"**{found:.4f}**" if found > promise["value"] else f"{found:.4f}"
            for promise, found in zip(promises, condition["realised"], strict=True)
        ]
        lines.append(f"| {_name(condition)} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    return f"""\
## What was promised and what came of it

Each column is an outcome that callers can ask for in place of λ, with the λ that the bundle has for it (drops at confidence
{result["confidence"]:g}); its cells are the losses, or the mean cost, at that λ. Bold: more than promised.

{table}

![promises](promises.png)
"""
