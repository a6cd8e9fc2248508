"""Fixtures that several folders of tests share: one small trained run, and the bundle that it published."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# a busy machine is no reason to fail
settings.register_profile("offramp", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("offramp")


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the `smoke` preset, trained end to end once a session; read-only for tests."""
    import torch

    from offramp_training.config import load_config
    from offramp_training.run_directory import RunDirectory
    from offramp_training.steps import run_steps

    root = tmp_path_factory.mktemp("smoke")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads on so small a network cost more than they bring, on a busy machine ten times more
    run_steps(load_config("smoke", [f"publish.store={root / 'store'}"]), RunDirectory(root / "run"))
    torch.set_num_threads(threads)
    return root / "run"


@pytest.fixture(scope="session")
def smoke_store(smoke_run: Path) -> Path:
    """A bundle store that holds the trained bundle `smoke`, version 1; read-only for tests."""
    return smoke_run.parent / "store"
