"""The command `offramp`."""

from __future__ import annotations

import typer

from offramp_client.cli import bench, classify, inform, stream, sweep

app = typer.Typer(
    name="offramp",
    help="Classify frames with a network that lets easy ones leave early, on an Offramp server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("stream", short_help="Stream frames and watch where they leave the network.")(stream.stream)
app.command("classify", short_help="Classify image files.")(classify.classify)
app.command("models", short_help="List the models that the server has loaded.")(inform.models)
app.command("points", short_help="Show what each measured choice of λ and τ gives.")(inform.points)
app.command("sweep", short_help="Measure λ and τ on a folder of labelled images.")(sweep.sweep)
app.command("bench", short_help="Put load on a server and measure what it gives.")(bench.bench)
app.command("health", short_help="Say whether the server answers requests.")(inform.health)


def main() -> None:
    """Run the command that the process was started with."""
    app()
