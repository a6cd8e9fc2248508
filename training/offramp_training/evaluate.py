"""Step 5: choose operating points on the select part, then measure every policy on the test split.

The only reader of the test split. Nothing is chosen on it: every λ and threshold is fixed on the select part of the
held-out images, which neither heads nor routers have seen, and the test split only tells what that choice gives.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from offramp_model.bundle import Control, OperatingPoint
from offramp_model.costs import cost_table
from offramp_model.routing import confidence, normalised_entropy
from offramp_training import policies
from offramp_training.assembly import load_whole
from offramp_training.cache import open_features, write_features
from offramp_training.calibration import quality
from offramp_training.config import EvaluateConfig, JobConfig
from offramp_training.data import load_images
from offramp_training.heads import fit_and_select
from offramp_training.policies import Frames, Outcome
from offramp_training.run_directory import RunDirectory, say, write_json

STEP = "evaluate"
COLLAPSED = 0.95
"""A policy that sends this share of the frames out at one exit is no policy."""


def evaluate(job: JobConfig, run: RunDirectory) -> None:
    """Write metrics.json."""
    started = time.time()
    network, folder = load_whole(job, run), run.folder(STEP)
    costs, exits = cost_table(network.config), job.network.exits
    held_out = open_features(run.root / "cache", "held_out", exits)
    _, select_N = fit_and_select(job, held_out)
    select = policies.run_exits(network, held_out.plain(select_N), held_out.labels_N[select_N], costs)

    data = load_images(job.data, "test", job.network.input_size)
    write_features(job, run, network, data, folder, "test", views=1)
    test_features = open_features(folder, "test", exits)
    everything_N = torch.arange(len(data))
    test = policies.run_exits(network, test_features.plain(everything_N), test_features.labels_N, costs)

    metrics = measure(select, test, job.evaluate)
    write_json(folder / "metrics.json", metrics)
    run.finish(STEP, job, started, select_images=len(select_N), test_images=len(data))
    say(STEP, metrics["routing_verdict"])


def measure(select: Frames, test: Frames, config: EvaluateConfig) -> dict[str, Any]:
    """Choices made on `select`, figures of both parts.

    The default control is the router's: the largest λ, at the configured τ, that costs no more accuracy than tolerated; where
    even the smallest λ costs more, the most accurate one. Default thresholds of entropy and confidence follow the same rule.
    """
    full = policies.full_network(select)
    floor = full.accuracy - config.tolerated_loss
    sweeps = _sweeps(select, config)
    best = {policy: pick(select, sweeps[policy], floor) for policy in ("router", "entropy", "confidence")}
    cost = policies.run_policy(select, best["router"]).mean_cost
    matched = _nearest_cost(select, sweeps["entropy"], cost)
    sweeps["router_threshold"] = [
        best["router"].model_copy(update={"threshold": round(index / (config.sweep_points - 1), 4)})
        for index in range(1, config.sweep_points)
    ]
    exits = len(test.logits)
    rows: list[tuple[str, str, Control | None]] = [
        *((f"Exit {exit} only", "exit", Control(policy="fixed", max_exit=exit)) for exit in range(1, exits + 1)),
        ("BranchyNet (entropy)", "entropy", best["entropy"]),
        ("BranchyNet at the cost of EM", "entropy", matched),
        ("Confidence", "confidence", best["confidence"]),
        ("EM routing (best)", "router", best["router"]),
    ]
    table = [
        _row("Full network", "full", None, full, policies.full_network(test)),
        *(_row(name, kind, c, policies.run_policy(select, c), policies.run_policy(test, c)) for name, kind, c in rows if c),
        _row("Random routing", "random", None, policies.random_exits(select), policies.random_exits(test)),
        _row("Oracle routing", "oracle", None, policies.oracle(select), policies.oracle(test)),
    ]
    hull = {part: policies.upper_hull(_fixed_points(frames)) for part, frames in (("select", select), ("test", test))}
    em_test = policies.run_policy(test, best["router"])
    return {
        "note": "select: held-out images that neither heads nor routers saw; every choice is made there. test: reported only.",
        "rule": (
            f"best of a policy: the cheapest point within {config.tolerated_loss:.3g} of the full network's accuracy on select, "
            "or the most accurate where none is"
        ),
        "lambdas": [round(value, 6) for value in test.grid_L.tolist()],
        "cost_ratios": test.costs.ratios,
        "nominal_costs": test.costs.nominal,
        "table": table,
        "exits": _exit_quality(select, test),
        "fixed_mixture_hull": hull,
        "em_over_fixed_mixture": round(em_test.accuracy - policies.on_hull(hull["test"], em_test.mean_cost), 5),
        "em_collapsed": max(em_test.exit_fractions) >= COLLAPSED,
        "routing_verdict": verdict(best["router"], em_test, policies.on_hull(hull["test"], em_test.mean_cost)),
        "sweeps": {
            name: [_point(c, policies.run_policy(select, c), policies.run_policy(test, c)) for c in controls]
            for name, controls in sweeps.items()
        },
        "operating_points": [p.model_dump(mode="json") for p in operating_points(select, sweeps)],
        "default_control": best["router"].model_dump(mode="json"),
        "default_thresholds": {policy: control.threshold for policy, control in best.items()},
    }


def pick(select: Frames, candidates: list[Control], floor: float) -> Control:
    """The cheapest candidate whose accuracy on select reaches the floor; the most accurate one where none does.

    For the router this is the largest λ that still meets it. Equal costs go to the more accurate.
    """
    outcomes = [(control, policies.run_policy(select, control)) for control in candidates]
    enough = [(control, outcome) for control, outcome in outcomes if outcome.accuracy >= floor]
    if enough:
        return min(enough, key=lambda pair: (pair[1].mean_cost, -pair[1].accuracy))[0]
    return max(outcomes, key=lambda pair: (pair[1].accuracy, -pair[1].mean_cost))[0]


def operating_points(select: Frames, sweeps: dict[str, list[Control]]) -> list[OperatingPoint]:
    """A handful of points of each policy that spans its costs, each with what it gave on select."""
    grid = set(select.grid_L.tolist())
    router = [c for c in sweeps["router"] if float(torch.tensor(c.lambda_)) in grid]
    fixed = [Control(policy="fixed", max_exit=exit) for exit in range(1, len(select.logits) + 1)]
    chosen = [*router, *_spread(select, sweeps["entropy"]), *_spread(select, sweeps["confidence"]), *fixed]
    points = []
    for control in chosen:
        outcome = policies.run_policy(select, control).rounded()
        outcome.pop("nominal_cost")
        points.append(OperatingPoint(control=control, **outcome))
    return points


def verdict(control: Control, outcome: Outcome, mixture: float) -> str:
    """One plain sentence on whether the best router routes at all, and whether it beats mixing fixed exits at its cost."""
    share, exit = max((fraction, exit) for exit, fraction in enumerate(outcome.exit_fractions, start=1))
    gain = 100 * (outcome.accuracy - mixture)
    histogram = ", ".join(f"{100 * fraction:.1f}%" for fraction in outcome.exit_fractions)
    opening = (
        f"EM best (λ = {control.lambda_:g}) has collapsed: it sends {100 * share:.1f}% of the test frames out at exit {exit}"
        if share >= COLLAPSED
        else f"EM best (λ = {control.lambda_:g}) spreads test frames over the exits"
    )
    return (
        f"{opening} (exits 1…{len(outcome.exit_fractions)}: {histogram}); its accuracy {outcome.accuracy:.4f} at cost "
        f"{outcome.mean_cost:.4f} is {abs(gain):.2f} points {'above' if gain >= 0 else 'below'} the best mixture of fixed exits."
    )


def _sweeps(select: Frames, config: EvaluateConfig) -> dict[str, list[Control]]:
    """Controls of each policy: λ on the grid, between and beyond it; thresholds at quantiles of the scores on select."""
    grid = [round(value, 6) for value in select.grid_L.tolist()]
    between = [(low + high) / 2 for low, high in pairwise(grid)]
    beyond = [grid[-1] * factor for factor in (1.5, 2, 5, 20, 100)]
    lambdas = sorted({round(value, 6) for value in grid + between + beyond})
    probabilities = [logits_NC.softmax(1) for logits_NC in select.logits[:-1]]
    scores = {
        "entropy": torch.cat([normalised_entropy(p_NC) for p_NC in probabilities]),
        "confidence": torch.cat([confidence(p_NC) for p_NC in probabilities]),
    }
    router = [Control(policy="router", lambda_=value, threshold=config.router_threshold) for value in lambdas]
    return {
        "router": router,
        "entropy": [Control(policy="entropy", threshold=t) for t in _quantiles(scores["entropy"], config.sweep_points)],
        "confidence": [Control(policy="confidence", threshold=t) for t in _quantiles(scores["confidence"], config.sweep_points)],
    }


def _quantiles(scores_N: Tensor, count: int) -> list[float]:
    """Distinct thresholds in (0, 1] at equal steps of the scores' distribution, and the extremes."""
    quantiles = torch.quantile(scores_N.double(), torch.linspace(0, 1, count, dtype=torch.double))
    return sorted({min(max(float(f"{value:.4g}"), 1e-4), 1.0) for value in quantiles.tolist()} | {1e-4, 1.0})


