"""`offramp-train`: the offline job on the command line, whole (`run`) or step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from offramp_training.ablation import ablate, load_variants
from offramp_training.config import PRESETS, JobError, load_config
from offramp_training.run_directory import RunDirectory
from offramp_training.steps import NAMES, run_steps

app = typer.Typer(
    help="Train an early-exit network: backbone, cached features, heads, routers, evaluation, report, bundle.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[str, typer.Option("--config", help=f"A YAML file or a preset: {', '.join(PRESETS)}.")]
RunDirOption = Annotated[Path, typer.Option("--run-dir", help="Where each step keeps its results and finds the others'.")]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override one field, such as publish.store=/tmp/store; repeatable."),
]

HELP = {
    "run": "Run every step in order; what is done is skipped, what was cut off is resumed.",
    "backbone": "Train the plain network, which stays frozen from then on.",
    "cache": "Write the pooled features of every exit to disk.",
    "heads": "Train and calibrate each exit's classifier on cached features.",
    "routers": "Fit the routers: forecasts for every lambda, or by expectation-maximisation one for each lambda of a grid.",
    "arms": "Train the systems that the published one is compared with.",
    "evaluate": "Choose operating points on held-out images and measure every policy on the test split.",
    "report": "Draw the figures and write the table.",
    "publish": "Write the bundle that a server loads.",
}


def _command(names: tuple[str, ...]) -> Callable[[str, Path, list[str]], None]:
    def command(config: ConfigOption, run_dir: RunDirOption, overrides: SetOption = []) -> None:  # noqa: B006 - typer's way
        try:
            run_steps(load_config(config, overrides), RunDirectory(run_dir), names)
        except JobError as error:
            typer.echo(f"offramp-train: {error}", err=True)
            raise typer.Exit(2) from error

    return command


for _name, _help in HELP.items():
    app.command(_name, help=_help)(_command(NAMES if _name == "run" else (_name,)))


@app.command("ablate", help="Train variants of the heads on a run's cache and write one table; the run itself stays as it is.")
def _ablate(
    config: ConfigOption,
    run_dir: RunDirOption,
    overrides: SetOption = [],  # noqa: B006 - typer's way
    variants: Annotated[Path | None, typer.Option(help="A YAML file of named overrides; 22 variants where not given.")] = None,
) -> None:
    try:
        ablate(load_config(config, overrides), RunDirectory(run_dir), load_variants(variants), run_dir / "ablation")
    except JobError as error:
        typer.echo(f"offramp-train: {error}", err=True)
        raise typer.Exit(2) from error


def main() -> None:
    """Entry point of the command `offramp-train`."""
    app()


if __name__ == "__main__":
    main()
