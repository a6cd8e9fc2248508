"""A peer: another server that serves the same full-depth network, in an environment of its own made from PyPI."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compare.lanes import Connection
from compare.processes import StartError

SERVING = Path(__file__).parents[1] / "serving"
"""What runs inside the peers' environments."""
INSTALL_TIMEOUT_S = 1800
RUNTIMES = ("numpy", "onnxruntime==1.32.0", "openvino==2026.4.1")
"""What network.py runs the network with, in every peer's environment."""


@dataclass(frozen=True, slots=True)
class ServedNetwork:
    """One form of the full-depth network that every peer serves under this name."""

    name: str
    path: Path
    runtime: str
    """As network.py names it."""
    threads: int

    def __str__(self) -> str:
        return f"{self.name}={self.runtime}:{self.threads}:{self.path}"


@dataclass(frozen=True, slots=True)
class Site:
    """Where and with what a peer runs."""

    environment: Path
    """Its virtual environment."""
    folder: Path
    """Empty, for its files."""
    networks: tuple[ServedNetwork, ...]
    input_size: int
    classes: int
    port: int
    spare_ports: tuple[int, ...]
    """For what a server insists on serving besides."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.environment / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        return self.environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a peer whose files lie in its folder, and how to talk to it."""

    command: Sequence[str | Path]
    connect: Callable[[str, np.ndarray], Connection]
    """From the name of a network and the images (N, H, W, 3)."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer."""

    name: str
    requirements: tuple[str, ...]
    prepare: Callable[[Site], Launch]
    """Writes what the server reads into the site's folder."""
    tuning: str
    """What was set, for the report."""


def install(peer: Peer, home: Path) -> Path:
    """Make the peer's environment under `home`, or take the one that is there and current. Raises StartError."""
    wanted = sorted({*peer.requirements, *RUNTIMES})
    environment, stamp = home / peer.name, home / peer.name / "requirements.txt"
    if stamp.is_file() and stamp.read_text().split() == wanted:
        return environment
    without_ours = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    python = environment / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(environment)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
    ):
        try:
            done = subprocess.run(
                command, env=without_ours, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StartError(f"can't be installed: {error}") from None
        if done.returncode != 0:
            raise StartError(f"can't be installed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1][:300]}")
    stamp.write_text("\n".join(wanted) + "\n")
    return environment


def copy_serving(folder: Path, *names: str) -> None:
    """Copy files of compare/serving into a folder; one named `a=b` is called b there."""
    for name in names:
        source, _, target = name.partition("=")
        shutil.copyfile(SERVING / source, folder / (target or source))


def digest(path: Path) -> str:
    """Short name for what a file holds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
