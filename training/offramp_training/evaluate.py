"""Step 6: choose operating points on the select part, then measure every policy on the test split.

Nothing is chosen on the test split, which shift.py and attack.py alone read beside this: every λ and threshold is fixed on the
select part of the held-out images, which neither heads nor routers have seen, and the test split only tells what that gives.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from offramp_model.bundle import Control, OperatingPoint
from offramp_model.outcomes import Frontier, FrontierPoint
from offramp_model.routing import confidence, normalised_entropy
from offramp_training import policies
from offramp_training.arms import list_arms
from offramp_training.assembly import load_backbone, load_whole
from offramp_training.cache import Features, open_features, write_features
from offramp_training.calibration import quality
from offramp_training.config import JobConfig
from offramp_training.data import load_images
from offramp_training.drift import exits_and_confidences
from offramp_training.parts import run_select_and_test
from offramp_training.policies import Frames, Outcome
from offramp_training.proof import prove
from offramp_training.recoding import measure_recoded
from offramp_training.run_directory import RunDirectory, say, write_json
from offramp_training.sections import EvaluateConfig

STEP = "evaluate"
COLLAPSED = 0.95
"""A policy that sends this share of the frames out at one exit is no policy."""


def evaluate(job: JobConfig, run: RunDirectory) -> None:
    """Write metrics.json."""
    started = time.time()
    folder = run.folder(STEP)
    held_out = open_features(run.root / "cache", "held_out", job.network.exits)
    data = load_images(job.data, "test", job.network.input_size)
    write_features(job, run, load_backbone(job, run), data, folder, "test", views=1)
    test_features = open_features(folder, "test", job.network.exits)
    select, test = run_select_and_test(job, load_whole(job, run), held_out, test_features)
    metrics = measure(select, test, job)
    metrics["proof"] = prove(job, run, held_out, test_features)
    metrics["paper"] = _paper(job, run, held_out, test_features)
    if job.evaluate.recode_quality is not None:
        default = Control.model_validate(metrics["default_control"])
        metrics["recoded"] = measure_recoded(job, run, folder, data, test, default, job.evaluate.recode_quality)
    write_json(folder / "metrics.json", metrics)
    run.finish(STEP, job, started, select_images=len(select.labels_N), test_images=len(data))
    say(STEP, metrics["routing_verdict"])


def _paper(job: JobConfig, run: RunDirectory, held_out: Features, test: Features) -> dict[str, Any] | None:
    """The paper's own table, from its heads and routers on this backbone; None where the comparison leaves them out."""
    arm = next((arm for arm in list_arms(job, run) if arm.kind == "paper"), None)
    if arm is None:
        return None
    select, on_test = run_select_and_test(arm.job, load_whole(arm.job, arm.run), held_out, test)
    measured = measure(select, on_test, arm.job)
    return {name: measured[name] for name in ("table", "exits", "routing_verdict", "collapsed")}


