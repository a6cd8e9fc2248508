"""The bundle: one published version of one model, checked file by file before a byte of it is used.

    <store>/<name>/<version>/manifest.json  weights.safetensors  metrics.json  README.md  plots/  openvino/

The manifest carries the sha256 of every other file. Weights are safetensors: nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError, model_validator

from offramp_model.config import Architecture, FactoryNotAllowedError, NetworkConfig
from offramp_model.costs import CostTable, cost_table
from offramp_model.drift import DriftKind, DriftReference, Histogram
from offramp_model.graphs import Graphs, graph_files
from offramp_model.outcomes import Fraction, Frontier

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
FORMAT_VERSION = 1
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,127}$"  # a folder of the store, and nothing that climbs out of it

PolicyName = Literal["router", "entropy", "confidence", "fixed"]
Threshold = Annotated[float, Field(gt=0, le=1)]


class BundleError(Exception):
    """A bundle that can't be used: names the file and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class BundleNotFoundError(LookupError):
    """No bundle of that name or version in the store."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Part):
    """Channel-wise normalisation of pixels on the scale 0…1."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


class Control(_Part):
    """A choice between accuracy and compute."""

    policy: PolicyName
    lambda_: NonNegativeFloat = 0.0
    threshold: Threshold = 0.5
    max_exit: PositiveInt | None = None


class OperatingPoint(_Part):
    """A control with what it gave on held-out images."""

    control: Control
    accuracy: Fraction
    mean_cost: NonNegativeFloat
    exit_fractions: tuple[Fraction, ...]


class Provenance(_Part):
    """Where the weights come from."""

    created: str
    """ISO 8601, UTC."""
    seed: int
    data_note: str
    tool: str
    """Program and version that published the bundle."""


class Manifest(_Part):
    """Everything that a server must know about a bundle."""

    format_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: PositiveInt
    architecture: Architecture = "multi-exit-resnet"
    network: NetworkConfig
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    costs: CostTable
    default_control: Control
    default_thresholds: dict[PolicyName, Threshold]
    """The threshold of each policy where a caller names the policy alone."""
    full_accuracy: Fraction
    """Of the plain full network, on held-out images."""
    exit_accuracies: tuple[Fraction, ...]
    """Of each exit alone, on held-out images."""
    operating_points: tuple[OperatingPoint, ...]
    frontier: Frontier | None = None
    """Measured under the default control at every other λ; None where callers can't ask for outcomes."""
    drift_reference: DriftReference | None = None
    """Measured under the default control; None in bundles from before there was one."""
    graphs: Graphs | None = None
    """What is to say of the OpenVINO graphs; None where the bundle carries none."""
    provenance: Provenance
    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]
    """sha256 of every other file of the bundle, by path inside it."""

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        exits = self.network.exits
        if self.architecture != self.network.architecture:
            raise ValueError(f"architecture is {self.architecture} and the network's is {self.network.architecture}")
        if len(self.labels) != self.network.classes:
            raise ValueError(f"labels names {len(self.labels)} classes and the network has {self.network.classes}")
        if len(self.exit_accuracies) != exits:
            raise ValueError(f"exit_accuracies has {len(self.exit_accuracies)} entries and the network {exits} exits")
        if self.costs != cost_table(self.network):
            raise ValueError("costs do not match the network's own cost table")
        channels = self.network.input_channels
        if (len(self.preprocessing.mean), len(self.preprocessing.std)) != (channels, channels):
            raise ValueError(f"preprocessing must give mean and std of {channels} channels")
        missing = {"router", "entropy", "confidence"} - self.default_thresholds.keys()
        if missing:
            raise ValueError(f"default_thresholds lacks {', '.join(sorted(missing))}")
        if self.default_control.policy == "router" and not self.network.has_routers:
            raise ValueError("the default policy is `router` and the network has no routers")
        if self.frontier is not None:
            control = self.default_control
            if control.policy != "router" or control.max_exit is not None:
                raise ValueError("a frontier is measured under the default control: make that policy `router` without max_exit")
            if control.threshold != self.default_thresholds["router"]:
                raise ValueError("a frontier needs one threshold in default_control and in default_thresholds of `router`")
            if any(len(point.exit_fractions) != exits for point in self.frontier.points):
                raise ValueError(f"every point of frontier must give exit_fractions of {exits} exits")
        if self.drift_reference is not None and len(self.drift_reference.exit_counts) != exits:
            raise ValueError(f"drift_reference must give exit_counts of {exits} exits")
        if self.graphs is not None and len(self.graphs.exit_accuracies) != exits:
            raise ValueError(f"graphs must give exit_accuracies of {exits} exits")
        return self

    def drift_histograms(self) -> dict[DriftKind, Histogram]:
        """What live frames under the default control are held against: exits and confidences, or as much as was measured."""
        if self.drift_reference is not None:
            return self.drift_reference.histograms()
        frames = self.frontier.frames if self.frontier is not None else math.inf
        point = next((point for point in self.operating_points if point.control == self.default_control), None)
        return {} if point is None else {"exit": Histogram(point.exit_fractions, frames)}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every file has been checked against the manifest."""

    path: Path
    manifest: Manifest
    allowed_factories: frozenset[str] = frozenset()
    """Factories that may be imported to build its network; what the bundle itself says of that doesn't count."""


