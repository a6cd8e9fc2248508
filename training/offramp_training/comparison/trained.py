"""Trained routers as a rule: their own halting logits, at every λ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from offramp_model.routing import HaltingRule
from offramp_training.comparison.rules import first_exit
from offramp_training.comparison.table import ExitTable


class RouterRule:
    """Leave where σ(s_k(λ)) ≥ 0.5; the knob is λ. Knows what the routers said of its frames by their table."""

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
