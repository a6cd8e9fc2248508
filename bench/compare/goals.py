"""What the comparison must show: each goal as a ratio of figures of one run, and whether it is met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from compare.graphs import FLOAT32, INT8
from compare.plan import MODES, Mode

Reports = Mapping[str, dict[str, Any]]
"""Way.report of each way, by key; and likewise what the bare loop gave."""

MAX_ACCURACY_DROP = 0.005
"""Within this of the full network, an early exit is taken to answer as well."""


def judge(ways: Reports, bare: Reports) -> list[dict[str, Any]]:
    """Every goal with its value in each mode, and in words what it was held against or why there is no value."""
    return [
        _goal(
            "frames/s over the best peer's at float32, accuracy within 0.5 points of the full network",
            "at least",
            5.0,
            lambda mode: _over_best_peer(ways, FLOAT32, mode),
        ),
        _goal(
            "frames/s over the best peer's with the same int8 graph",
            "at least",
            1.5,
            lambda mode: _over_best_peer(ways, INT8, mode),
        ),
        _goal("speed-up over uncut full depth, over 1 / mean compute", "at least", 0.85, lambda mode: _efficiency(ways, mode)),
        _goal(
            "server CPU time a frame over the bare loop's",
            "at most",
            1.25,
            lambda mode: _ratio(ways[f"offramp/adaptive/{mode}"], "server_cpu_ms_a_frame", bare["adaptive"], "cpu_ms_a_frame"),
        ),
        _goal(
            "p50 of a lone stream over the bare loop's at batch 1",
            "at most",
            1.6,
            lambda mode: _ratio(ways["offramp/adaptive/lone"], "latency_ms.p50", bare["adaptive, batch 1"], "call_ms.p50"),
            modes=("single",),
        ),
        _goal(  # the medians above may be of different exits; these are of the same work
            "the same at full depth",
            "at most",
            1.6,
            lambda mode: _ratio(ways["offramp/uncut/lone"], "latency_ms.p50", bare["uncut, batch 1"], "call_ms.p50"),
            modes=("single",),
        ),
        _goal(
            "frames/s at 1,000 streams over that at 8",
            "at least",
            0.9,
            lambda mode: _ratio(ways["offramp/adaptive/1000 streams"], "frames_per_s", ways["offramp/adaptive/single"]),
            modes=("single",),
        ),
    ]


def best_peer(ways: Reports, network: str, mode: Mode) -> str | None:
    """Key of the fastest peer with a network, by its median frames/s."""
    keys = [
        key for key in ways if key.endswith(f"/{network}/{mode}") and not key.startswith("offramp/") and "median" in ways[key]
    ]
    return max(keys, key=lambda key: ways[key]["median"]["frames_per_s"], default=None)


def _goal(
    what: str,
    sense: str,
    bound: float,
    measure: Callable[[Mode], tuple[float, str]],
    modes: tuple[Mode, ...] = MODES,
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for mode in modes:
        try:
            value, note = measure(mode)
        except _NotMeasuredError as reason:
            values[mode] = {"note": str(reason)}
            continue
        met = value >= bound if sense == "at least" else value <= bound
        values[mode] = {"value": value, "met": met and not note.startswith("accuracy"), "note": note}
    return {"what": what, "sense": sense, "bound": bound, "values": values}


class _NotMeasuredError(Exception):
    pass


def _over_best_peer(ways: Reports, network: str, mode: Mode) -> tuple[float, str]:
    ours = ways[f"offramp/adaptive/{mode}"]
    peer = best_peer(ways, network, mode)
    if peer is None:
        raise _NotMeasuredError(f"no peer served {network}")
    value, _ = _ratio(ours, "frames_per_s", ways[peer])
    drop = ours.get("accuracy_drop")
    if network == FLOAT32 and drop is not None and drop > MAX_ACCURACY_DROP:
        return value, f"accuracy {drop * 100:.2f} points below the full network's; over {peer.partition('/')[0]}"
    return value, f"over {peer.partition('/')[0]}"


def _efficiency(ways: Reports, mode: Mode) -> tuple[float, str]:
    adaptive = ways[f"offramp/adaptive/{mode}"]
    speed_up, _ = _ratio(adaptive, "frames_per_s", ways[f"offramp/uncut/{mode}"])
    compute = adaptive["median"]["mean_cost"]
    return speed_up * compute, f"{speed_up:.2f} × faster at mean compute {compute:.3f}"


def _ratio(ours: dict[str, Any], name: str, theirs: dict[str, Any], their_name: str = "") -> tuple[float, str]:
    """The median over rounds of the ratio within each round, so that a machine that drifts does so in both."""
    for each in (ours, theirs):
        if "median" not in each:
            raise _NotMeasuredError(each.get("failure", "not run"))
    pairs = zip(ours["rounds"], theirs["rounds"], strict=False)
    return statistics.median(_at(one, name) / _at(other, their_name or name) for one, other in pairs), ""


def _at(figures: dict[str, Any], name: str) -> float:
    for part in name.split("."):
        figures = figures[part]
    return float(figures)  # type: ignore[arg-type]  # the last part is a number