def _spread(select: Frames, controls: list[Control], count: int = 7) -> list[Control]:
    """Those of the controls that lie nearest to equally spaced costs."""
    costs = [policies.run_policy(select, control).mean_cost for control in controls]
    low, high = min(costs), max(costs)
    wanted = [low + (high - low) * index / (count - 1) for index in range(count)]
    nearest = {min(range(len(costs)), key=lambda i: abs(costs[i] - cost)) for cost in wanted}
    return [controls[i] for i in sorted(nearest)]


def _nearest_cost(select: Frames, controls: list[Control], cost: float) -> Control:
    return min(controls, key=lambda control: abs(policies.run_policy(select, control).mean_cost - cost))


def _fixed_points(frames: Frames) -> list[tuple[float, float]]:
    accuracies = frames.right.double().mean(0).tolist()
    return [(round(cost, 6), round(accuracy, 6)) for cost, accuracy in zip(frames.costs.ratios, accuracies, strict=True)]


def _exit_quality(select: Frames, test: Frames) -> list[dict[str, Any]]:
    return [
        {
            "exit": exit,
            "select": quality(select.logits[exit - 1], select.labels_N).rounded(),
            "test": quality(test.logits[exit - 1], test.labels_N).rounded(),
        }
        for exit in range(1, len(test.logits) + 1)
    ]


def _point(control: Control, select: Outcome, test: Outcome) -> dict[str, Any]:
    return {"control": control.model_dump(mode="json"), "select": select.rounded(), "test": test.rounded()}


def _row(name: str, kind: str, control: Control | None, select: Outcome, test: Outcome) -> dict[str, Any]:
    settings = None if control is None else control.model_dump(mode="json")
    return {"name": name, "kind": kind, "control": settings, "select": select.rounded(), "test": test.rounded()}
