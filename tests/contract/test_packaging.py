"""What an installation gets: the wheel has every package with its type hints, its data, and nothing else."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.wheel import WheelBuilder

from tests.conftest import COMMANDS

ROOT = Path(__file__).parents[2]
PACKAGES = {"inference", "offramp", "offramp_client", "offramp_model", "offramp_server", "offramp_training"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """A wheel that is built from this tree."""
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    return ZipFile(built)


@pytest.fixture(scope="module")
def files(wheel: ZipFile) -> set[str]:
    return set(wheel.namelist())


def test_it_holds_our_packages_and_no_others(files: set[str]) -> None:
    assert {name.split("/")[0] for name in files if ".dist-info/" not in name} == PACKAGES


def test_type_hints_are_shipped(files: set[str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= files
    assert "offramp/v1/classification_pb2.pyi" in files


def test_the_trainings_data_is_there(files: set[str]) -> None:
    presets = ROOT / "training" / "offramp_training" / "presets"
    assert {f"offramp_training/presets/{path.name}" for path in presets.glob("*.yaml")} <= files
    assert "offramp_training/winograd.cpp" in files


def test_the_commands_are_there(wheel: ZipFile, files: set[str]) -> None:
    (name,) = (name for name in files if name.endswith(".dist-info/entry_points.txt"))
    for command, module in COMMANDS.items():
        assert f"{command} = {module}:main" in wheel.read(name).decode().splitlines()
