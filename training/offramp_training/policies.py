"""Exit policies run over cached features of many frames at once, with the very functions that the server decides with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from offramp_model.bundle import Control
from offramp_model.costs import CostTable, cost_table
from offramp_model.network import MultiExitNetwork
from offramp_model.routing import Controls, HaltingRule, Policy, decide, halting_rule

ROUTER_NAMES = {"bank": "EM routing", "forecast": "Forecast routing"}
"""What tables and figures call each kind of router."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy gives on a set of frames; costs are mean shares of the plain network's MACs, measured and nominal."""

    accuracy: float
    mean_cost: float
    nominal_cost: float
    exit_fractions: tuple[float, ...]

    def rounded(self) -> dict[str, Any]:
        """For a result file."""
        return {
            "accuracy": round(self.accuracy, 5),
            "mean_cost": round(self.mean_cost, 5),
            "nominal_cost": round(self.nominal_cost, 5),
            "exit_fractions": [round(fraction, 5) for fraction in self.exit_fractions],
        }


@dataclass(frozen=True, slots=True)
class Frames:
    """Everything that decisions about N frames need: logits of every exit, what its router says, and the plain network's."""

    logits_NKC: Tensor
    """Calibrated class logits of every exit."""
    router_outputs: list[Tensor]
    """For each exit but the last, one row a frame."""
    full_logits_NC: Tensor
    labels_N: Tensor
    rule: HaltingRule
    costs: CostTable

    @property
    def right(self) -> Tensor:
        """Whether each exit's guess is right, shape (N, K)."""
        return self.logits_NKC.argmax(-1) == self.labels_N[:, None]

    def outcome(self, exit_N: Tensor) -> Outcome:
        """What leaving at these exits (1…K) gives."""
        exits = len(self.costs.exit_macs)
        fractions = torch.bincount(exit_N - 1, minlength=exits).double() / len(exit_N)
        right_N = self.right.gather(1, (exit_N - 1)[:, None])
        ratios, nominal = (torch.tensor(c, dtype=torch.double) for c in (self.costs.ratios, self.costs.nominal))
        return Outcome(
            float(right_N.double().mean()), float(fractions @ ratios), float(fractions @ nominal), tuple(fractions.tolist())
        )


@torch.no_grad()
def run_exits(network: MultiExitNetwork, statistics: Sequence[Tensor], labels_N: Tensor) -> Frames:
    """Heads and routers of the whole network on cached statistics."""
    costs = cost_table(network.config)
    logits_NKC, router_outputs = network.exits(statistics)
    return Frames(
        logits_NKC=logits_NKC,
        router_outputs=router_outputs,
        full_logits_NC=network.classifier(statistics[-1]),
        labels_N=labels_N,
        rule=halting_rule(network.config, costs.ratios),
        costs=costs,
    )


def choose_exits(frames: Frames, control: Control) -> Tensor:
    """Exit of each frame, 1…K, under one control, shape (N,)."""
    count, exits = len(frames.labels_N), len(frames.costs.exit_macs)
    controls = Controls(
        policy_N=torch.full((count,), Policy[control.policy.upper()]),
        lambda_N=torch.full((count,), control.lambda_),
        threshold_NE=torch.full((count, exits - 1), control.threshold),
        min_exit_N=torch.ones(count, dtype=torch.long),
        max_exit_N=torch.full((count,), control.max_exit or exits),
    )
    exit_N = torch.full((count,), exits)
    for exit in range(exits - 1, 0, -1):  # an earlier exit that lets a frame go overrules the later ones
        decision = decide(exit, frames.logits_NKC[:, exit - 1], frames.router_outputs[exit - 1], controls, frames.rule)
        exit_N[decision.leaves_N] = exit
    return exit_N


def run_policy(frames: Frames, control: Control) -> Outcome:
    """What one control gives."""
    return frames.outcome(choose_exits(frames, control))


def oracle(frames: Frames) -> Outcome:
    """The cheapest exit that is right; where none is, exit 1, since no deeper one would help."""
    return frames.outcome(frames.right.int().argmax(1) + 1)


def random_exits(frames: Frames) -> Outcome:
    """Each exit with probability 1/K: the expectation, not a draw."""
    exits = len(frames.costs.exit_macs)
    ratios, nominal = frames.costs.ratios, frames.costs.nominal
    accuracy = float(frames.right.double().mean())
    return Outcome(accuracy, sum(ratios) / exits, sum(nominal) / exits, (1 / exits,) * exits)


def full_network(frames: Frames) -> Outcome:
    """The plain network with its own classifier, at cost 1 by definition."""
    exits = len(frames.costs.exit_macs)
    accuracy = float((frames.full_logits_NC.argmax(1) == frames.labels_N).double().mean())
    return Outcome(accuracy, 1.0, 1.0, (0.0,) * (exits - 1) + (1.0,))


def upper_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Upper concave hull of (cost, accuracy) points from the cheapest to the most accurate: what random mixtures reach."""
    hull: list[tuple[float, float]] = []
    for point in sorted(points):
        if hull and point[1] <= hull[-1][1]:
            continue  # dearer and no better
        if hull and point[0] == hull[-1][0]:
            hull.pop()
        while len(hull) > 1 and _turns_left(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _turns_left(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) >= (b[1] - a[1]) * (c[0] - a[0])


def on_hull(hull: Sequence[tuple[float, float]], cost: float) -> float:
    """Accuracy of the best mixture of fixed exits at a mean cost; of the ends outside them."""
    for (low, low_accuracy), (high, high_accuracy) in pairwise(hull):
        if low <= cost <= high:
            return low_accuracy + (high_accuracy - low_accuracy) * ((cost - low) / (high - low))
    return hull[0][1] if cost < hull[0][0] else hull[-1][1]


def area_under(points: Sequence[tuple[float, float]], low: float, high: float) -> float:
    """Mean accuracy over costs in [low, high] of the best mixtures of (cost, accuracy) points, the cheapest of them at `low`."""
    hull = [(low, min(points)[1]), *upper_hull(points)]
    hull.append((high, hull[-1][1]))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(hull)) / (high - low)