def measure(select: Frames, test: Frames, job: JobConfig) -> dict[str, Any]:
    """Choices made on `select`, figures of both parts.

    The default control is the router's: the largest λ, at the configured τ, that costs no more accuracy than tolerated, with the
    configured confidence; where even the smallest λ costs more, the most accurate one. Default thresholds of entropy and
    confidence follow the same rule.
    """
    config, lambdas, router = job.evaluate, job.routers.lambdas, policies.ROUTER_NAMES[job.network.router_kind]
    full = policies.full_network(select)
    sweeps = _sweeps(select, config, lambdas)
    best = {policy: pick(select, sweeps[policy], config) for policy in ("router", "entropy", "confidence")}
    cost = policies.run_policy(select, best["router"]).mean_cost
    matched = _nearest_cost(select, sweeps["entropy"], cost)
    sweeps["router_threshold"] = [
        best["router"].model_copy(update={"threshold": round(index / (config.sweep_points - 1), 4)})
        for index in range(1, config.sweep_points)
    ]
    exits = len(test.costs.exit_macs)
    rows: list[tuple[str, str, Control | None]] = [
        *((f"Exit {exit} only", "exit", Control(policy="fixed", max_exit=exit)) for exit in range(1, exits + 1)),
        ("BranchyNet (entropy)", "entropy", best["entropy"]),
        (f"BranchyNet at the cost of {router}", "entropy", matched),
        ("Confidence", "confidence", best["confidence"]),
        (f"{router} (best)", "router", best["router"]),
    ]
    table = [
        _row("Full network", "full", None, full, policies.full_network(test)),
        *(_row(name, kind, c, policies.run_policy(select, c), policies.run_policy(test, c)) for name, kind, c in rows if c),
        _row("Random routing", "random", None, policies.random_exits(select), policies.random_exits(test)),
        _row("Oracle routing", "oracle", None, policies.oracle(select), policies.oracle(test)),
    ]
    hull = {part: policies.upper_hull(_fixed_points(frames)) for part, frames in (("select", select), ("test", test))}
    routed = policies.run_policy(test, best["router"])
    mixture = policies.on_hull(hull["test"], routed.mean_cost)
    return {
        "router_kind": job.network.router_kind,
        "note": "select: held-out images that neither heads nor routers saw; every choice is made there. test: reported only.",
        "rule": (
            f"best of a policy: the cheapest point {_bound(config)} the full network's accuracy on select, "
            "or the most accurate where none is"
        ),
        "lambdas": list(lambdas),
        "cost_ratios": test.costs.ratios,
        "nominal_costs": test.costs.nominal,
        "table": table,
        "exits": _exit_quality(select, test),
        "fixed_mixture_hull": hull,
        "over_fixed_mixture": round(routed.accuracy - mixture, 5),
        "collapsed": max(routed.exit_fractions) >= COLLAPSED,
        "routing_verdict": verdict(f"{router} (best)", best["router"], routed, mixture),
        "sweeps": {
            name: [_point(c, policies.run_policy(select, c), policies.run_policy(test, c)) for c in controls]
            for name, controls in sweeps.items()
        },
        "operating_points": [p.model_dump(mode="json") for p in operating_points(select, sweeps, lambdas)],
        "frontier": measure_frontier(select, best["router"]).model_dump(mode="json"),
        "drift_reference": exits_and_confidences(select, policies.choose_exits(select, best["router"])).model_dump(mode="json"),
        "default_control": best["router"].model_dump(mode="json"),
        "default_thresholds": {policy: control.threshold for policy, control in best.items()},
    }


def pick(select: Frames, candidates: list[Control], config: EvaluateConfig) -> Control:
    """The cheapest candidate that loses no more accuracy against the full network than tolerated; the most accurate where none.

    On frames like those of select, with the configured confidence: by the paired differences' mean and standard error, taken as
    normal. For the router this is the largest λ that still meets it. Equal costs go to the more accurate.
    """
    deviations = NormalDist().inv_cdf(config.confidence)
    full_right_N = (select.full_logits_NC.argmax(1) == select.labels_N).double()
    outcomes, enough = [], []
    for control in candidates:
        exit_N = policies.choose_exits(select, control)
        outcome = select.outcome(exit_N)
        gain_N = select.right.gather(1, exit_N[:, None] - 1).squeeze(1).double() - full_right_N
        outcomes.append((control, outcome))
        if gain_N.mean() - deviations * gain_N.std() / len(gain_N) ** 0.5 >= -config.tolerated_loss:
            enough.append((control, outcome))
    if enough:
        return min(enough, key=lambda pair: (pair[1].mean_cost, -pair[1].accuracy))[0]
    return max(outcomes, key=lambda pair: (pair[1].accuracy, -pair[1].mean_cost))[0]


def measure_frontier(select: Frames, control: Control) -> Frontier:
    """What the default control gives at every other λ, from 0 to where everybody leaves at exit 1."""
    full_right_N = select.full_logits_NC.argmax(1) == select.labels_N
    points = []
    for lambda_ in (0.0, *(round(value, 6) for value in torch.logspace(-3, 2, 101, dtype=torch.double).tolist())):
        exit_N = policies.choose_exits(select, control.model_copy(update={"lambda_": lambda_}))
        right_N = select.right.gather(1, exit_N[:, None] - 1).squeeze(1)
        outcome = select.outcome(exit_N)
        points.append(
            FrontierPoint(
                lambda_=lambda_,
                mean_cost=round(outcome.mean_cost, 6),
                accuracy=round(outcome.accuracy, 6),
                exit_fractions=tuple(round(fraction, 6) for fraction in outcome.exit_fractions),
                losses=int((full_right_N & ~right_N).sum()),
            )
        )
    return Frontier(points=tuple(points), frames=len(select.labels_N))


