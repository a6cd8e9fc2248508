"""Step 8: the network as OpenVINO graphs, int8 and float, stage by stage and whole (docs/backends.md)."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from offramp_model.bundle import Control, Preprocessing
from offramp_model.costs import cost_table
from offramp_model.graphs import FOLDER, WHOLE, GraphKind
from offramp_model.network import MultiExitNetwork
from offramp_model.routing import halting_rule
from offramp_training.assembly import load_whole
from offramp_training.cache import open_features
from offramp_training.config import JobConfig, JobError
from offramp_training.data import LabelledImages, derive_seed, load_images
from offramp_training.heads import fit_and_select
from offramp_training.policies import Frames
from offramp_training.run_directory import RunDirectory, read_json, say

if TYPE_CHECKING:
    from offramp_training.graphs.fidelity import Fidelity

STEP = "export"


def export(job: JobConfig, run: RunDirectory) -> None:
    """Write openvino/<kind>/. A stage that loses more in int8 than it may stays in float."""
    started = time.time()
    run.result("evaluate")
    if not job.export.graphs:
        run.finish(STEP, job, started, graphs=None)
        say(STEP, "export.graphs is false: the bundle will carry no OpenVINO graphs")
        return
    _require_openvino()
    network, folder = load_whole(job, run), run.folder(STEP) / FOLDER
    calibration, images = split_fit_part(job, run)
    calibration_NHWC = pixels(calibration)
    float_stages: set[int] = set()
    while True:
        write_graphs_of(network, preprocessing_of(run), calibration_NHWC, float_stages, folder)
        fidelity = measure_fidelity(job, run, network, images)
        failing = fidelity.failing_stage(job.export)
        # an exit may be off through a stage before its own
        suspects = [] if failing is None else [stage for stage in range(failing[0], 0, -1) if stage not in float_stages]
        if failing is None or not suspects:
            break
        say(STEP, f"stage {suspects[0]} stays in float: {failing[1]}")
        float_stages.add(suspects[0])
    megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    if megabytes > job.export.max_megabytes:
        raise JobError(f"export.max_megabytes: the graphs take {megabytes:.1f} MB, more than {job.export.max_megabytes:g}")
    made_by = f"openvino {version('openvino')}, nncf {version('nncf')}"
    figures: dict[str, Any] = {"made_by": made_by, "megabytes": round(megabytes, 2), "float_stages": sorted(float_stages)}
    figures["calibration_images"] = len(calibration_NHWC)
    run.finish(STEP, job, started, graphs=figures | {"fit": fidelity.report()})
    say(STEP, f"{folder}: {megabytes:.1f} MB; {fidelity.same_exit:.4f} of {len(images):,} images leave at the same exit in int8")


def write_graphs_of(
    network: MultiExitNetwork, preprocessing: Preprocessing, calibration_NHWC: np.ndarray, float_stages: set[int], folder: Path
) -> None:
    """Convert, quantise, cut and write."""
    from offramp_training.graphs.convert import convert, join
    from offramp_training.graphs.cut import cut, quantise_boundaries, uncut
    from offramp_training.graphs.files import write_graphs
    from offramp_training.graphs.pooling import lighten_pooling
    from offramp_training.graphs.quantise import quantise

    exits = network.config.exits
    exact = join(convert(network, preprocessing, with_weights=False))
    rounded = quantise(join(convert(network, preprocessing, with_weights=True)), calibration_NHWC, exits, float_stages)
    quantise_boundaries(rounded, exits)
    wholes: dict[GraphKind, Any] = {"int8": rounded, "float": exact}
    for kind, whole in wholes.items():
        lighten_pooling(whole)
        stages = {f"stage{exit}": cut(whole, exit, exits) for exit in range(1, exits + 1)}
        write_graphs(stages | {WHOLE: uncut(whole, exits)}, folder / kind, network.state_dict())


def measure_fidelity(job: JobConfig, run: RunDirectory, network: MultiExitNetwork, images: LabelledImages) -> Fidelity:
    """Run the step's files, int8 beside float, on some images. Raises JobError where a file can't be run."""
    from offramp_training.graphs.fidelity import compare
    from offramp_training.graphs.run import run_stages

    costs = cost_table(network.config)
    rule = halting_rule(network.config, costs.ratios)

    def run_kind(kind: GraphKind) -> Frames:
        folder = run.folder(STEP) / FOLDER
        try:
            logits_NKC, routers = run_stages(folder, kind, network.config.exits, pixels(images), network.state_dict())
        except RuntimeError as error:
            raise JobError(f"{folder / kind}: can't be run: {str(error).strip().splitlines()[-1]}") from error
        return Frames(logits_NKC, routers, logits_NKC[:, -1], images.labels_N, rule, costs)

    control = Control.model_validate(read_json(run.root / "evaluate" / "metrics.json")["default_control"])
    return compare(run_kind("float"), run_kind("int8"), control)


def split_fit_part(job: JobConfig, run: RunDirectory) -> tuple[LabelledImages, LabelledImages]:
    """Of the fit part the images that set the ranges of int8 activations, at most half of it, and the others."""
    images = images_of_part(job, run, "fit")
    order_N = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive_seed(job.seed, "calibration")))
    count = min(job.export.calibration_images, len(images) // 2)
    first, rest = (
        LabelledImages(images.images_NCHW[rows_N], images.labels_N[rows_N], images.classes)
        for rows_N in (order_N[:count], order_N[count:])
    )
    return first, rest


def unseen_images(job: JobConfig, run: RunDirectory) -> LabelledImages:
    """The held-out images that had no part in the int8 graphs: the select part, and what calibration left of the fit part."""
    rest, select = split_fit_part(job, run)[1], images_of_part(job, run, "select")
    images_NCHW, labels_N = torch.cat([rest.images_NCHW, select.images_NCHW]), torch.cat([rest.labels_N, select.labels_N])
    return LabelledImages(images_NCHW, labels_N, select.classes)


def images_of_part(job: JobConfig, run: RunDirectory, part: Literal["fit", "select"]) -> LabelledImages:
    """The images themselves of one part of the held-out ones."""
    held_out = open_features(run.root / "cache", "held_out", job.network.exits)
    chosen_N: Tensor = fit_and_select(job, held_out)[part == "select"]
    rows_N = torch.from_numpy(np.load(run.root / "backbone" / "split.npz")["held_out"])[chosen_N]
    data = load_images(job.data, "train", job.network.input_size)
    return LabelledImages(data.images_NCHW[rows_N], data.labels_N[rows_N], data.classes)


def pixels(images: LabelledImages) -> np.ndarray:
    """Images as a server gets them: uint8, (N, H, W, channels)."""
    return images.images_NCHW.permute(0, 2, 3, 1).contiguous().numpy()


def preprocessing_of(run: RunDirectory) -> Preprocessing:
    """The normalisation that the backbone was trained with."""
    backbone = run.result("backbone")
    return Preprocessing(mean=tuple(backbone["mean"]), std=tuple(backbone["std"]))


def _require_openvino() -> None:
    try:
        import offramp_training.graphs.toolkit  # noqa: F401
    except ImportError as error:
        raise JobError(
            f"step {STEP!r} needs {error.name}: install the extra `train`, or set export.graphs=false to publish without graphs"
        ) from error
