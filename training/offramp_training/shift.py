"""What becomes of accuracy, cost, exits and promises when the images are no longer like those that the network was made on.

Everything stays fixed as the bundle has it, and only the test images change: see corruptions.py and docs/shift.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from torch import Tensor

from offramp_model.outcomes import DEFAULT_CONFIDENCE, Frontier, UnreachableError, lambda_for_cost, lambda_for_drop
from offramp_training.config import JobConfig
from offramp_training.corruptions import CORRUPTIONS, SEVERITIES
from offramp_training.data import derive_seed
from offramp_training.policies import Frames, choose_exits
from offramp_training.run_directory import RunDirectory, progress_bar, say
from offramp_training.shift_report import draw_figures, write_report
from offramp_training.subject import Change, Subject, load_subject, loss_rate

STEP = "shift"
DROPS = (0.01, 0.02, 0.05)
"""Accuracy drops whose certificates are put to the test."""
BUDGETS = (0.4, 0.5, 0.6)
"""Mean costs that are held against what frames really cost."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What a caller may ask for in place of λ, and the λ that the bundle's frontier has for it."""

    field: Literal["max_accuracy_drop", "max_mean_cost"]
    value: float
    lambda_: float

    def realised(self, subject: Subject, frames: Frames) -> float:
        """The rate of losses, or the mean cost, at this λ: what the promise says is at most `value`."""
        exit_N = choose_exits(frames, subject.control.model_copy(update={"lambda_": self.lambda_}))
        return loss_rate(frames, exit_N) if self.field == "max_accuracy_drop" else frames.outcome(exit_N).mean_cost


def shift(job: JobConfig, run: RunDirectory, images: int | None = None) -> None:
    """Write <run>/shift/result.json, shift.md and the figures. Raises JobError where the run has not been evaluated."""
    started = time.time()
    subject = load_subject(job, run, images)
    result = measure(subject, job.seed)
    folder = run.folder(STEP)
    draw_figures(folder, result)
    (folder / "shift.md").write_text(write_report(result))
    run.finish(STEP, job, started, **result)
    say(STEP, f"figures and shift.md in {folder}")


def measure(subject: Subject, seed: int) -> dict[str, Any]:
    """The default control, the full network and every promise on clean images, and under each corruption at each severity."""
    promises = list_promises(subject.frontier)
    with progress_bar("shifted images", len(subject.data) * (1 + len(CORRUPTIONS) * len(SEVERITIES))) as advance:
        conditions = [_condition(subject, promises, None, 0, lambda images, _: images, advance)]
        for name, severity in product(CORRUPTIONS, SEVERITIES):
            change = _corruption(name, severity, seed)
            conditions.append(_condition(subject, promises, name, severity, change, advance))
    return {
        "images": len(subject.data),
        "control": subject.control.model_dump(mode="json"),
        "confidence": DEFAULT_CONFIDENCE,
        "promises": [{"field": p.field, "value": p.value, "lambda_": p.lambda_} for p in promises],
        "conditions": conditions,
    }


def list_promises(frontier: Frontier) -> list[Promise]:
    """Those of DROPS and BUDGETS that the frontier can promise."""
    promises = []
    for drop in DROPS:
        try:
            promises.append(Promise("max_accuracy_drop", drop, lambda_for_drop(frontier, drop)))
        except UnreachableError:
            continue
    for budget in BUDGETS:
        try:
            promises.append(Promise("max_mean_cost", budget, lambda_for_cost(frontier, budget)))
        except UnreachableError:
            continue
    return promises


def _corruption(name: str, severity: int, seed: int) -> Change:
    # the severity is no part of the seed: a severer image is the same image with more of the same
    def change(images_NCHW: Tensor, first: int) -> Tensor:
        return CORRUPTIONS[name](images_NCHW, severity, derive_seed(seed, STEP, name, first))

    return change


def _condition(
    subject: Subject, promises: list[Promise], name: str | None, severity: int, change: Change, advance: Callable[[int], None]
) -> dict[str, Any]:
    frames = subject.run(change, advance)
    return {
        "corruption": name,
        "severity": severity,
        **subject.measure(frames, subject.control),
        "realised": [round(promise.realised(subject, frames), 5) for promise in promises],
    }
