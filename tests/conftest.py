"""Fixtures that several folders of tests share: one small trained run, and the bundle that it published."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# a busy machine is no reason to fail
settings.register_profile("offramp", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("offramp")


HAS_NNCF = importlib.util.find_spec("nncf") is not None and importlib.util.find_spec("openvino") is not None
"""Whether bundles get OpenVINO graphs here; tests that need them are skipped where not."""


def _run_smoke(root: Path, *overrides: str) -> Path:
    import torch

    from offramp_training.config import load_config
    from offramp_training.run_directory import RunDirectory
    from offramp_training.steps import run_steps

    if not HAS_NNCF:
        overrides += ("export.graphs=false",)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads on so small a network cost more than they bring, on a busy machine ten times more
    run_steps(load_config("smoke", [f"publish.store={root.parent / 'store'}", *overrides]), RunDirectory(root))
    torch.set_num_threads(threads)
    return root


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the `smoke` preset, trained end to end once a session; read-only for tests."""
    return _run_smoke(tmp_path_factory.mktemp("smoke") / "run")


FORECAST = (
    "network.head_kind=pooled_stats",
    "network.head_cascade=true",
    "network.router_kind=forecast",
    "routers.lambdas=[0, 0.02, 0.05, 0.1, 0.2, 0.5, 2]",
    "forecast={steps: 60, weight_decays: [0.01, 0.1], folds: 3}",
    "proof.replicas=2",
    "proof.beside=[bank, paper]",
    "proof.bank_lambdas=[0, 1, 5]",
    "proof.rule_steps=20",
    "evaluate.recode_quality=50",
    "publish.version=2",
)
"""What makes the forecast run out of the smoke preset."""


@pytest.fixture(scope="session")
def forecast_run(smoke_run: Path) -> Path:
    """The same backbone and cache with rich heads and forecast routers, published as version 2; read-only for tests."""
    root = smoke_run.parent / "forecast"
    root.mkdir()
    for step in ("backbone", "cache"):
        (root / step).symlink_to(smoke_run / step)
    return _run_smoke(root, *FORECAST)


@pytest.fixture(scope="session")
def smoke_store(smoke_run: Path, forecast_run: Path) -> Path:
    """A bundle store with the trained bundle `smoke`: version 1 with a bank of routers, version 2 with forecast ones."""
    return smoke_run.parent / "store"


COMMANDS = {
    "offramp": "offramp_client.cli",
    "offramp-train": "offramp_training.__main__",
    "offramp-server": "offramp_server.__main__",
}


@pytest.fixture(scope="session")
def installed_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which our commands lie as an installation puts them there, and `python` is the one that runs the tests."""
    folder = tmp_path_factory.mktemp("bin")
    scripts = {name: f"#!{sys.executable}\nfrom {module} import main\nmain()\n" for name, module in COMMANDS.items()}
    scripts["python"] = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
