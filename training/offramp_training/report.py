"""Step 7: the paper's figures and its Table 1, ours beside theirs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from offramp_training.beside import Reference, beside_markdown, load_reference
from offramp_training.config import JobConfig
from offramp_training.policies import ROUTER_NAMES
from offramp_training.recoding import recoded_markdown
from offramp_training.run_directory import RunDirectory, read_json, say
from offramp_training.utilities import LAMBDA_UNITS

STEP = "report"

# Okabe and Ito's colours, told apart with any colour vision
COLOURS = {
    "router": "#0072B2",
    "entropy": "#D55E00",
    "confidence": "#009E73",
    "exit": "#666666",
    "oracle": "#CC79A7",
    "full": "#000000",
    "reference": "#E69F00",
}
DEPTHS = ("#CFE3F1", "#8FBCDC", "#4189BF", "#08447C", "#05294B")
HEURISTICS = {"entropy": "BranchyNet (entropy)", "confidence": "Confidence"}
STYLE: Any = {
    "svg.hashsalt": "offramp",  # the same picture gives the same bytes
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
}

PAPER_TABLE = {
    "Full network": (0.9497, 1.0),
    "Exit 1 only": (0.4359, 0.25),
    "Exit 2 only": (0.6635, 0.5),
    "Exit 3 only": (0.8984, 0.75),
    "Exit 4 only": (0.9497, 1.0),
    "Random routing": (0.7501, 0.6384),
    "BranchyNet (entropy)": (0.8756, 0.6452),
    "EM routing (best)": (0.8984, 0.75),
    "Oracle routing": (0.9691, 0.4855),
}
"""Table 1 of the paper: accuracy and nominal cost on the original CIFAR-10."""


def report(job: JobConfig, run: RunDirectory) -> None:
    """Write pareto, exits_over_lambda and baselines as PNG and SVG, and report.md."""
    started = time.time()
    run.result("evaluate")
    metrics = read_json(run.root / "evaluate" / "metrics.json")
    folder, reference = run.folder(STEP), load_reference(job)
    with saved_figure(folder / "pareto", 7.2, 4.6) as figure:
        draw_pareto(figure.subplots(), metrics, reference)
    with saved_figure(folder / "exits_over_lambda", 7.2, 4.0) as figure:
        draw_exits_over_lambda(figure.subplots(), metrics, lambda_unit(job))
    with saved_figure(folder / "baselines", 8.2, 4.2) as figure:
        draw_baselines(figure, metrics)
    (folder / "report.md").write_text(markdown(job, metrics, reference))
    run.finish(STEP, job, started)
    say(STEP, f"figures and report.md in {folder}")


@contextmanager
def saved_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of that many inches, saved as PNG and SVG without a date."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path.with_suffix(".png"), dpi=120, metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def draw_pareto(axes: Axes, metrics: dict[str, Any], reference: Reference | None = None) -> None:
    """Accuracy over cost on the test split: every policy's sweep, fixed exits and their mixtures, the oracle."""
    if reference is not None:
        points = sorted((p["test"]["mean_cost"], p["test"]["accuracy"]) for p in reference.metrics["sweeps"]["router"])
        axes.plot(*zip(*points, strict=True), lw=1.4, color=COLOURS["reference"], label=f"routers of {reference.name}", zorder=3)
    hull = metrics["fixed_mixture_hull"]["test"]
    axes.plot(*zip(*hull, strict=True), "--", color=COLOURS["exit"], lw=1.2, label="mixtures of fixed exits", zorder=2)
    router = ROUTER_NAMES[metrics["router_kind"]]
    names = HEURISTICS | {"router": router}
    for policy, marker in (("entropy", "s"), ("confidence", "^"), ("router", "o")):
        points = sorted((p["test"]["mean_cost"], p["test"]["accuracy"]) for p in metrics["sweeps"][policy])
        axes.plot(*zip(*points, strict=True), marker=marker, ms=3.5, lw=1.4, color=COLOURS[policy], label=names[policy], zorder=3)
    if theirs := metrics.get("paper"):
        exits = [(row["test"]["mean_cost"], row["test"]["accuracy"]) for row in theirs["table"] if row["kind"] == "exit"]
        axes.plot(*zip(*exits, strict=True), "x", ms=7, color=COLOURS["exit"], label="exits with the paper's heads", zorder=4)
    for row in metrics["table"]:
        point = row["test"]["mean_cost"], row["test"]["accuracy"]
        if row["kind"] == "exit":
            axes.plot(*point, "D", ms=6, color=COLOURS["exit"], zorder=4)
            offset = (6, -12) if point[0] < 0.9 else (-12, -14)
            axes.annotate(row["name"].removesuffix(" only"), point, xytext=offset, textcoords="offset points", fontsize=9)
        if row["kind"] == "router":
            axes.plot(*point, "o", ms=11, mfc="none", mec=COLOURS["router"], mew=1.6, label=f"{router}, chosen λ", zorder=5)
        if row["kind"] == "oracle":
            axes.plot(*point, "*", ms=13, color=COLOURS["oracle"], label="oracle", zorder=4)
        if row["kind"] == "full":
            axes.axhline(point[1], color=COLOURS["full"], lw=0.8, ls=":", label="full network", zorder=1)
    axes.set(xlabel="mean cost (multiply-accumulates over the full network's)", ylabel="accuracy on the test split")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="lower right", fontsize=9)


