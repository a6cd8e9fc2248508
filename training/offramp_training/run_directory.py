"""Where a run keeps its results: one folder a step, each with a `result.json` that marks it finished."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from offramp_training.config import JobConfig, JobError

RESULT = "result.json"
STARTED = "started.json"


class MissingStepError(JobError):
    """A step was asked for before one that it reads from has finished."""


class RunDirectory:
    """The folder of one run. Steps find each other's files here and nowhere else."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, step: str) -> Path:
        """The step's folder, made when it is not there."""
        path = self.root / step
        path.mkdir(parents=True, exist_ok=True)
        return path

    def is_done(self, step: str) -> bool:
        """Whether the step has left its result."""
        return (self.root / step / RESULT).is_file()

    def result(self, step: str) -> dict[str, Any]:
        """What a finished step reported. Raises MissingStepError when it has not finished."""
        if not self.is_done(step):
            raise MissingStepError(f"step {step!r} has not finished in {self.root}: run `offramp-train {step}` first")
        return read_json(self.root / step / RESULT)

    def start(self, step: str, job: JobConfig) -> None:
        """Note the configuration of a step that begins, so that a cut-off one is never resumed with another."""
        write_json(self.folder(step) / STARTED, {"step": step, "config": job.model_dump(mode="json")})

    def stored_config(self, step: str) -> dict[str, Any] | None:
        """The configuration that the step's files were made with; None where it has none yet."""
        for name in (RESULT, STARTED):
            path = self.root / step / name
            if path.is_file():
                config: dict[str, Any] = read_json(path)["config"]
                return config
        return None

    def finish(self, step: str, job: JobConfig, started: float, **figures: Any) -> None:
        """Write the step's result last and in one piece, so that a cut-off step never looks finished.

        `started` is the step's time.time(); seconds spent in earlier, cut-off attempts may be given as `earlier_seconds`.
        """
        duration = time.time() - started + figures.pop("earlier_seconds", 0.0)
        result = {
            "step": step,
            "seed": job.seed,
            "duration_seconds": round(duration, 1),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            "config": job.model_dump(mode="json"),
            **figures,
        }
        write_json(self.folder(step) / RESULT, result)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def write_json(path: Path, content: Any) -> None:
    """Write JSON beside the target and rename, so that readers see all or nothing."""
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    beside.replace(path)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "–/s", style="dim")


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left; yields a function that advances it. Quiet where the output is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)


def say(step: str, text: str) -> None:
    """One line about a step, on standard output, unbuffered."""
    print(f"[{step}] {text}", flush=True)
