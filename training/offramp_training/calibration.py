"""How far a classifier's probabilities can be believed, and the temperature that mends them (Guo et al. 2017)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BISECTIONS = 30


@dataclass(frozen=True, slots=True)
class Quality:
    """Accuracy in 0…1, negative log-likelihood in nats a frame, expected calibration error in 0…1, AUROC of the confidence."""

    accuracy: float
    nll: float
    ece: float
    auroc: float | None
    """Of the confidence as a sign of being right; None where all guesses are right or all wrong."""

    def rounded(self) -> dict[str, float | None]:
        """For a result file."""
        return {name: None if value is None else round(value, 5) for name, value in asdict(self).items()}


def quality(logits_NC: Tensor, labels_N: Tensor) -> Quality:
    """Measure class logits against the truth."""
    right_N = logits_NC.argmax(1) == labels_N
    return Quality(
        float(right_N.double().mean()),
        float(F.cross_entropy(logits_NC, labels_N)),
        expected_calibration_error(logits_NC, labels_N),
        auroc(logits_NC.double().softmax(1).amax(1), right_N),
    )


def expected_calibration_error(logits_NC: Tensor, labels_N: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence, weighted by their frames."""
    confidence_N, guess_N = logits_NC.double().softmax(1).max(1)
    gap_N = (guess_N == labels_N).double() - confidence_N
    bin_N = (confidence_N * bins).long().clamp_max(bins - 1)
    gap_by_bin = torch.zeros(bins, dtype=torch.double).index_add_(0, bin_N, gap_N)
    return float(gap_by_bin.abs().sum() / len(labels_N))


def auroc(score_N: Tensor, right_N: Tensor) -> float | None:
    """Chance that a right guess scores above a wrong one, ties counting half; None where all are right or all wrong."""
    right_N = right_N.bool()
    values, value_N = torch.unique(score_N, return_inverse=True)  # ascending
    right_by_value = torch.bincount(value_N[right_N], minlength=len(values)).double()
    wrong_by_value = torch.bincount(value_N[~right_N], minlength=len(values)).double()
    pairs = float(right_by_value.sum() * wrong_by_value.sum())
    wrong_below = wrong_by_value.cumsum(0) - wrong_by_value
    return float(right_by_value @ (wrong_below + wrong_by_value / 2)) / pairs if pairs else None


def fit_temperature(logits_NC: Tensor, labels_N: Tensor) -> float:
    """The divisor of the logits that makes the truth likeliest, from e⁻³ to e³.

    The likelihood is concave in its inverse, with its top where the logit that the softmax expects is the one that the truth has
    on average: so that is bisected. A set on which every guess is right asks for zero, one of pure noise for infinity.
    """
    logits_NC = logits_NC.double()
    truth = float(logits_NC.gather(1, labels_N[:, None]).mean())
    low, high = -3.0, 3.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        expected = float(((logits_NC / math.exp(middle)).softmax(1) * logits_NC).sum(1).mean())
        low, high = (middle, high) if expected > truth else (low, middle)
    return math.exp((low + high) / 2)