def lambda_unit(job: JobConfig) -> str:
    """What λ = 1 charges for one full network's compute."""
    return "nats" if job.network.router_kind == "bank" else LAMBDA_UNITS[job.forecast.utility]


def draw_exits_over_lambda(axes: Axes, metrics: dict[str, Any], unit: str) -> None:
    """Where test frames leave for every λ of the grid, with the accuracy that results."""
    grid = metrics["lambdas"]
    points = {p["control"]["lambda_"]: p["test"] for p in metrics["sweeps"]["router"]}
    chosen = [points[value] for value in grid]
    bottom = [0.0] * len(grid)
    for index in range(len(metrics["cost_ratios"])):
        heights = [point["exit_fractions"][index] for point in chosen]
        axes.bar(range(len(grid)), heights, 0.82, bottom=bottom, color=DEPTHS[index % len(DEPTHS)], label=f"exit {index + 1}")
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    accuracies = [point["accuracy"] for point in chosen]
    axes.plot(range(len(grid)), accuracies, "o-", ms=4, lw=1.4, color=COLOURS["entropy"], label="accuracy")
    axes.set_xticks(range(len(grid)), [f"{value:g}" for value in grid])
    axes.set(
        xlabel=f"λ ({unit} per full network's compute)",
        ylabel="share of test frames, and accuracy",
        ylim=(0, 1),
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="x", visible=False)
    axes.figure.legend(loc="outside upper center", ncols=len(metrics["cost_ratios"]) + 1, fontsize=9)


def draw_baselines(figure: Figure, metrics: dict[str, Any]) -> None:
    """Accuracy and cost of every row of the table, side by side."""
    rows = metrics["table"][::-1]
    for axes, key, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("accuracy", "mean_cost"),
        ("accuracy on the test split", "mean cost (MACs)"),
        strict=True,
    ):
        values = [row["test"][key] for row in rows]
        colours = [COLOURS.get(row["kind"], "#AAAAAA") for row in rows]
        bars = axes.barh([row["name"] for row in rows], values, 0.72, color=colours)
        axes.bar_label(bars, [f"{100 * value:.1f}%" for value in values], padding=3, fontsize=8.5)
        axes.set(xlabel=title, xlim=(0, max(1.15, max(values) * 1.15)))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.grid(axis="y", visible=False)


def table(job: JobConfig, rows: list[dict[str, Any]]) -> str:
    """Table 1 in Markdown; the paper's figures beside ours where the set-up is comparable."""
    comparable = job.network.exits == 4 and job.network.classes == 10
    head = "| method | control | accuracy | cost | nominal cost | accuracy on select |" + (
        " paper: accuracy | paper: cost |" if comparable else ""
    )
    lines = [head, "| --- " * (head.count("|") - 1) + "|"]
    for row in rows:
        test, control = row["test"], row["control"]
        setting = ""
        if control and control["policy"] == "router":
            setting = f"λ = {control['lambda_']:g}, τ = {control['threshold']:g}"
        elif control and control["policy"] != "fixed":
            setting = f"τ = {control['threshold']:g}"
        line = (
            f"| {row['name']} | {setting} | {test['accuracy']:.4f} | {test['mean_cost']:.4f} | {test['nominal_cost']:.4f} "
            f"| {row['select']['accuracy']:.4f} |"
        )
        if comparable:
            theirs = PAPER_TABLE.get(row["name"])
            line += f" {theirs[0]:.4f} | {theirs[1]:.4f} |" if theirs else " | |"
        lines.append(line)
    return "\n".join(lines)


