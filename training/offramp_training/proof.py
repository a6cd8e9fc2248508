"""Every way to choose exits at the same mean costs, over the seeds of heads and routers, with paired-bootstrap intervals.

Everything is fitted on the fit part and chosen on the select part of the held-out images, save that cross-fitting uses both
for both; the test split only tells what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from offramp_model.bundle import Control
from offramp_training.arms import list_arms
from offramp_training.assembly import load_whole
from offramp_training.cache import Features
from offramp_training.comparison.at_cost import AtCost, at_costs
from offramp_training.comparison.bootstrap import over_replicas, paired_bootstrap, paired_bootstraps
from offramp_training.config import JobConfig
from offramp_training.contenders import Part, list_rules
from offramp_training.parts import run_fit, run_select_and_test
from offramp_training.policies import ROUTER_NAMES, Frames, choose_exits, full_network, run_policy
from offramp_training.run_directory import RunDirectory, progress_bar


def prove(job: JobConfig, run: RunDirectory, held_out: Features, test: Features) -> dict[str, Any]:
    """Figures at each cost of `proof.costs`, differences from our own routers, and where the full network's accuracy is kept."""
    arms = list_arms(job, run)
    results: dict[str, list[list[AtCost | None]]] = {}
    kept = []
    with progress_bar("comparing", len(arms)) as advance:
        for arm in arms:
            network = load_whole(arm.job, arm.run)
            fit = Part.of(run_fit(arm.job, network, held_out))
            select, on_test = map(Part.of, run_select_and_test(arm.job, network, held_out, test))
            for rule in list_rules(arm, fit, held_out.views, select, on_test):
                points = at_costs(rule, select.table, on_test.table, job.proof.costs)
                results.setdefault(rule.name, []).append(points)
            if arm.kind == "own":
                kept.append(_keep(select.frames, on_test.frames))
            advance(1)
    own = ROUTER_NAMES[job.network.router_kind]
    return {
        "costs": list(job.proof.costs),
        "replicas": job.proof.replicas,
        "own": own,
        "methods": {name: [_summary(column) for column in zip(*replicas, strict=True)] for name, replicas in results.items()},
        "own_minus": {name: _differences(results[own], replicas, job.seed) for name, replicas in results.items() if name != own},
        "kept": _summarise_kept(kept, job.seed),
    }


def _summary(column: Sequence[AtCost | None]) -> dict[str, Any] | None:
    """One method at one cost over the replicas; None where a replica can't have that cost."""
    points = [point for point in column if point is not None]
    if len(points) < len(column):
        return None

    def over(value: Callable[[AtCost], float]) -> tuple[float, float | None]:
        summary = over_replicas(torch.tensor([value(point) for point in points]))
        return round(summary.mean, 5), None if summary.deviation is None else round(summary.deviation, 5)

    accuracy, deviation = over(lambda point: point.test.accuracy)
    return {
        "select_accuracy": over(lambda point: point.select.accuracy)[0],
        "test_accuracy": accuracy,
        "deviation": deviation,
        "test_cost": over(lambda point: point.test.mean_cost)[0],
    }


def _differences(
    own: Sequence[Sequence[AtCost | None]], other: Sequence[Sequence[AtCost | None]], seed: int
) -> list[dict[str, Any] | None]:
    """Ours less another method's accuracy on test at each cost, with a 95 % interval over frames."""
    pairs = {}
    for index, (ours, theirs) in enumerate(zip(zip(*own, strict=True), zip(*other, strict=True), strict=True)):
        if all(point is not None for point in (*ours, *theirs)):
            pairs[index] = (torch.stack([p.right_N for p in ours if p]), torch.stack([p.right_N for p in theirs if p]))
    differences = dict(zip(pairs, paired_bootstraps(list(pairs.values()), seed), strict=True)) if pairs else {}
    return [_rounded(asdict(differences[i])) if i in differences else None for i in range(len(own[0]))]


@dataclass(frozen=True, slots=True)
class _Kept:
    """The cheapest λ at which a replica keeps the plain full network's accuracy on select."""

    lambda_: float
    select_cost: float
    test_cost: float
    right_N: Tensor
    full_right_N: Tensor


def _keep(select: Frames, test: Frames) -> _Kept | None:
    floor = full_network(select).accuracy
    for value in [*torch.logspace(3, -4, 281, dtype=torch.double).tolist(), 0.0]:
        control = Control(policy="router", lambda_=value)
        chosen = run_policy(select, control)
        if chosen.accuracy >= floor:
            exit_N = choose_exits(test, control)
            return _Kept(
                value,
                chosen.mean_cost,
                test.outcome(exit_N).mean_cost,
                test.right.gather(1, exit_N[:, None] - 1).squeeze(1).double(),
                (test.full_logits_NC.argmax(1) == test.labels_N).double(),
            )
    return None


def _summarise_kept(kept: Sequence[_Kept | None], seed: int) -> dict[str, Any] | None:
    """Costs and test accuracy beside the full network's; None where a replica can't keep it at any λ."""
    found = [each for each in kept if each is not None]
    if len(found) < len(kept):
        return None
    right_RN, full_RN = torch.stack([each.right_N for each in found]), torch.stack([each.full_right_N for each in found])
    return {
        "lambdas": [round(each.lambda_, 5) for each in found],
        "select_costs": [round(each.select_cost, 5) for each in found],
        "test_costs": [round(each.test_cost, 5) for each in found],
        "test_accuracies": [round(value, 5) for value in right_RN.mean(1).tolist()],
        "full_test_accuracy": round(float(full_RN[0].mean()), 5),
        "minus_full": _rounded(asdict(paired_bootstrap(right_RN, full_RN, seed))),
    }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else round(value, 5) for name, value in values.items()}
