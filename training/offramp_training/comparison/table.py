"""The calibrated logits of many frames at every exit, and what leaving at given exits gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp_training.policies import Outcome


@dataclass(frozen=True, slots=True)
class ExitTable:
    """N frames, K ≥ 2 exits, C classes. Raises ValueError where shapes do not agree or costs do not ascend."""

    logits_NKC: Tensor
    """Calibrated."""
    labels_N: Tensor
    cost_K: Tensor
    """Cost ratio of every exit, double precision, strictly ascending."""

    def __post_init__(self) -> None:
        frames, exits, _ = self.logits_NKC.shape
        if self.labels_N.shape != (frames,) or self.cost_K.shape != (exits,):
            raise ValueError(
                f"logits of {frames} frames at {exits} exits do not go with {tuple(self.labels_N.shape)} labels "
                f"and {tuple(self.cost_K.shape)} costs"
            )
        if exits < 2:
            raise ValueError("a single exit leaves nothing to compare")
        if not bool((self.cost_K.diff() > 0).all()):
            raise ValueError(f"costs must ascend strictly, but are {self.cost_K.tolist()}")

    @property
    def exits(self) -> int:
        """K, the number of exits."""
        return len(self.cost_K)

    @property
    def right(self) -> Tensor:
        """Whether each exit's guess is right, bool, shape (N, K)."""
        return self.logits_NKC.argmax(2) == self.labels_N[:, None]

    @property
    def probabilities(self) -> Tensor:
        """Class probabilities of every exit, double precision, shape (N, K, C)."""
        return torch.softmax(self.logits_NKC.double(), 2)

    def rows(self, index_N: Tensor) -> ExitTable:
        """Some of the frames."""
        return ExitTable(self.logits_NKC[index_N], self.labels_N[index_N], self.cost_K)

    def leaving(self, exit_N: Tensor) -> Tensor:
        """Each frame's distribution over exits when it leaves at exit_N (1…K) for certain, double precision, shape (N, K)."""
        return F.one_hot(exit_N - 1, self.exits).double()

    def outcome(self, leaving_NK: Tensor) -> Outcome:
        """What leaving at each exit with these probabilities gives: the expectation, not a draw."""
        fraction_K = leaving_NK.mean(0)
        nominal_K = torch.arange(1, self.exits + 1, dtype=torch.double) / self.exits
        return Outcome(
            float(self.expected_right(leaving_NK).mean()),
            float(fraction_K @ self.cost_K),
            float(fraction_K @ nominal_K),
            tuple(fraction_K.tolist()),
        )

    def expected_right(self, leaving_NK: Tensor) -> Tensor:
        """Probability that each frame's answer is right, shape (N,)."""
        return (leaving_NK * self.right).sum(1)
