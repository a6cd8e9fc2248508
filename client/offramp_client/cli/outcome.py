"""How a command ends: its result, or one line on stderr and a non-zero exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer
from rich.console import Console

from offramp_client.errors import OfframpClientError

Outcome = TypeVar("Outcome")

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""


def run(work: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Run a command's work to its end.

    Raises:
        typer.Exit: with code 1 after an error of ours, which is printed; with 130 after Ctrl-C.
    """
    try:
        return asyncio.run(work)
    except OfframpClientError as error:
        fail(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def fail(message: str) -> None:
    """Print an error as one line on stderr."""
    typer.echo("offramp: " + " ".join(message.split()), err=True)


def console() -> Console:
    """Return a console on stdout; made late, so that it sees the stdout of the command that runs."""
    return Console()
