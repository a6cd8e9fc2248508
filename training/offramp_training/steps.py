"""The steps in their order, and the check that a run directory never mixes results of different configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from offramp_training.arms import train_arms
from offramp_training.backbone import train_backbone
from offramp_training.cache import cache_features
from offramp_training.config import ConfigError, JobConfig, validate
from offramp_training.evaluate import evaluate
from offramp_training.export import export
from offramp_training.heads import train_heads
from offramp_training.publish import publish
from offramp_training.report import report
from offramp_training.routers import train_routers
from offramp_training.run_directory import RunDirectory, say


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its name, what it does, and the sections of the configuration that it is the first to read."""

    name: str
    run: Callable[[JobConfig, RunDirectory], None]
    sections: tuple[str, ...] = ()


STEPS = (
    Step("backbone", train_backbone, ("seed", "data", "network", "backbone")),
    Step("cache", cache_features, ("cache",)),
    Step("heads", train_heads, ("replica", "heads")),
    Step("routers", train_routers, ("routers", "forecast")),
    Step("arms", train_arms, ("proof",)),
    Step("evaluate", evaluate, ("evaluate",)),
    Step("report", report),
    Step("export", export, ("export",)),
    Step("publish", publish, ("publish",)),
)
NAMES = tuple(step.name for step in STEPS)

FIRST_READ_BY = {
    "network.head_kind": "heads",
    "network.head_pooling": "heads",
    "network.head_cascade": "heads",
    "network.head_hidden": "heads",
    "network.router_kind": "routers",
    "data.select_fraction": "heads",
    "network.router_hidden": "routers",
    "data.synthetic_test": "evaluate",
    "proof.costs": "evaluate",
    "proof.reference": "report",
    "proof.rule_steps": "evaluate",
    "data.note": "report",
}
"""Fields that are first read by a later step than the rest of their section."""

_HOW = {f"backbone.{field}" for field in ("accelerator", "compile", "convolution", "devices")}
NO_MATTER = _HOW | {"data.root", "publish.max_megabytes"}
"""Fields that say where the work is done or found; a result does not depend on them."""


def run_steps(job: JobConfig, run: RunDirectory, names: tuple[str, ...] = NAMES) -> None:
    """Run the named steps in order, skipping what is done.

    Raises ConfigError before anything is run where the directory holds results of another configuration.
    """
    last = max(NAMES.index(name) for name in names)
    for name in NAMES[: last + 1]:
        check_config(job, run, name)
    for step in STEPS:
        if step.name not in names:
            continue
        if run.is_done(step.name):
            say(step.name, f"already done in {run.root / step.name}")
            continue
        run.start(step.name, job)
        step.run(job, run)


def check_config(job: JobConfig, run: RunDirectory, name: str) -> None:
    """Compare the configuration that a step's files were made with, field by field, as far as the step reads it."""
    stored = run.stored_config(name)
    if stored is None:
        return
    sections = [section for step in STEPS[: NAMES.index(name) + 1] for section in step.sections]
    # only these sections, in today's terms: a field added since counts with its default, and later sections don't count
    merged = job.model_dump(mode="json") | {section: stored[section] for section in sections if section in stored}
    then = _fields_read(validate(merged, str(run.root / name)), name)
    now = _fields_read(job, name)
    for field in sorted(now):
        if now[field] != then.get(field):
            raise ConfigError(
                f"{field} is {now[field]} and step {name!r} in {run.root} was run with {then.get(field)}: put it back, "
                f"choose another --run-dir, or delete the folders of {name!r} and the steps after it"
            )


def _fields_read(job: JobConfig, name: str) -> dict[str, Any]:
    """Every field, by dotted name, that the steps up to this one read."""
    position = NAMES.index(name)
    content = job.model_dump(mode="json")
    fields: dict[str, Any] = {}
    for step in STEPS[: position + 1]:
        for section in step.sections:
            values = content[section]
            fields |= (
                {f"{section}.{key}": value for key, value in values.items()} if isinstance(values, dict) else {section: values}
            )
    first_read_by = FIRST_READ_BY
    if job.backbone.joint is not None:  # then the backbone comes with heads
        first_read_by = {field: step for field, step in first_read_by.items() if not field.startswith("network.head_")}
    return {
        field: value
        for field, value in fields.items()
        if field not in NO_MATTER and NAMES.index(first_read_by.get(field, NAMES[0])) <= position
    }
