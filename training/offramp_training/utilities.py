"""What leaving at an exit is worth, on a scale from 0 to 1: what forecast routers forecast, and what λ is weighed against."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Utility = Literal["probability", "log_likelihood"]

LEAST_LIKELIHOOD = 0.05
"""Likelihoods below count as this: else the one frame that an exit is surely wrong on would weigh as much as many others."""
SPAN = -math.log(LEAST_LIKELIHOOD)
"""Nats from the least to the largest log-likelihood."""
LAMBDA_UNITS: dict[Utility, str] = {"probability": "accuracy", "log_likelihood": f"{SPAN:.1f} nats"}
"""What λ = 1 charges for one full network's compute."""


def utilities(kind: Utility, logits_NKC: Tensor, labels_N: Tensor) -> Tensor:
    """What each exit is worth to a frame whose label is known, in [0, 1], single precision, shape (N, K).

    `probability`: 1 where the exit is right, so that the mean over frames is its probability of being right;
    `log_likelihood`: 1 + log p / SPAN, p the label's probability under the exit, at least LEAST_LIKELIHOOD.
    """
    if kind == "probability":
        return (logits_NKC.argmax(-1) == labels_N[:, None]).float()
    return 1 + log_likelihoods(logits_NKC, labels_N) / SPAN


def log_likelihoods(logits_NKC: Tensor, labels_N: Tensor) -> Tensor:
    """log p(y|x, z=k) in nats, p at least LEAST_LIKELIHOOD, single precision, shape (N, K)."""
    label_NK1 = labels_N[:, None, None].expand(-1, logits_NKC.shape[1], 1)
    log_likelihood_NK = F.log_softmax(logits_NKC.float(), -1).gather(2, label_NK1).squeeze(2)
    return log_likelihood_NK.clamp_min(-SPAN)
