"""Every way to choose exits at the same mean costs, over the seeds of heads and routers, with paired-bootstrap intervals.

Everything is fitted on the fit part and chosen on the select part of the held-out images; the test split only tells what came
of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from offramp_model.bundle import Control
from offramp_model.network import MultiExitResNet
from offramp_model.routing import HaltingRule
from offramp_training.arms import Arm, list_arms
from offramp_training.assembly import load_whole
from offramp_training.cache import Features
from offramp_training.comparison.at_cost import AtCost, at_costs
from offramp_training.comparison.bootstrap import over_replicas, paired_bootstrap, paired_bootstraps
from offramp_training.comparison.halting import HaltingNetwork
from offramp_training.comparison.induction import BackwardInduction
from offramp_training.comparison.rules import ConfidenceThreshold, EntropyThreshold, ExitRule, FixedExit, Patience, first_exit
from offramp_training.comparison.scores import LearnedScores
from offramp_training.comparison.table import ExitTable
from offramp_training.config import JobConfig
from offramp_training.heads import fit_and_select
from offramp_training.policies import ROUTER_NAMES, Frames, choose_exits, full_network, run_exits, run_policy
from offramp_training.run_directory import RunDirectory, progress_bar


class RouterRule:
    """Trained routers as a rule: leave where σ(s_k(λ)) ≥ 0.5; the knob is λ. Knows its frames' router outputs by table."""

    continuous = True

    def __init__(self, name: str, rule: HaltingRule, outputs: Sequence[tuple[ExitTable, list[Tensor]]]) -> None:
        self.name, self._rule, self._outputs = name, rule, outputs

    def knobs(self, select: ExitTable) -> list[float]:
        """Zero, and 10⁻⁴ to 10³ in even steps of the logarithm."""
        return [0.0, *torch.logspace(-4, 3, 141, dtype=torch.double).tolist()]

    def exits(self, table: ExitTable, knob: float) -> Tensor:
        """Exits at λ = knob, shape (N,)."""
        outputs = next(outputs for known, outputs in self._outputs if known is table)
        lambda_N = torch.full((len(table.labels_N),), knob)
        logits = [self._rule.logit(exit, output, lambda_N) for exit, output in enumerate(outputs, start=1)]
        return first_exit(torch.stack(logits, 1) >= 0)


@dataclass(frozen=True, slots=True)
class _Part:
    """One part of the images under one arm's network."""

    frames: Frames
    table: ExitTable


def prove(job: JobConfig, run: RunDirectory, held_out: Features, test: Features) -> dict[str, Any]:
    """Figures at each cost of `proof.costs`, differences from our own routers, and where the full network's accuracy is kept."""
    arms = list_arms(job, run)
    results: dict[str, list[list[AtCost | None]]] = {}
    kept = []
    with progress_bar("comparing", len(arms)) as advance:
        for arm in arms:
            network = load_whole(arm.job, arm.run)
            fit, select, on_test = _parts(arm, network, held_out, test)
            for rule in _rules(arm, fit, select, on_test):
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


def _parts(arm: Arm, network: MultiExitResNet, held_out: Features, test: Features) -> tuple[_Part, _Part, _Part]:
    fit_N, select_N = fit_and_select(arm.job, held_out)
    views = held_out.labels_N[fit_N].repeat_interleave(held_out.views)
    everything_N = torch.arange(len(test.labels_N))
    fit = run_exits(network, held_out.all_views(fit_N), views)
    select = run_exits(network, held_out.plain(select_N), held_out.labels_N[select_N])
    on_test = run_exits(network, test.plain(everything_N), test.labels_N)
    fit_part, select_part, test_part = (_Part(frames, _table(frames)) for frames in (fit, select, on_test))
    return fit_part, select_part, test_part


def _table(frames: Frames) -> ExitTable:
    return ExitTable(frames.logits_NKC, frames.labels_N, torch.tensor(frames.costs.ratios, dtype=torch.double))


def _rules(arm: Arm, fit: _Part, select: _Part, test: _Part) -> list[ExitRule]:
    """What is compared on an arm's heads."""
    outputs = [(part.table, part.frames.router_outputs) for part in (select, test)]
    seed = arm.job.fit_seed
    if arm.kind == "bank":
        return [RouterRule("EM bank", select.frames.rule, outputs)]
    if arm.kind == "paper":
        return [EntropyThreshold("Entropy, paper's heads"), RouterRule("EM bank, paper's heads", select.frames.rule, outputs)]
    return [
        FixedExit(),
        EntropyThreshold(),
        ConfidenceThreshold(),
        Patience(),
        LearnedScores(fit.table, select.table, seed),
        HaltingNetwork(fit.table, seed),
        BackwardInduction(fit.table, seed),
        RouterRule(ROUTER_NAMES[arm.job.network.router_kind], select.frames.rule, outputs),
    ]


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
