"""Epochs without some of the images that a network already knows: InfoBatch (Qin et al. 2024, arXiv:2303.04947)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

FULL_SHARE = 0.125
"""Share of the epochs, at the end, that see every image: what is left of the pruning's bias vanishes in them. Rounded down: of
fewer than eight epochs none does."""


def prune(losses_N: Tensor, probability: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Let images whose last loss lies under the mean sit out with a probability; those that stay stand for those that don't.

    Returns the positions that stay, ascending, and a weight for each of the N positions: 1 / (1 - probability) under the mean
    and 1 elsewhere, so that the expected gradient is that of all the images. Nobody sits out while all losses are alike.
    """
    known_N = losses_N < losses_N.mean()
    stays_N = ~known_N | (torch.rand(len(losses_N), generator=generator) >= probability)
    weight_N = torch.where(known_N, 1 / (1 - probability), 1.0)
    return stays_N.nonzero().flatten(), weight_N