def cost_table(proof: dict[str, Any]) -> str:
    """Every method at every cost: test accuracy, with the realised test cost in brackets; then ours less the others'."""
    costs = [f"{cost:g}" for cost in proof["costs"]]
    header = f"| method | {' | '.join(costs)} |\n| --- {'| --- ' * len(costs)}|"
    lines = [header]
    for name, row in proof["methods"].items():
        cells = [f"{cell['test_accuracy']:.4f} ({cell['test_cost']:.3f})" if cell else "–" for cell in row]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"{proof['own']} less each other method, in points, with the 95 % interval of the paired bootstrap:",
        "",
        header,
    ]
    for name, row in proof["own_minus"].items():
        cells = [
            f"{100 * cell['mean']:+.2f} ({100 * cell['low']:+.2f} … {100 * cell['high']:+.2f})" if cell else "–" for cell in row
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def proof_markdown(metrics: dict[str, Any]) -> str:
    """The comparison at given costs, where the full network's accuracy is kept, and the paper's own system."""
    proof = metrics["proof"]
    seeds = f"{proof['replicas']} seeds of heads and routers" if proof["replicas"] > 1 else "one seed of heads and routers"
    kept = proof["kept"]
    if kept:
        least = ", ".join(f"{cost:.3f}" for cost in kept["test_costs"])
        gap = kept["minus_full"]
        sentence = (
            f"At the largest λ that keeps the full network's accuracy on select, {proof['own']} costs {least} on test (one "
            f"figure a seed), and its accuracy differs from the full network's {kept['full_test_accuracy']:.4f} by "
            f"{100 * gap['mean']:+.2f} points ({100 * gap['low']:+.2f} … {100 * gap['high']:+.2f})."
        )
    else:
        sentence = f"{proof['own']} does not keep the full network's accuracy on select at any λ."
    return f"""\
## At the same mean cost

Test accuracy (realised mean cost on test), mean over {seeds}. Everything was fitted and chosen on held-out images, each
setting for the mean cost at the head of its column; "–": not to be had at that cost.

{cost_table(proof)}

{sentence}"""


def markdown(job: JobConfig, metrics: dict[str, Any], reference: Reference | None = None) -> str:
    """The whole report."""
    return f"""# Results of the run

{job.data.note}

Accuracy and cost are of the test split unless a column says otherwise. Cost is the mean share of the plain network's
multiply-accumulates, heads and routers on the way counted; nominal cost is the paper's k/K. Every λ and threshold was
chosen on the select part of the held-out images ({metrics["rule"]}). The oracle leaves at the cheapest exit that is right, and
at exit 1 where none is. Random routing is the expectation.

{table(job, metrics["table"])}

{metrics["routing_verdict"]}

{exit_table(metrics["exits"], metrics["cost_ratios"])}

{recoded_markdown(metrics)}{proof_markdown(metrics)}

{paper_markdown(job, metrics)}{beside_markdown(metrics, reference)}![accuracy over cost](pareto.png)

![exit distribution over λ](exits_over_lambda.png)

![all baselines](baselines.png)
"""


def exit_table(exits: list[dict[str, Any]], costs: Sequence[float]) -> str:
    """Each exit alone: cost, accuracy, and how far its confidence can be trusted."""
    lines = ["| exit | cost | accuracy on select | on test | nll on test | ece on test | auroc on test |", "| --- " * 7 + "|"]
    for exit, cost in zip(exits, costs, strict=True):
        test = exit["test"]
        auroc = "–" if test["auroc"] is None else f"{test['auroc']:.3f}"
        lines.append(
            f"| {exit['exit']} | {cost:.4f} | {exit['select']['accuracy']:.4f} | {test['accuracy']:.4f} | {test['nll']:.3f} "
            f"| {test['ece']:.3f} | {auroc} |"
        )
    return "\n".join(lines)


def paper_markdown(job: JobConfig, metrics: dict[str, Any]) -> str:
    """The paper's heads and routers on the same backbone; empty where they were not trained beside ours."""
    theirs = metrics.get("paper")
    if not theirs:
        return ""
    return f"""\
## The paper's own system on this backbone

Heads on the global average alone, and a bank of routers fitted by EM.

{table(job, theirs["table"])}

{theirs["routing_verdict"]}

"""
