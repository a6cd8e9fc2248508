"""Who may import whom, read off the source (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("offramp", "inference", "offramp_model", "offramp_server", "offramp_client", "offramp_training")

# a folder may import, of ours, itself and these
ALLOWED = {
    "model_store/offramp_model": set(),
    "client/offramp_client": {"offramp"},
    "training/offramp_training": {"offramp_model"},
    "server/offramp_server/config.py": set(),
    "server/offramp_server/errors.py": set(),
    "server/offramp_server/engine": {"offramp_server.errors", "offramp_model.routing"},
    "server/offramp_server/backends": {"offramp_server.engine.types", "offramp_model"},
    "server/offramp_server/rpc": {
        "offramp_server.engine",
        "offramp_server.errors",
        "offramp_server.security",
        "offramp",
        "inference",
        "offramp_model",
    },
    "server/offramp_server/security": {"offramp_server.config", "offramp_server.errors"},
    "server/offramp_server/ops": {"offramp_server.config", "offramp_server.engine.types", "offramp_model.drift"},
}

# and of others, none of these
FORBIDDEN = {
    "model_store/offramp_model": {"grpc", "prometheus_client", "PIL", "matplotlib"},
    "client/offramp_client": {"torch", "pydantic", "prometheus_client"},
    "server/offramp_server/engine": {"grpc", "google", "prometheus_client", "uvicorn", "pydantic"},
    "server/offramp_server/backends": {"grpc", "google", "prometheus_client"},
    "server/offramp_server/security": {"google", "prometheus_client", "torch"},
    "training/offramp_training": {"grpc", "google"},
}


def imports_of(file: Path) -> Iterator[str]:
    """Dotted names of everything that a module imports; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_under(place: str) -> list[Path]:
    path = ROOT / place
    files = [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
    assert files, f"nothing lies under {place}"
    return files


def begins_with(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("place", ALLOWED)
def test_a_folder_imports_of_ours_only_what_it_may_know(place: str) -> None:
    own = ".".join(Path(place).with_suffix("").parts[1:])
    for file in files_under(place):
        for name in imports_of(file):
            if any(begins_with(name, ours) for ours in OURS):
                assert any(begins_with(name, allowed) for allowed in ALLOWED[place] | {own}), f"{file} imports {name}"


@pytest.mark.parametrize("place", FORBIDDEN)
def test_a_folder_stays_clear_of_foreign_layers(place: str) -> None:
    for file in files_under(place):
        for name in imports_of(file):
            assert name.split(".")[0] not in FORBIDDEN[place], f"{file} imports {name}"


def test_the_client_runs_without_torch_and_pydantic() -> None:
    code = "import sys, offramp_client, offramp_client.cli; print([m for m in ('torch', 'pydantic') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
