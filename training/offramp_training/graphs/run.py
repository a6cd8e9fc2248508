"""Runs stage graphs from their files over many images, as a server would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from offramp_model.graphs import EARLIER, FEATURES, GRAPH_WEIGHTS, LOGITS, PIXELS, ROUTER, SURVIVORS, GraphKind
from offramp_training.graphs.toolkit import openvino, opset
from offramp_training.run_directory import progress_bar

BATCH = 50


def run_stages(
    folder: Path, kind: GraphKind, exits: int, pixels_NHWC: np.ndarray, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Class logits of every exit, shape (N, K, classes), and each router's output, of uint8 images.

    `folder` holds the kinds' folders; `tensors` are the weights that float graphs are given. Raises RuntimeError where a
    file is damaged.
    """
    core = openvino.Core()
    stages = []
    for exit in range(1, exits + 1):
        model = core.read_model(folder / kind / f"stage{exit}.xml", folder / kind / GRAPH_WEIGHTS)
        give_weights(model, tensors)
        stages.append(core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}))
    rows: list[dict[str, np.ndarray]] = []
    with progress_bar(f"{kind} graphs", len(pixels_NHWC)) as advance:
        for first in range(0, len(pixels_NHWC), BATCH):
            inputs, seen = {PIXELS: pixels_NHWC[first : first + BATCH]}, dict[str, np.ndarray]()
            for exit, stage in enumerate(stages, 1):
                outputs = {output.get_any_name(): value for output, value in stage(inputs).items()}
                seen |= {f"{ROUTER}{exit}": outputs[ROUTER]} if ROUTER in outputs else {}
                inputs = {EARLIER: outputs[LOGITS]} | ({FEATURES: outputs[SURVIVORS]} if exit < exits else {})
            rows.append(seen | {LOGITS: inputs[EARLIER]})
            advance(len(rows[-1][LOGITS]))
    together = {name: torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in rows[0]}
    logits_NKC = together.pop(LOGITS)
    return logits_NKC, list(together.values())


def give_weights(model: openvino.Model, tensors: Mapping[str, Tensor]) -> None:
    """Put weights in the place of the inputs that are named after them."""
    for parameter in model.get_parameters():
        tensor = tensors.get(parameter.output(0).get_any_name())
        if tensor is not None:
            constant = opset.constant(tensor.float().numpy())
            for reader in parameter.output(0).get_target_inputs():
                reader.replace_source_output(constant.output(0))
            model.remove_parameter(parameter)
