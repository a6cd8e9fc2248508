"""The options that several commands share, and what turns them into controls."""

from __future__ import annotations

from typing import Annotated

import typer

from offramp_client.cli.completion import complete_model, complete_version
from offramp_client.types import Control, Policy

Address = Annotated[  # eager: a model's name is completed by asking this server, wherever on the line it stands
    str, typer.Option(envvar="OFFRAMP_ADDRESS", metavar="HOST:PORT", help="The server.", is_eager=True)
]
DEFAULT_ADDRESS = "localhost:50051"
ModelName = Annotated[
    str,
    typer.Option("--model", help="Name of the model; the server's default where not given.", autocompletion=complete_model),
]
Version = Annotated[
    str,
    typer.Option("--version", help="Version of the model; the newest loaded where not given.", autocompletion=complete_version),
]
Lambda = Annotated[float | None, typer.Option("--lambda", help="Price of compute, 0 or more: larger leaves earlier.")]
Threshold = Annotated[float | None, typer.Option("--threshold", help="Score at which a frame leaves, in (0, 1].")]
PolicyName = Annotated[Policy | None, typer.Option("--policy", help="How exits are chosen.")]
MinExit = Annotated[int | None, typer.Option("--min-exit", help="First exit at which a frame may leave, from 1.")]
MaxExit = Annotated[int | None, typer.Option("--max-exit", help="Last exit that a frame may reach.")]
MaxCost = Annotated[float | None, typer.Option("--max-cost", help="Largest cost of a frame, over the full network's.")]
MaxMeanCost = Annotated[
    float | None, typer.Option("--max-mean-cost", help="In place of --lambda: largest mean cost, over the full network's.")
]
MaxAccuracyDrop = Annotated[
    float | None, typer.Option("--max-accuracy-drop", help="In place of --lambda: accuracy to lose at most, such as 0.01.")
]
Confidence = Annotated[
    float | None, typer.Option("--confidence", help="Probability that --max-accuracy-drop holds; 0.95 where not given.")
]
MaxLatency = Annotated[
    int | None, typer.Option("--max-latency-ms", min=1, help="Answer a frame within so many milliseconds, or fail it.")
]
AllowEarly = Annotated[
    bool | None,
    typer.Option("--allow-early-answer", help="Take the answer of the exit reached where going on would be too late."),
]
AllowDegrade = Annotated[
    bool | None, typer.Option("--allow-degrade", help="Run at a larger lambda under overload rather than be refused.")
]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="Class probabilities in each result.")]
Window = Annotated[int, typer.Option("--window", min=1, help="Frames in flight at most.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def read_control(
    threshold: Threshold = None,
    policy: PolicyName = None,
    min_exit: MinExit = None,
    max_exit: MaxExit = None,
    max_cost: MaxCost = None,
    max_mean_cost: MaxMeanCost = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    confidence: Confidence = None,
    max_latency_ms: MaxLatency = None,
    allow_early_answer: AllowEarly = None,
    allow_degrade: AllowDegrade = None,
) -> Control:
    """Return what the options say; λ is apart, since a command may take several."""
    outcome = (max_mean_cost, max_accuracy_drop, confidence)
    pressure = (max_latency_ms, allow_early_answer, allow_degrade)
    return Control(policy, None, threshold, (), min_exit, max_exit, max_cost, *outcome, *pressure)


def numbers(text: str, option: str) -> list[float]:
    """Read numbers separated by commas.

    Raises:
        typer.BadParameter: there is something else in between.
    """
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 0,0.5,2", param_hint=option) from None
