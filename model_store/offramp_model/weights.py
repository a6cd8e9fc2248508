"""The weights of a bundle: loaded into a network, and published with everything else, in half precision."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from offramp_model.bundle import MANIFEST, WEIGHTS, Bundle, BundleError, Manifest, open_bundle, sha256
from offramp_model.config import FactoryError
from offramp_model.factories import build_network
from offramp_model.network import MultiExitNetwork


def load_network(bundle: Bundle) -> MultiExitNetwork:
    """Build a bundle's network in float32, in evaluation mode. Raises BundleError when weights or stages do not fit it."""
    path = bundle.path / WEIGHTS
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(path, f"not a safetensors file ({error})") from error
    try:
        network = build_network(bundle.manifest.network, bundle.allowed_factories)
    except FactoryError as error:
        raise BundleError(bundle.path / MANIFEST, str(error)) from error
    wanted = network.state_dict()
    lacking = sorted(wanted.keys() - tensors.keys()) + sorted(tensors.keys() - wanted.keys())
    if lacking:
        raise BundleError(path, f"tensors missing or unknown: {', '.join(lacking[:5])}")
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            raise BundleError(path, f"tensor {name} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}")
    network.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()})
    return network.eval()


def publish_bundle(store: Path, manifest: Manifest, tensors: Mapping[str, Tensor], files: Mapping[str, Path]) -> Bundle:
    """Write a bundle beside its place and rename it there, so that a reader sees a whole bundle or none.

    Floating-point tensors are stored in half precision. `manifest.files` is filled in here. `files` maps a path inside the
    bundle to the file to copy there. Raises FileExistsError when the version is already published.
    """
    target = store / manifest.name / str(manifest.version)
    allowed = {factory} if (factory := manifest.network.factory) else set()  # whoever publishes has built it already
    if target.exists():
        raise FileExistsError(f"{target} is already published: choose a new publish.version")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{manifest.version}-", dir=target.parent))
    try:
        half = {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in tensors.items()}
        save_file(half, beside / WEIGHTS)
        for name, source in files.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, beside / name)
        digests = {p.relative_to(beside).as_posix(): sha256(p) for p in sorted(beside.rglob("*")) if p.is_file()}
        complete = manifest.model_copy(update={"files": digests})
        (beside / MANIFEST).write_text(complete.model_dump_json(indent=2) + "\n")
        load_network(open_bundle(beside, allowed))
        beside.chmod(0o755)
        (beside / WEIGHTS).chmod(0o644)  # safetensors keeps it from other users, a server's among them
        os.rename(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return open_bundle(target, allowed)


def half_overflows(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors with finite values that half precision can't hold."""
    limit = torch.finfo(torch.half).max
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and bool((tensor.abs() > limit).any())]
