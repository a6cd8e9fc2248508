"""The results of a run as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from compare.plan import BARE_BATCH, IN_FLIGHT, MESSAGE, STREAMS

MODE_NAMES = {"single": "one frame a message", "batch": f"{MESSAGE} frames a message"}


def render(results: dict[str, Any]) -> str:
    """Goals, every server, the bare loop, and what all this was made on."""
    parts = [_goals(results), _servers(results), _bare(results), _made(results)]
    return "\n\n".join(parts) + "\n"


def _goals(results: dict[str, Any]) -> str:
    rows = []
    for goal in results["goals"]:
        cells = [_goal_cell(goal["values"].get(mode)) for mode in MODE_NAMES]
        rows.append([goal["what"], f"{goal['sense']} {goal['bound']:g}", *cells])
    return _table(["ratio of the same run", "wanted", *MODE_NAMES.values()], rows)


def _goal_cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    if "value" not in value:
        return f"not measured: {value['note']}"
    note = f" ({value['note']})" if value["note"] else ""
    return f"**{value['value']:.2f}**{note}" if value["met"] else f"{value['value']:.2f}{note}: out of reach"


def _servers(results: dict[str, Any]) -> str:
    head = ["server, network, load", "frames/s (least–most)", "p50 ms", "p99 ms", "server CPU ms/frame", "server cores"]
    head += ["client cores", "others' cores", "mean compute", "accuracy", "agrees with float32"]
    rows = []
    for key, report in results["ways"].items():
        name = key.replace("/", ", ")
        if "median" not in report:
            rows.append([name, f"failed: {report['failure']}", *[""] * (len(head) - 2)])
            continue
        median, (least, most) = report["median"], report["spread"]
        rows.append(
            [
                name,
                f"{median['frames_per_s']:.0f} ({least:.0f}–{most:.0f})",
                f"{median['latency_ms.p50']:.1f}",
                f"{median['latency_ms.p99']:.1f}",
                f"{median['server_cpu_ms_a_frame']:.2f}",
                f"{median['server_cores']:.2f}",
                f"{median['client_cores']:.2f}",
                f"{median['elsewhere_cores']:.2f}",
                f"{median['mean_cost']:.3f}",
                f"{report['accuracy']:.4f} of {report['frames_answered']}" if "accuracy" in report else "",
                f"{report['agreement']:.4f}",
            ]
        )
    missing = [f"- {name} is missing: {peer['failure']}" for name, peer in results["peers"].items() if "failure" in peer]
    return _table(head, rows) + ("\n\n" + "\n".join(missing) if missing else "")


def _bare(results: dict[str, Any]) -> str:
    head = ["bare loop in one process", "frames/s (least–most)", "p50 ms of a call", "CPU ms/frame"]
    rows = []
    for key, report in results["bare"].items():
        median, (least, most) = report["median"], report["spread"]
        rate = f"{median['frames_per_s']:.0f} ({least:.0f}–{most:.0f})"
        rows.append([key, rate, f"{median['call_ms.p50']:.2f}", f"{median['cpu_ms_a_frame']:.2f}"])
    return _table(head, rows)


def _made(results: dict[str, Any]) -> str:
    machine, model, frames, plan = (results[name] for name in ("machine", "model", "frames", "plan"))
    features = ", ".join(machine["features"]) or "none of the instructions that runtimes look for"
    right = frames["full_accuracy"]
    reference = "is the reference" if right is None else f"has {right:.4f} of them right"
    lines = [
        f"Made {results['made']} by `{results['command']}` in {results['minutes']:.1f} minutes.",
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB; {features}; "
        f"{machine['system']}, Python {machine['python']}.",
        f"Versions: {_pairs(results['versions'])}.",
        f"Model: {model['name']} version {model['version']}, in Offramp on {model['backend']} ({model['device']}). `adaptive` is "
        f"{_pairs(results['control'])}; `uncut` is the fixed last exit.",
        f"Frames: {frames['count']} of {frames['source']}; the full network in float32 {reference}.",
        f"Load: {STREAMS} streams with {IN_FLIGHT} frames in flight each, but for the lone stream and the 1,000, which have one. "
        f"{plan['rounds']} alternating rounds, each of {plan['seconds']:g} s after {plan['warm_up_s']:g} s of warm-up; whoever "
        f"was not measured stood still. The bare loop's batches are of {BARE_BATCH} frames.",
    ]
    for name, peer in results["peers"].items():
        if "failure" not in peer:
            lines.append(f"{name} ({_pairs(peer['versions'])}): {peer['tuning']}.")
    return "\n".join(f"- {line}" for line in lines)


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
