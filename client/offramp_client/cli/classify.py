"""The command `offramp classify`: single images."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from offramp_client.cli import options
from offramp_client.cli.access import Access, read_access
from offramp_client.cli.outcome import console, fail, run
from offramp_client.cli.sharing import shares
from offramp_client.errors import InvalidRequestError, SourceError
from offramp_client.sources import read_image
from offramp_client.types import Classification, Control
from offramp_client.views import control_text


@shares(control=options.read_control, access=read_access)
def classify(
    access: Access,
    control: Control,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Images.", show_default=False)],
    address: options.Address = options.DEFAULT_ADDRESS,
    model: options.ModelName = "",
    version: options.Version = "",
    lambda_: options.Lambda = None,
    top_k: options.TopK = 1,
    as_json: options.AsJson = False,
) -> None:
    """Classify image files one by one. A file that cannot be classified is named on stderr, and the exit code is then 1."""
    control = replace(control, lambda_=lambda_)
    answers: list[tuple[Path, Classification]] = []

    async def work() -> None:
        async with access.client(address) as client:
            for file in files:
                try:
                    shown = await client.classify(read_image(file), model=model, version=version, control=control, top_k=top_k)
                except (SourceError, InvalidRequestError) as error:
                    fail(f"{file}: {error}")
                else:
                    answers.append((file, shown))

    run(work())
    if as_json:
        for file, shown in answers:
            typer.echo(json.dumps({"file": str(file)} | asdict(shown)))
    elif answers:
        console().print(_table(answers))
    if len(answers) < len(files):
        raise typer.Exit(1)


def _table(answers: list[tuple[Path, Classification]]) -> Table:
    table = Table("file", "label", "exit", "left by", "compute", "control", box=box.SIMPLE_HEAD)
    for file, shown in answers:
        labels = "\n".join(f"{entry.name} {entry.probability:.2f}" for entry in shown.top)
        control = control_text(shown.control)
        table.add_row(str(file), labels, str(shown.exit), str(shown.reason), f"{shown.cost_ratio:.2f}", control)
    return table
