"""What docs/benchmark.md shows is what the committed run gave, as the command that it names prints it."""

from __future__ import annotations

import json
from pathlib import Path

from compare.report import render

ROOT = Path(__file__).parents[3]


def test_the_documented_tables_are_those_of_the_committed_run() -> None:
    results = json.loads((ROOT / "bench" / "results" / "quick.json").read_text())
    assert render(results) in (ROOT / "docs" / "benchmark.md").read_text()
