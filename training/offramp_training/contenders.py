"""Who is compared: the rules on each arm's heads, of which some have to be fitted first."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offramp_training.arms import Arm
from offramp_training.comparison.crossfitting import cross_fitted
from offramp_training.comparison.film import FilmRouter
from offramp_training.comparison.fitting import Fitting
from offramp_training.comparison.halting import HaltingNetwork
from offramp_training.comparison.induction import BackwardInduction
from offramp_training.comparison.rules import ConfidenceThreshold, EntropyThreshold, ExitRule, FixedExit, Patience
from offramp_training.comparison.scores import LearnedScores
from offramp_training.comparison.table import ExitTable
from offramp_training.comparison.trained import RouterRule
from offramp_training.comparison.utility import other_utility
from offramp_training.policies import ROUTER_NAMES, Frames


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the images under one arm's network."""

    frames: Frames
    table: ExitTable

    @classmethod
    def of(cls, frames: Frames) -> Part:
        """The frames with their table."""
        costs_K = torch.tensor(frames.costs.ratios, dtype=torch.double)
        return cls(frames, ExitTable(frames.logits_NKC, frames.labels_N, costs_K))


def list_rules(arm: Arm, fit: Part, views: int, select: Part, test: Part) -> list[ExitRule]:
    """What is compared on an arm's heads; the fit part holds each image in so many views, one after the other."""
    outputs = [(part.table, part.frames.router_outputs) for part in (select, test)]
    if arm.kind == "bank":
        return [RouterRule("EM bank", select.frames.rule, outputs)]
    if arm.kind == "paper":
        return [EntropyThreshold("Entropy, paper's heads"), RouterRule("EM bank, paper's heads", select.frames.rule, outputs)]
    own = RouterRule(ROUTER_NAMES[arm.job.network.router_kind], select.frames.rule, outputs)
    return [
        FixedExit(),
        EntropyThreshold(),
        ConfidenceThreshold(),
        Patience(),
        *_fitted(arm, fit.table, views, select.table, test.table),
        own,
    ]


def _fitted(arm: Arm, fit: ExitTable, views: int, select: ExitTable, test: ExitTable) -> list[ExitRule]:
    job, seed = arm.job, arm.job.fit_seed
    if not job.proof.rule_steps:
        return []
    config = Fitting(steps=job.proof.rule_steps)
    longer = Fitting(steps=2 * job.proof.rule_steps)
    rules: list[ExitRule] = [
        LearnedScores(fit, select, seed, config),
        HaltingNetwork(fit, seed, longer),
        FilmRouter(fit, seed, longer),
        BackwardInduction(fit, seed, config),
    ]
    if job.network.router_kind == "forecast":
        rules += [cross_fitted(job, fit, views, select, [test]), other_utility(job, fit, views, [select, test])]
    return rules
