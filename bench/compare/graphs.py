"""The full-depth network in the forms that peers serve: float32 as ONNX, and the bundle's own uncut int8 graph."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from compare.lanes import LOGITS, PIXELS
from compare.peers.peer import ServedNetwork, digest
from offramp_model.bundle import MANIFEST, WEIGHTS, Bundle
from offramp_model.graphs import FOLDER, WHOLE
from offramp_model.weights import load_network
from offramp_server.backends.openvino_backend import read_graph

FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"


class FromPixels(nn.Module):
    """The plain network behind its normalisation: uint8 pixels (N, H, W, 3) → class logits (N, classes)."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.network = load_network(bundle)
        preprocessing = bundle.manifest.preprocessing
        self.mean, self.std = (nn.Buffer(torch.tensor(values) * 255) for values in (preprocessing.mean, preprocessing.std))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.network(((pixels.float() - self.mean) / self.std).permute(0, 3, 1, 2))
        return logits


def served_networks(bundle: Bundle, home: Path, threads: int, *, with_bfloat16: bool) -> tuple[ServedNetwork, ...]:
    """Every form that there is of a bundle. The files are kept in `home`, under digests."""
    exact = home / f"{digest(bundle.path / WEIGHTS)}.onnx"
    if not exact.is_file():
        _export(bundle, exact)
    networks = [ServedNetwork(FLOAT32, exact, "onnxruntime", threads)]
    if with_bfloat16:
        networks.append(ServedNetwork(BFLOAT16, exact, "openvino-bf16", threads))
    if bundle.manifest.graphs is not None:
        rounded = home / f"{digest(bundle.path / MANIFEST)}.int8.xml"  # which has the digests of all files
        if not rounded.is_file():
            _put_together(bundle, rounded)
        networks.append(ServedNetwork(INT8, rounded, "openvino", threads))
    return tuple(networks)


def _put_together(bundle: Bundle, target: Path) -> None:
    """The uncut int8 graph with all of its weights, some of which the bundle has in another file."""
    import openvino

    target.parent.mkdir(parents=True, exist_ok=True)
    tensors = load_file(bundle.path / WEIGHTS)
    model = read_graph(openvino.Core(), bundle.path / FOLDER / "int8" / f"{WHOLE}.xml", tensors)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        openvino.serialize(model, made)
        os.replace(made.with_suffix(".bin"), target.with_suffix(".bin"))
        os.replace(made, target)


def _export(bundle: Bundle, target: Path) -> None:
    size = bundle.manifest.network.input_size
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        file = Path(folder) / "full.onnx"
        torch.onnx.export(
            FromPixels(bundle).eval(),
            (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
            file,
            input_names=[PIXELS],
            output_names=[LOGITS],
            dynamic_shapes=({0: torch.export.Dim("frames")},),
            external_data=False,
            verbose=False,
        )
        os.replace(file, target)
