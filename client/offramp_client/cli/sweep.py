"""The command `offramp sweep`: what each λ, or outcome in its place, and each τ gives on labelled images."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from offramp_client import sweep as measuring
from offramp_client.cli import options
from offramp_client.cli.access import Access, read_access
from offramp_client.cli.outcome import console, run
from offramp_client.cli.sharing import shares
from offramp_client.plot import plotter
from offramp_client.sources import labelled_images
from offramp_client.sweep import SweepPoint
from offramp_client.types import Control, ControlFields
from offramp_client.views import control_text


@shares(access=read_access)
def sweep(
    access: Access,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Labelled images: <class>/<image>.", show_default=False)],
    address: options.Address = options.DEFAULT_ADDRESS,
    model: options.ModelName = "",
    version: options.Version = "",
    lambdas: Annotated[str, typer.Option("--lambda", metavar="L,L,...", help="Prices of compute to try.")] = "",
    thresholds: Annotated[str, typer.Option("--threshold", metavar="T,T,...", help="Thresholds to try.")] = "",
    max_mean_costs: Annotated[
        str, typer.Option("--max-mean-cost", metavar="C,C,...", help="Mean costs to keep within, in place of a lambda.")
    ] = "",
    max_accuracy_drops: Annotated[
        str, typer.Option("--max-accuracy-drop", metavar="D,D,...", help="Losses of accuracy to allow, in place of a lambda.")
    ] = "",
    confidence: options.Confidence = None,
    policy: options.PolicyName = None,
    min_exit: options.MinExit = None,
    max_exit: options.MaxExit = None,
    max_cost: options.MaxCost = None,
    window: options.Window = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Use so many images, spread evenly over the folder.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it too: a .png, .svg or .pdf file.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure accuracy, compute, latency and exits for each λ, or outcome, with each τ, on a folder of labelled images."""
    base = Control(policy, min_exit=min_exit, max_exit=max_exit, max_cost=max_cost)
    prices = _prices(lambdas, max_mean_costs, max_accuracy_drops, confidence)
    choices = product(prices, _choices(thresholds, "--threshold"))
    controls = [base.with_fields(**price).with_fields(threshold=threshold) for price, threshold in choices]

    async def work() -> list[SweepPoint]:
        draw = plotter() if plot is not None else None
        images = labelled_images(folder)
        if limit is not None and limit < len(images):
            images = [images[i * len(images) // limit] for i in range(limit)]
        async with access.client(address) as client:
            described = await client.model(model, version)
            with _progress() as progress:
                task = progress.add_task("frames", total=len(images) * len(controls))
                found = measuring.sweep(client, described, images, controls, window, lambda: progress.advance(task))
                points = [point async for point in found]
        if draw is not None and plot is not None:
            draw(points, plot)
        return points

    points = run(work())
    if as_json:
        typer.echo(json.dumps([asdict(point) for point in points], indent=2))
    else:
        console().print(_table(points))


def _progress() -> Progress:
    # On stderr, so that stdout holds the table alone.
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    err = Console(stderr=True)
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def _table(points: list[SweepPoint]) -> Table:
    exits = len(points[0].exit_fractions)
    failed = sum(point.failed for point in points)
    note = f"{points[0].frames} images a row; " + (f"{failed} failed; " if failed else "")
    caption = note + "latency as this client saw it, in ms"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    table.add_column("choice", no_wrap=True)  # on a narrow terminal figures may wrap, but what they are of must stay
    for name in ("accuracy", "compute", "p50", "p95", *(f"exit {k}" for k in range(1, exits + 1))):
        table.add_column(name, justify="right")
    for point in points:
        latencies = (f"{point.latency_p50_ms:.1f}", f"{point.latency_p95_ms:.1f}")
        shares = (f"{share:.0%}" for share in point.exit_fractions)
        table.add_row(control_text(point.control), f"{point.accuracy:.3f}", f"{point.mean_cost:.3f}", *latencies, *shares)
    return table


def _prices(lambdas: str, max_mean_costs: str, max_accuracy_drops: str, confidence: float | None) -> list[ControlFields]:
    """What to try as λ or in its place, each as fields of a control; no fields, once, where nothing is given."""
    drops = options.numbers(max_accuracy_drops, "--max-accuracy-drop")
    if confidence is not None and not drops:
        raise typer.BadParameter("belongs to --max-accuracy-drop, which is not given", param_hint="--confidence")
    prices = [
        *(ControlFields(lambda_=value) for value in options.numbers(lambdas, "--lambda")),
        *(ControlFields(max_mean_cost=value) for value in options.numbers(max_mean_costs, "--max-mean-cost")),
        *(ControlFields(max_accuracy_drop=value, confidence=confidence) for value in drops),
    ]
    return prices or [ControlFields()]


def _choices(text: str, option: str) -> list[float | None]:
    return [*options.numbers(text, option)] or [None]
