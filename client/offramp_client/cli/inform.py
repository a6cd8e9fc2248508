"""The commands that ask a server about itself: models, points, health."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from offramp_client.cli.access import Access, read_access
from offramp_client.cli.options import DEFAULT_ADDRESS, Address, ModelName, Version
from offramp_client.cli.outcome import console, run
from offramp_client.cli.sharing import shares
from offramp_client.types import Frontier, FrontierPoint, Health, Model, ModelSummary
from offramp_client.views import control_text

FRONTIER_ROWS = 10
"""Rows that still read as a table; a frontier may have a hundred λ."""


@shares(access=read_access)
def models(access: Access, address: Address = DEFAULT_ADDRESS) -> None:
    """List the models that the server has loaded."""

    async def work() -> list[ModelSummary]:
        async with access.client(address) as client:
            return await client.models()

    table = Table("model", "version", "default", "exits", "classes", "frames classified", box=box.SIMPLE_HEAD)
    for summary in run(work()):
        default = "yes" if summary.is_default else ""
        counts = (summary.exits, summary.classes, summary.frames_classified)
        table.add_row(summary.name, summary.version, default, *(str(count) for count in counts))
    console().print(table)


@shares(access=read_access)
def points(
    access: Access,
    address: Address = DEFAULT_ADDRESS,
    model: ModelName = "",
    version: Version = "",
    whole: Annotated[bool, typer.Option("--frontier", help="Show every λ of the frontier.")] = False,
) -> None:
    """Show what each measured choice gives: the model's operating points, cheapest first, and its router's frontier over λ.

    From the frontier come the λ of --max-mean-cost and --max-accuracy-drop.
    """

    async def work() -> Model:
        async with access.client(address) as client:
            return await client.model(model, version)

    described = run(work())
    exits = [f"exit {exit.exit}" for exit in described.exits]
    table = _table("choice", ("accuracy", "compute", *exits), f"{described.name} {described.version}")
    for point in described.operating_points:
        shares = (f"{share:.0%}" for share in point.exit_fractions)
        table.add_row(control_text(point.control), f"{point.accuracy:.3f}", f"{point.mean_cost:.3f}", *shares)
    out = console()
    out.print(table)
    if described.frontier is not None:
        out.print(_frontier_table(described.frontier, exits, whole))
    out.print(
        f"Compute is the mean over the full network's {described.full_macs / 1e6:.1f} MMACs, "
        f"whose accuracy is {described.full_accuracy:.3f}. {described.data_note}",
        highlight=False,
    )


def _frontier_table(frontier: Frontier, exits: list[str], whole: bool) -> Table:
    shown = frontier.points if whole else thinned(frontier.points, FRONTIER_ROWS)
    table = _table("λ", ("accuracy", "compute", "lost", *exits), "the router over λ")
    for point in shown:
        shares = (f"{share:.0%}" for share in point.exit_fractions)
        lost = f"{point.losses / frontier.frames:.2%}"
        table.add_row(f"{point.lambda_:g}", f"{point.accuracy:.3f}", f"{point.mean_cost:.3f}", lost, *shares)
    rows = "" if len(shown) == len(frontier.points) else f"{len(shown)} of {len(frontier.points)} rows, all with --frontier; "
    table.caption, table.caption_justify = (
        f"{rows}lost: of {frontier.frames} frames, those that only the full network has right",
        "left",
    )
    return table


def thinned(points: Sequence[FrontierPoint], most: int) -> list[FrontierPoint]:
    """Return at most `most` points, first and last among them, in even steps of cost rather than of λ."""
    if len(points) <= most:
        return list(points)
    first, last = points[0].mean_cost, points[-1].mean_cost
    kept = {0, len(points) - 1}
    for step in range(1, most - 1):
        wanted = first + (last - first) * step / (most - 1)
        kept.add(min(range(len(points)), key=lambda index: abs(points[index].mean_cost - wanted)))
    return [points[index] for index in sorted(kept)]


def _table(first: str, others: Iterable[str], title: str) -> Table:
    table = Table(first, box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in others:
        table.add_column(name, justify="right")
    return table


@shares(access=read_access)
def health(
    access: Access,
    address: Address = DEFAULT_ADDRESS,
    service: Annotated[str, typer.Option(help="A service, such as offramp.v1.ClassificationService.")] = "",
    wait: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Wait so long for the server to serve.")] = 0,
) -> None:
    """Say whether the server answers requests; the exit code is 0 where it does, and 1 where not."""

    async def work() -> Health:
        async with access.client(address) as client:
            if wait:
                await client.wait_until_serving(wait)
            return await client.health(service)

    found = run(work())
    typer.echo(found.status)
    raise typer.Exit(0 if found.serving else 1)
