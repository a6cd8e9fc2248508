"""The committed protobuf code is what the protos give, and it is linted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from offramp.v1 import classification_pb2
from offramp_model.routing import ExitReason, Policy

ROOT = Path(__file__).parents[2]


def test_the_committed_code_is_current() -> None:
    result = subprocess.run(
        [sys.executable, "proto/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_stale_file_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    stale = tmp_path / "proto" / "offramp" / "v1" / "model_pb2.py"
    stale.write_text(stale.read_text() + "\n# edited by hand\n")
    command = [sys.executable, str(tmp_path / "proto" / "generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "model_pb2.py" in result.stderr


def test_the_domains_enums_carry_the_wires_numbers() -> None:
    for member in Policy:
        assert classification_pb2.Policy.Value(f"POLICY_{member.name}") == member
    for reason in ExitReason:
        assert classification_pb2.ExitReason.Value(f"EXIT_REASON_{reason.name}") == reason
    assert len(classification_pb2.Policy.keys()) == len(Policy) + 1
    assert len(classification_pb2.ExitReason.keys()) == len(ExitReason) + 1
