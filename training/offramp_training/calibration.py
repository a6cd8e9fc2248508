"""How far a classifier's probabilities can be believed, and the temperature that mends them (Guo et al. 2017)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Quality:
    """Accuracy in 0…1, negative log-likelihood in nats a frame, expected calibration error in 0…1."""

    accuracy: float
    nll: float
    ece: float

    def rounded(self) -> dict[str, float]:
        """For a result file."""
        return {name: round(value, 5) for name, value in asdict(self).items()}


def quality(logits_NC: Tensor, labels_N: Tensor) -> Quality:
    """Measure class logits against the truth."""
    right_N = logits_NC.argmax(1) == labels_N
    return Quality(
        float(right_N.double().mean()),
        float(F.cross_entropy(logits_NC, labels_N)),
        expected_calibration_error(logits_NC, labels_N),
    )


def expected_calibration_error(logits_NC: Tensor, labels_N: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence, weighted by their frames."""
    confidence_N, guess_N = logits_NC.double().softmax(1).max(1)
    gap_N = (guess_N == labels_N).double() - confidence_N
    bin_N = (confidence_N * bins).long().clamp_max(bins - 1)
    gap_by_bin = torch.zeros(bins, dtype=torch.double).index_add_(0, bin_N, gap_N)
    return float(gap_by_bin.abs().sum() / len(labels_N))


def fit_temperature(logits_NC: Tensor, labels_N: Tensor) -> float:
    """The divisor of the logits that makes the truth likeliest; convex in its inverse, found by L-BFGS on its logarithm."""
    log_temperature = torch.zeros((), dtype=torch.double, requires_grad=True)
    logits_NC = logits_NC.double()
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits_NC / log_temperature.exp(), labels_N)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    # a set on which every guess is right asks for a temperature of zero, and one of pure noise for an infinite one
    return float(log_temperature.detach().clamp(-3, 3).exp())