def operating_points(select: Frames, sweeps: dict[str, list[Control]], lambdas: Sequence[float]) -> list[OperatingPoint]:
    """A handful of points of each policy that spans its costs, each with what it gave on select."""
    router = [c for c in sweeps["router"] if c.lambda_ in lambdas]
    fixed = [Control(policy="fixed", max_exit=exit) for exit in range(1, len(select.costs.exit_macs) + 1)]
    chosen = [*router, *_spread(select, sweeps["entropy"]), *_spread(select, sweeps["confidence"]), *fixed]
    points = []
    for control in chosen:
        outcome = policies.run_policy(select, control).rounded()
        outcome.pop("nominal_cost")
        points.append(OperatingPoint(control=control, **outcome))
    return points


def verdict(name: str, control: Control, outcome: Outcome, mixture: float) -> str:
    """One plain sentence on whether the best router routes at all, and whether it beats mixing fixed exits at its cost."""
    share, exit = max((fraction, exit) for exit, fraction in enumerate(outcome.exit_fractions, start=1))
    gain = 100 * (outcome.accuracy - mixture)
    histogram = ", ".join(f"{100 * fraction:.1f}%" for fraction in outcome.exit_fractions)
    opening = (
        f"{name} at λ = {control.lambda_:g} has collapsed: it sends {100 * share:.1f}% of the test frames out at exit {exit}"
        if share >= COLLAPSED
        else f"{name} at λ = {control.lambda_:g} spreads test frames over the exits"
    )
    return (
        f"{opening} (exits 1…{len(outcome.exit_fractions)}: {histogram}); its accuracy {outcome.accuracy:.4f} at cost "
        f"{outcome.mean_cost:.4f} is {abs(gain):.2f} points {'above' if gain >= 0 else 'below'} the best mixture of fixed exits."
    )


def _sweeps(select: Frames, config: EvaluateConfig, lambdas: Sequence[float]) -> dict[str, list[Control]]:
    """Controls of each policy: λ on the grid, between and beyond it; thresholds at quantiles of the scores on select."""
    between = [round((low + high) / 2, 6) for low, high in pairwise(lambdas)]
    beyond = [lambdas[-1] * factor for factor in (1.5, 2, 5, 20, 100)]
    probabilities_NEC = select.logits_NKC[:, :-1].softmax(-1)
    scores = {"entropy": normalised_entropy(probabilities_NEC).flatten(), "confidence": confidence(probabilities_NEC).flatten()}
    dense = [round(value, 6) for value in torch.logspace(-3, 1, 41, dtype=torch.double).tolist()]
    every = sorted({*lambdas, *between, *beyond, *dense})
    router = [Control(policy="router", lambda_=value, threshold=config.router_threshold) for value in every]
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


def _bound(config: EvaluateConfig) -> str:
    loss = config.tolerated_loss
    bound = f"at least {-loss:.3g} above" if loss < 0 else f"at most {loss:.3g} below"
    return bound if config.confidence == 0.5 else f"that is, with confidence {config.confidence:g}, {bound}"


def _exit_quality(select: Frames, test: Frames) -> list[dict[str, Any]]:
    return [
        {
            "exit": exit,
            "select": quality(select.logits_NKC[:, exit - 1], select.labels_N).rounded(),
            "test": quality(test.logits_NKC[:, exit - 1], test.labels_N).rounded(),
        }
        for exit in range(1, len(test.costs.exit_macs) + 1)
    ]


def _point(control: Control, select: Outcome, test: Outcome) -> dict[str, Any]:
    return {"control": control.model_dump(mode="json"), "select": select.rounded(), "test": test.rounded()}


def _row(name: str, kind: str, control: Control | None, select: Outcome, test: Outcome) -> dict[str, Any]:
    settings = None if control is None else control.model_dump(mode="json")
    return {"name": name, "kind": kind, "control": settings, "select": select.rounded(), "test": test.rounded()}