class BundleStore:
    """The bundles under one folder, found by name and version."""

    def __init__(self, root: Path, allowed_factories: Collection[str] = ()) -> None:
        """`allowed_factories`: code, named `package.module:function`, that bundles may build their networks with."""
        self.root, self._allowed_factories = root, frozenset(allowed_factories)

    def names(self) -> list[str]:
        """Names of models with at least one version, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if re.match(NAME_PATTERN, path.name) and self.versions(path.name))

    def versions(self, name: str) -> list[int]:
        """Versions of a model, ascending; empty when there is none."""
        folder = self.root / name
        if not re.fullmatch(NAME_PATTERN, name) or not folder.is_dir():
            return []
        return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch(r"[1-9][0-9]*", path.name))

    def open(self, name: str, version: int | None = None) -> Bundle:
        """Check and open a bundle; the newest version when none is given.

        Raises BundleNotFoundError, or BundleError naming the damaged or foreign file.
        """
        versions = self.versions(name)
        if not versions:
            raise BundleNotFoundError(f"no model {name!r} in {self.root}: it holds {', '.join(self.names()) or 'nothing'}")
        if version is None:
            version = versions[-1]
        if version not in versions:
            raise BundleNotFoundError(f"model {name!r} has no version {version}: it has {', '.join(map(str, versions))}")
        bundle = open_bundle(self.root / name / str(version), self._allowed_factories)
        if (bundle.manifest.name, bundle.manifest.version) != (name, version):
            found = f"{bundle.manifest.name} version {bundle.manifest.version}"
            raise BundleError(bundle.path / MANIFEST, f"is of {found}, and lies in the folder of {name} version {version}")
        return bundle


def open_bundle(path: Path, allowed_factories: Collection[str] = ()) -> Bundle:
    """Read the manifest and check every file's digest; imports nothing.

    Raises BundleError naming the file and the reason; one is that the network's factory is not among those allowed.
    """
    manifest_path = path / MANIFEST
    try:
        manifest = Manifest.model_validate_json(manifest_path.read_bytes())
    except OSError as error:
        raise BundleError(manifest_path, f"can't be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise BundleError(manifest_path, f"not a manifest of format {FORMAT_VERSION}: {where}: {first['msg']}") from error
    factory = manifest.network.factory
    if factory is not None and factory not in allowed_factories:
        raise BundleError(manifest_path, str(FactoryNotAllowedError(factory)))
    if WEIGHTS not in manifest.files:
        raise BundleError(manifest_path, f"lists no digest of {WEIGHTS}")
    if manifest.graphs is not None:
        unlisted = sorted(set(graph_files(manifest.network.exits)) - manifest.files.keys())
        if unlisted:
            raise BundleError(manifest_path, f"lists no digest of {unlisted[0]}")
    for name, digest in manifest.files.items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            raise BundleError(manifest_path, f"names a file outside the bundle: {name}")
        if not file.is_file():
            raise BundleError(file, "is missing")
        if sha256(file) != digest:
            raise BundleError(file, "does not match its sha256 in the manifest: the file is damaged or was changed")
    return Bundle(path, manifest, frozenset(allowed_factories))


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
