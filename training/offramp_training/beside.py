"""Another run's or bundle's figures beside this run's, such as the frozen backbone's beside the jointly trained one's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp_model.bundle import MANIFEST, BundleError, open_bundle
from offramp_model.config import NetworkConfig
from offramp_model.costs import cost_table
from offramp_training.config import JobConfig, JobError
from offramp_training.run_directory import RunDirectory, read_json


@dataclass(frozen=True, slots=True)
class Reference:
    """The name and the figures of what is set beside this run."""

    name: str
    metrics: dict[str, Any]


def load_reference(job: JobConfig) -> Reference | None:
    """What `proof.reference` names; None where it names nothing.

    Raises JobError where there are no figures, or where costs are shares of another full network.
    """
    path = job.proof.reference
    if path is None:
        return None
    try:
        name, network, metrics = _open(path, job.network.factory)
    except (BundleError, OSError) as error:
        raise JobError(f"proof.reference: {path} is no evaluated run and no bundle with figures ({error})") from error
    ours, theirs = cost_table(job.network).full_macs, cost_table(network).full_macs
    if ours != theirs:
        raise JobError(f"proof.reference: the full network of {path} takes {theirs:,} MACs and this one's {ours:,}")
    return Reference(name, metrics)


def _open(path: Path, factory: str | None) -> tuple[str, NetworkConfig, dict[str, Any]]:
    if (path / MANIFEST).is_file():
        manifest = open_bundle(path, {factory} if factory else ()).manifest
        return f"{manifest.name} version {manifest.version}", manifest.network, read_json(path / "metrics.json")
    metrics = read_json(path / "evaluate" / "metrics.json")
    config = RunDirectory(path).result("evaluate")["config"]
    published = config["publish"]
    return f"{published['name']} version {published['version']}", NetworkConfig.model_validate(config["network"]), metrics


def beside_markdown(metrics: dict[str, Any], reference: Reference | None) -> str:
    """A table of full network, exits and routing in both; empty without a reference."""
    if reference is None:
        return ""
    rows = [_figures(each) for each in (metrics, reference.metrics)]
    lines = [f"| {name} | {cell} | {rows[1].get(name, '–')} |" for name, cell in rows[0].items()]
    return f"""\
## Beside {reference.name}

Test accuracy (mean cost on test); every setting of either was chosen on held-out images.

| | here | {reference.name} |
| --- | --- | --- |
{chr(10).join(lines)}

"""


def _figures(metrics: dict[str, Any]) -> dict[str, str]:
    return dict(_cells(metrics))


def _cells(metrics: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "full network", f"{metrics['table'][0]['test']['accuracy']:.4f}"
    for exit, cost in zip(metrics["exits"], metrics["cost_ratios"], strict=True):
        yield f"exit {exit['exit']} alone", f"{exit['test']['accuracy']:.4f} ({cost:.3f})"
    proof = metrics.get("proof")  # bundles from before the comparison at equal costs have none
    if proof is None:
        return
    for cost, point in zip(proof["costs"], proof["methods"][proof["own"]], strict=True):
        if point is not None:
            yield f"routed at mean cost {cost:g}", f"{point['test_accuracy']:.4f} ({point['test_cost']:.3f})"
    if kept := proof["kept"]:
        accuracies, costs = kept["test_accuracies"], kept["test_costs"]
        accuracy, cost = (sum(values) / len(values) for values in (accuracies, costs))
        yield "routed as cheaply as keeps the full network's accuracy on select", f"{accuracy:.4f} ({cost:.3f})"
