"""What a run was made on and with."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

OURS = ("torch", "openvino", "grpcio", "protobuf", "numpy", "aiohttp")
FAST_PATHS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""What a CPU may have that runtimes make use of."""


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory and kernel."""
    facts = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    known = {name.strip(): value.strip() for name, _, value in facts}
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "processor": known.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "features": [name for name in FAST_PATHS if name in known.get("flags", "").split()],
        "memory_gib": round(memory_kib / 2**20, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def describe_versions() -> dict[str, str]:
    """Of this project and of what its own environment runs on."""
    found = {}
    for name in OURS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"offramp": _commit()} | found


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no git repository"
