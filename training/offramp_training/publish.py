"""Step 9: the bundle that a server loads, checked on images after it was written."""

from __future__ import annotations

import datetime
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp_model.bundle import WEIGHTS, Bundle, Control, Manifest, OperatingPoint, Provenance
from offramp_model.config import NetworkConfig
from offramp_model.costs import cost_table
from offramp_model.drift import DriftReference
from offramp_model.graphs import Graphs, graph_files
from offramp_model.outcomes import Frontier
from offramp_model.weights import load_network, publish_bundle
from offramp_training.assembly import load_whole
from offramp_training.cache import open_features
from offramp_training.config import JobConfig, JobError
from offramp_training.data import LabelledImages, load_images, normalise
from offramp_training.export import measure_fidelity, preprocessing_of, unseen_images
from offramp_training.heads import fit_and_select
from offramp_training.model_card import model_card
from offramp_training.run_directory import RunDirectory, progress_bar, read_json, say, write_json

STEP = "publish"
FIGURES = ("pareto.png", "pareto.svg", "exits_over_lambda.png", "baselines.png")
TOLERANCE = 0.005
"""How far an exit's accuracy, recomputed from the published weights and the images, may lie from the manifest's."""


def publish(job: JobConfig, run: RunDirectory) -> None:
    """Write <store>/<name>/<version>/ and recompute the accuracy of every exit from it."""
    started = time.time()
    run.result("report")
    exported = run.result("export")["graphs"]
    network, metrics = load_whole(job, run), read_json(run.root / "evaluate" / "metrics.json")
    tensors = network.state_dict()
    size = sum(t.numel() * (2 if t.is_floating_point() else t.element_size()) for t in tensors.values())
    if size > job.publish.max_megabytes * 1e6:
        raise JobError(f"publish.max_megabytes: the weights take {size / 1e6:.1f} MB more than {job.publish.max_megabytes:g}")
    target = job.publish.store / job.publish.name / str(job.publish.version)
    if target.exists():
        raise JobError(f"publish.version: {target} is already published: choose a new version")
    graphs, files = None, {f"plots/{name}": run.root / "report" / name for name in FIGURES}
    if exported is not None:
        images = unseen_images(job, run)
        fidelity = measure_fidelity(job, run, network, images)
        fidelity.check(job.export)
        metrics["graphs"] = exported | {"unseen": fidelity.report() | {"images": len(images)}}
        graphs = Graphs(
            made_by=exported["made_by"],
            exit_accuracies=tuple(round(accuracy, 5) for accuracy in fidelity.int8_accuracies),
            same_exit=round(fidelity.same_exit, 5),
        )
        files |= {name: run.root / "export" / name for name in graph_files(network.config.exits)}
    manifest = _manifest(job, run, network.config, metrics, graphs)
    with tempfile.TemporaryDirectory() as scratch:
        files |= {name: Path(scratch) / name for name in ("metrics.json", "README.md")}
        write_json(files["metrics.json"], metrics)
        files["README.md"].write_text(model_card(job, run, metrics))
        bundle = publish_bundle(job.publish.store, manifest, tensors, files)
    accuracies = verify(job, run, bundle)
    megabytes = round((bundle.path / WEIGHTS).stat().st_size / 1e6, 2)
    run.finish(
        STEP, job, started, path=str(bundle.path.resolve()), weights_megabytes=megabytes, verified_exit_accuracies=accuracies
    )
    say(
        STEP,
        f"{bundle.path}: {megabytes} MB of weights, recomputed exit accuracies {', '.join(f'{a:.4f}' for a in accuracies)}",
    )


def _manifest(
    job: JobConfig, run: RunDirectory, config: NetworkConfig, metrics: dict[str, Any], graphs: Graphs | None
) -> Manifest:
    backbone = run.result("backbone")
    return Manifest(
        name=job.publish.name,
        version=job.publish.version,
        architecture=config.architecture,
        network=config,
        labels=tuple(backbone["classes"]),
        preprocessing=preprocessing_of(run),
        costs=cost_table(config),
        default_control=Control.model_validate(metrics["default_control"]),
        default_thresholds=metrics["default_thresholds"],
        full_accuracy=metrics["table"][0]["select"]["accuracy"],
        exit_accuracies=tuple(exit["select"]["accuracy"] for exit in metrics["exits"]),
        operating_points=tuple(OperatingPoint.model_validate(point) for point in metrics["operating_points"]),
        frontier=Frontier.model_validate(metrics["frontier"]),
        graphs=graphs,
        # a run that was evaluated before there was one can still be published
        drift_reference=DriftReference.model_validate(metrics["drift_reference"]) if "drift_reference" in metrics else None,
        provenance=Provenance(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seed=job.seed,
            data_note=job.data.note,
            tool=f"offramp-train {version('offramp')}",
        ),
        files={},
    )


def verify(job: JobConfig, run: RunDirectory, bundle: Bundle) -> list[float]:
    """Accuracy of each exit on the select images, from the published weights and the images themselves.

    Raises JobError where one is off: then the features were cached by another network than the one published.
    """
    held_out = open_features(run.root / "cache", "held_out", job.network.exits)
    _, select_N = fit_and_select(job, held_out)
    rows_N = torch.from_numpy(np.load(run.root / "backbone" / "split.npz")["held_out"])[select_N]
    accuracies = exit_accuracies(bundle, load_images(job.data, "train", job.network.input_size), rows_N)
    for exit, (wanted, found) in enumerate(zip(bundle.manifest.exit_accuracies, accuracies, strict=True), start=1):
        if abs(wanted - found) > TOLERANCE:
            raise JobError(
                f"{bundle.path / WEIGHTS}: exit {exit} is right on {found:.4f} of the select images and the manifest says "
                f"{wanted:.4f}: remove the bundle, and run the steps from `cache` on again"
            )
    return accuracies


@torch.no_grad()
def exit_accuracies(bundle: Bundle, data: LabelledImages, rows_N: Tensor) -> list[float]:
    """Share of images that each exit of a published network gets right."""
    network, preprocessing = load_network(bundle), bundle.manifest.preprocessing
    right_K = torch.zeros(bundle.manifest.network.exits, dtype=torch.long)
    with progress_bar("checking the bundle", len(rows_N)) as advance:
        for batch_N in torch.split(rows_N, 250):
            images = normalise(data.images_NCHW[batch_N], preprocessing.mean, preprocessing.std)
            for index, stage in enumerate(network.stages(images)):
                right_K[index] += (stage.logits.argmax(1) == data.labels_N[batch_N]).sum()
            advance(len(batch_N))
    return [round(right / len(rows_N), 5) for right in right_K.tolist()]
