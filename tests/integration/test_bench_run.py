"""`make bench` without its peers: Offramp and the bare loop on a tiny network, and the tables that come of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.integration.conftest import PATIENCE_S
from tests.integration.test_client_and_server import run_program

ROOT = Path(__file__).parents[2]


async def test_a_run_measures_judges_and_writes(tiny_store: Path, tmp_path: Path) -> None:
    arguments = ("--quick", "--peers", "", "--rounds", "2", "--seconds", "1", "--out", str(tmp_path / "out"))
    bundle = ("--bundle", str(tiny_store / "tiny" / "1"))
    # two threads on so small a network cost more than they bring, on a busy machine a hundred times more
    environment = {"OFFRAMP_BENCH_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    code, out, error = await run_program(
        sys.executable, str(ROOT / "bench" / "run.py"), *arguments, *bundle, patience_s=3 * PATIENCE_S, environment=environment
    )
    assert code == 0, error
    results = json.loads((tmp_path / "out" / "quick.json").read_text())
    assert (tmp_path / "out" / "quick.md").read_text() == out
    ways, bare = results["ways"], results["bare"]
    assert all(len(way["rounds"]) == 2 and way["median"]["server_cpu_ms_a_frame"] > 0 for way in ways.values()), ways
    # the server and the loop answer the same frames at the same exits
    seen = ways["offramp/adaptive/single"]
    assert 0 < seen["median"]["mean_cost"] <= ways["offramp/uncut/single"]["median"]["mean_cost"]
    assert ways["offramp/uncut/single"]["agreement"] > 0
    assert all(loop["median"]["frames_per_s"] > 0 for loop in bare.values())
    assert sum(results["bare_exits"]) == 1
    peers, graphs, *own = results["goals"]
    for goal in (peers, graphs):
        assert all("no peer served" in value["note"] for value in goal["values"].values())
    for goal in own:
        assert all(value["value"] > 0 for value in goal["values"].values()), goal
