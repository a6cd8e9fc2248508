"""What docs/benchmark.md shows is what a committed run gave, as the command that it names prints it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compare.report import render

ROOT = Path(__file__).parents[3]
RUNS = sorted((ROOT / "bench" / "results").glob("*.json"))


@pytest.mark.parametrize("run", RUNS, ids=[run.name for run in RUNS])
def test_the_documented_tables_are_those_of_the_committed_runs(run: Path) -> None:
    assert render(json.loads(run.read_text())) in (ROOT / "docs" / "benchmark.md").read_text()
