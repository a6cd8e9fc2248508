"""What the benchmark judges and prints, on figures made up here."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from compare.goals import best_peer, judge
from compare.report import render
from compare.rounds import medians

MODES = ("single", "batch")


def way(rates: list[float], **more: Any) -> dict[str, Any]:
    rounds = [
        {
            "frames_per_s": rate,
            "latency_ms": {"p50": 10.0, "p99": 20.0},
            "server_cpu_ms_a_frame": 2.0,
            "server_cores": 1.5,
            "client_cores": 0.1,
            "elsewhere_cores": 0.0,
            "mean_cost": 1.0,
            "loop": "closed",
        }
        for rate in rates
    ]
    report = {"rounds": rounds, "spread": [min(rates), max(rates)], "agreement": 1.0, "frames_answered": 7}
    report |= {"accuracy": 0.9, "accuracy_drop": 0.0} | more
    return finished(report)


def finished(report: dict[str, Any]) -> dict[str, Any]:
    return report | {"median": medians(report["rounds"])}


def bare(rates: list[float]) -> dict[str, Any]:
    rounds = [{"frames_per_s": rate, "cpu_ms_a_frame": 1.6, "call_ms": {"p50": 8.0}} for rate in rates]
    return finished({"rounds": rounds, "spread": [min(rates), max(rates)]})


@pytest.fixture
def ways() -> dict[str, Any]:
    """Twice as fast as uncut at half the compute."""
    found: dict[str, Any] = {}
    for mode in MODES:
        found[f"offramp/adaptive/{mode}"] = way([1000.0, 1200.0, 1100.0])
        for each in found[f"offramp/adaptive/{mode}"]["rounds"]:
            each["mean_cost"] = 0.5
        found[f"offramp/adaptive/{mode}"] = finished(found[f"offramp/adaptive/{mode}"])
        found[f"offramp/uncut/{mode}"] = way([500.0, 600.0, 550.0])
        found[f"triton/float32/{mode}"] = way([200.0, 200.0, 200.0])
        found[f"litserve/float32/{mode}"] = way([100.0, 100.0, 900.0])  # the median counts, not the best round
        found[f"triton/int8/{mode}"] = way([1000.0, 1000.0, 1000.0])
        found[f"mlserver/int8/{mode}"] = {"failure": "StartError: ended with 1", "rounds": []}
    found["offramp/adaptive/lone"] = found["offramp/uncut/lone"] = way([90.0, 90.0, 90.0])
    found["offramp/adaptive/1000 streams"] = way([950.0, 1140.0, 1045.0])
    return found


LOOPS = {"adaptive": bare([1500.0, 1500.0, 1500.0]), "adaptive, batch 1": bare([120.0] * 3), "uncut, batch 1": bare([60.0] * 3)}


def values(goals: list[dict[str, Any]], number: int) -> dict[str, Any]:
    found: dict[str, Any] = goals[number]["values"]
    return found


def test_ratios_are_those_of_the_same_round_and_judged_against_their_bounds(ways: dict[str, Any]) -> None:
    goals = judge(ways, LOOPS)
    float32, int8, efficiency, cpu, lone, uncut, many = (values(goals, number)["single"] for number in range(7))
    assert (float32["value"], float32["met"], float32["note"]) == (pytest.approx(5.5), True, "over triton")
    assert (int8["value"], int8["met"]) == (pytest.approx(1.1), False)
    # the rounds drift, both at once: twice as fast in each, at half the compute
    assert (efficiency["value"], efficiency["met"]) == (pytest.approx(1.0), True)
    assert (cpu["value"], cpu["met"]) == (pytest.approx(1.25), True)
    assert (lone["value"], lone["met"]) == (pytest.approx(1.25), True)
    assert (uncut["value"], uncut["met"]) == (pytest.approx(1.25), True)
    assert (many["value"], many["met"]) == (pytest.approx(0.95), True)
    assert "batch" not in values(goals, 6)


def test_an_answer_that_is_worse_does_not_meet_the_goal_however_fast(ways: dict[str, Any]) -> None:
    ways["offramp/adaptive/batch"]["accuracy_drop"] = 0.0061
    float32 = values(judge(ways, LOOPS), 0)
    assert (float32["single"]["met"], float32["batch"]["met"]) == (True, False)
    assert "0.61 points below" in float32["batch"]["note"]


def test_what_could_not_be_measured_says_why_and_is_not_met(ways: dict[str, Any]) -> None:
    for key in [key for key in ways if "/int8/" in key]:
        del ways[key]
    ways["offramp/adaptive/1000 streams"] = {"failure": "UnavailableError: gone", "rounds": []}
    goals = judge(ways, LOOPS)
    assert values(goals, 1)["single"] == {"note": "no peer served int8"}
    assert values(goals, 6)["single"] == {"note": "UnavailableError: gone"}
    assert best_peer(ways, "int8", "single") is None


def test_medians_are_taken_of_every_number_that_all_rounds_have() -> None:
    rounds = [{"a": 1, "b": {"c": 3.0}, "x": None, "s": "text"}, {"a": 5, "b": {"c": 1.0}}, {"a": 2, "b": {"c": 2.0}, "x": 1}]
    assert medians(rounds) == {"a": 2, "b.c": 2.0}


def test_the_markdown_names_everything_missed_and_missing(ways: dict[str, Any]) -> None:
    results = {
        "made": "2026-01-01 00:00 UTC",
        "command": "python bench/run.py",
        "minutes": 4.0,
        "plan": {"rounds": 3, "seconds": 1.5, "warm_up_s": 1.0},
        "machine": {"processor": "P", "cores": 2, "features": [], "memory_gib": 24.0, "system": "S", "python": "3.11"},
        "versions": {"offramp": "abc"},
        "model": {"name": "m", "version": 1, "backend": "openvino", "device": "cpu, int8"},
        "control": {"policy": "router", "lambda_": 0.5},
        "frames": {"source": "the demo", "count": 7, "full_accuracy": None},
        "peers": {
            "triton": {"versions": {"nvidia-pytriton": "1"}, "tuning": "t"},
            "ray-serve": {"failure": "can't be installed"},
        },
        "goals": judge(ways, LOOPS),
        "ways": ways,
        "bare": LOOPS,
    }
    text = render(json.loads(json.dumps(results)))
    lines = text.splitlines()
    assert any("int8 graph" in line and "1.10 (over triton): out of reach" in line for line in lines)
    assert any("**5.50** (over triton)" in line for line in lines)
    assert "| mlserver, int8, single | failed: StartError: ended with 1 |" in text
    assert "- ray-serve is missing: can't be installed" in text
    assert "1100 (1000–1200)" in text
    tables = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in tables} == {5, 12}  # every row has as many cells as its head


def test_judging_leaves_the_figures_as_they_are(ways: dict[str, Any]) -> None:
    before = copy.deepcopy(ways)
    judge(ways, LOOPS)
    assert ways == before
