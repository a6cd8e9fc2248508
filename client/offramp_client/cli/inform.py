"""The commands that ask a server about itself: models, points, health."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.table import Table

from offramp_client.cli.options import DEFAULT_ADDRESS, Address, ModelName, Version
from offramp_client.cli.outcome import console, run
from offramp_client.client import Client
from offramp_client.types import Health, Model, ModelSummary
from offramp_client.views import control_text


def models(address: Address = DEFAULT_ADDRESS) -> None:
    """List the models that the server has loaded."""

    async def work() -> list[ModelSummary]:
        async with Client(address) as client:
            return await client.models()

    table = Table("model", "version", "default", "exits", "classes", "frames classified", box=box.SIMPLE_HEAD)
    for summary in run(work()):
        default = "yes" if summary.is_default else ""
        counts = (summary.exits, summary.classes, summary.frames_classified)
        table.add_row(summary.name, summary.version, default, *(str(count) for count in counts))
    console().print(table)


def points(address: Address = DEFAULT_ADDRESS, model: ModelName = "", version: Version = "") -> None:
    """Show what each measured choice of policy, λ and τ gives: the model's operating points, cheapest first."""

    async def work() -> Model:
        async with Client(address) as client:
            return await client.model(model, version)

    described = run(work())
    table = Table("choice", box=box.SIMPLE_HEAD, title=f"{described.name} {described.version}", title_justify="left")
    for name in ("accuracy", "compute", *(f"exit {exit.exit}" for exit in described.exits)):
        table.add_column(name, justify="right")
    for point in described.operating_points:
        shares = (f"{share:.0%}" for share in point.exit_fractions)
        table.add_row(control_text(point.control), f"{point.accuracy:.3f}", f"{point.mean_cost:.3f}", *shares)
    out = console()
    out.print(table)
    out.print(
        f"Compute is the mean over the full network's {described.full_macs / 1e6:.1f} MMACs, "
        f"whose accuracy is {described.full_accuracy:.3f}. {described.data_note}",
        highlight=False,
    )


def health(
    address: Address = DEFAULT_ADDRESS,
    service: Annotated[str, typer.Option(help="A service, such as offramp.v1.ClassificationService.")] = "",
    wait: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Wait so long for the server to serve.")] = 0,
) -> None:
    """Say whether the server answers requests; the exit code is 0 where it does, and 1 where not."""

    async def work() -> Health:
        async with Client(address) as client:
            if wait:
                await client.wait_until_serving(wait)
            return await client.health(service)

    found = run(work())
    typer.echo(found.status)
    raise typer.Exit(0 if found.serving else 1)
