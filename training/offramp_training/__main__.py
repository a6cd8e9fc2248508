"""`offramp-train`: the offline job on the command line, whole (`run`) or step by step.

What takes torch is imported by the commands that need it, so that --help and a shell's completion answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from offramp_training.presets import PRESETS

app = typer.Typer(
    help="Train an early-exit network: backbone, cached features, heads, routers, evaluation, report, bundle.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[
    str,
    typer.Option("--config", help=f"A YAML file or a preset: {', '.join(PRESETS)}.", autocompletion=lambda: list(PRESETS)),
]
RunDirOption = Annotated[Path, typer.Option("--run-dir", help="Where each step keeps its results and finds the others'.")]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override one field, such as publish.store=/tmp/store; repeatable."),
]
ImagesOption = Annotated[int | None, typer.Option(min=1, help="So many of the test images, drawn at random, or all of them.")]

HELP = {
    "run": "Run every step in order; what is done is skipped, what was cut off is resumed.",
    "backbone": "Train the plain network, alone or together with its exits; it stays frozen from then on.",
    "cache": "Write the pooled features of every exit to disk.",
    "heads": "Train and calibrate each exit's classifier on cached features.",
    "routers": "Fit the routers: forecasts for every lambda, or by expectation-maximisation one for each lambda of a grid.",
    "arms": "Train the systems that the published one is compared with.",
    "evaluate": "Choose operating points on held-out images and measure every policy on the test split.",
    "report": "Draw the figures and write the table.",
    "export": "Convert the network to OpenVINO graphs, int8 and float, stage by stage.",
    "publish": "Write the bundle that a server loads.",
}


@contextmanager
def _one_line_errors() -> Iterator[None]:
    from offramp_training.config import JobError

    try:
        yield
    except JobError as error:
        typer.echo(f"offramp-train: {error}", err=True)
        raise typer.Exit(2) from error


def _command(name: str) -> Callable[[str, Path, list[str]], None]:
    def command(config: ConfigOption, run_dir: RunDirOption, overrides: SetOption = []) -> None:  # noqa: B006 - typer's way
        from offramp_training.config import load_config
        from offramp_training.run_directory import RunDirectory
        from offramp_training.steps import NAMES, run_steps

        names = NAMES if name == "run" else (name,)
        with _one_line_errors():
            run_steps(load_config(config, overrides), RunDirectory(run_dir), names)

    return command


for _name, _help in HELP.items():
    app.command(_name, help=_help)(_command(_name))


@app.command("ablate", help="Train variants of the heads on a run's cache and write one table; the run itself stays as it is.")
def _ablate(
    config: ConfigOption,
    run_dir: RunDirOption,
    overrides: SetOption = [],  # noqa: B006 - typer's way
    variants: Annotated[
        Path | None, typer.Option(help="A YAML file of named overrides; those beside the presets where not given.")
    ] = None,
) -> None:
    from offramp_training.ablation import ablate, load_variants
    from offramp_training.config import load_config
    from offramp_training.run_directory import RunDirectory

    with _one_line_errors():
        ablate(load_config(config, overrides), RunDirectory(run_dir), load_variants(variants), run_dir / "ablation")


@app.command("shift", help="Measure a finished run on noisy, blurred, foggy, wrongly exposed and occluded test images.")
def _shift(
    config: ConfigOption,
    run_dir: RunDirOption,
    overrides: SetOption = [],  # noqa: B006 - typer's way
    images: ImagesOption = None,
) -> None:
    from offramp_training.config import load_config
    from offramp_training.run_directory import RunDirectory
    from offramp_training.shift import shift

    with _one_line_errors():
        shift(load_config(config, overrides), RunDirectory(run_dir), images)


@app.command("attack", help="Attack a finished run's routers with images that are hard to let go, and measure what bounds help.")
def _attack(
    config: ConfigOption,
    run_dir: RunDirOption,
    overrides: SetOption = [],  # noqa: B006 - typer's way
    images: ImagesOption = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps for each image.")] = 20,
    epsilon: Annotated[int, typer.Option(min=1, max=255, help="The most that a pixel may change, in grey levels of 255.")] = 8,
    aim_lambda: Annotated[float | None, typer.Option(min=0, help="Attack the routers at this λ, not the default's.")] = None,
) -> None:
    from offramp_training.attack import attack
    from offramp_training.config import load_config
    from offramp_training.run_directory import RunDirectory

    with _one_line_errors():
        attack(load_config(config, overrides), RunDirectory(run_dir), images, steps, epsilon, aim_lambda)


def main() -> None:
    """Entry point of the command `offramp-train`."""
    app()


if __name__ == "__main__":
    main()
