"""What every exit rule is, and the rules that need no fitting: fixed exits, entropy, confidence and patience."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from offramp_model.routing import confidence, normalised_entropy
from offramp_training.comparison.table import ExitTable

QUANTILES = 65
"""Settings of a threshold that a sweep goes through, evenly spaced in the frames that they move."""


class ExitRule(Protocol):
    """A way to choose exits, already fitted, with one knob that trades accuracy for compute."""

    @property
    def name(self) -> str:
        """What tables and figures call it."""
        ...

    @property
    def continuous(self) -> bool:
        """Whether values between two knobs mean something too."""
        ...

    def knobs(self, select: ExitTable) -> list[float]:
        """Settings from one end of the rule's range to the other, ascending."""
        ...

    def exits(self, table: ExitTable, knob: float) -> Tensor:
        """Exit of each frame, 1…K, shape (N,)."""
        ...


def first_exit(leaves_NE: Tensor) -> Tensor:
    """The first exit that lets each frame go, from bools of exits 1…K−1; K where none does. Shape (N,)."""
    always_N1 = torch.ones_like(leaves_NE[:, :1])
    return torch.cat([leaves_NE, always_N1], 1).int().argmax(1) + 1


class FixedExit:
    """Everyone leaves at the exit that the knob names. Mixtures of its settings are the hull of fixed mixtures."""

    name = "Fixed mixtures"
    continuous = False

    def knobs(self, select: ExitTable) -> list[float]:
        """1…K."""
        return [float(exit) for exit in range(1, select.exits + 1)]

    def exits(self, table: ExitTable, knob: float) -> Tensor:
        """The same exit for all, shape (N,)."""
        return torch.full((len(table.labels_N),), int(knob))


class EntropyThreshold:
    """BranchyNet (Teerapittayanon et al. 2016, arXiv 1709.01686): leave where entropy / ln(classes) ≤ τ; the knob is τ."""

    continuous = True

    def __init__(self, name: str = "Entropy") -> None:
        self.name = name

    def knobs(self, select: ExitTable) -> list[float]:
        """0, quantiles of the early exits' entropies, 1."""
        return _quantiles(normalised_entropy(select.probabilities[:, :-1]))

    def exits(self, table: ExitTable, knob: float) -> Tensor:
        """Never later for a larger τ, shape (N,)."""
        return first_exit(normalised_entropy(table.probabilities[:, :-1]) <= knob)


class ConfidenceThreshold:
    """Leave where the largest class probability ≥ τ; the knob is τ."""

    name = "Max-softmax"
    continuous = True

    def knobs(self, select: ExitTable) -> list[float]:
        """0, quantiles of the early exits' confidences, 1."""
        return _quantiles(confidence(select.probabilities[:, :-1]))

    def exits(self, table: ExitTable, knob: float) -> Tensor:
        """Never earlier for a larger τ, shape (N,)."""
        return first_exit(confidence(table.probabilities[:, :-1]) >= knob)


class Patience:
    """PABEE (Zhou et al. 2020, arXiv 2006.04152): leave when as many exits in a row agree as the patience says.

    The knob counts the exits that agree, the present one included: 1 leaves at exit 1, K at exit K. That is one more than
    the paper's patience, which counts the agreements between them.
    """

    name = "Patience"
    continuous = False

    def knobs(self, select: ExitTable) -> list[float]:
        """1…K."""
        return [float(patience) for patience in range(1, select.exits + 1)]

    def exits(self, table: ExitTable, knob: float) -> Tensor:
        """Never earlier for more patience, shape (N,)."""
        guess_NK = table.logits_NKC.argmax(2)
        run_N = torch.ones_like(guess_NK[:, 0])
        leaves = [run_N >= knob]
        for k in range(1, table.exits - 1):
            run_N = torch.where(guess_NK[:, k] == guess_NK[:, k - 1], run_N + 1, 1)
            leaves.append(run_N >= knob)
        return first_exit(torch.stack(leaves, 1))


def _quantiles(score_NE: Tensor) -> list[float]:
    quantile_Q = score_NE.flatten().quantile(torch.linspace(0, 1, QUANTILES, dtype=score_NE.dtype))
    return sorted({0.0, *quantile_Q.clamp(0, 1).tolist(), 1.0})
