"""Synthetic tables with known answers."""

from __future__ import annotations

import torch
from torch import Tensor

from offramp_training.comparison.fitting import Fitting
from offramp_training.comparison.table import ExitTable

COST_K = torch.tensor([0.25, 0.5, 1.0], dtype=torch.double)
CLASSES = 4
QUICK = Fitting(hidden=16, batch=600, steps=150, rate=0.03)


def random_table(frames: int, exits: int, seed: int) -> ExitTable:
    """Guesses that get better with depth."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(CLASSES, (frames,), generator=generator)
    logits_NKC = 2 * torch.randn(frames, exits, CLASSES, generator=generator)
    strength_K = torch.linspace(0.5, 3, exits)
    logits_NKC += torch.nn.functional.one_hot(labels_N, CLASSES)[:, None] * strength_K[:, None]
    return ExitTable(logits_NKC, labels_N, torch.linspace(0.25, 1, exits, dtype=torch.double))


def table_of(confidence_NK: Tensor, right_NK: Tensor, cost_K: Tensor, seed: int) -> ExitTable:
    """Each exit guesses with this confidence, rightly or else the class after the label; the rest is shared evenly."""
    labels_N = torch.randint(CLASSES, (len(right_NK),), generator=torch.Generator().manual_seed(seed))
    guess_NK = (labels_N[:, None] + (~right_NK).long()) % CLASSES
    guessed_NKC = torch.nn.functional.one_hot(guess_NK, CLASSES).bool()
    rest_NK1 = ((1 - confidence_NK) / (CLASSES - 1))[..., None]
    probabilities_NKC = torch.where(guessed_NKC, confidence_NK[..., None], rest_NK1)
    return ExitTable(probabilities_NKC.log(), labels_N, cost_K)


def easy_hard_hopeless(frames: int, shares: tuple[float, float, float], seed: int) -> tuple[ExitTable, Tensor]:
    """Frames of three kinds 0, 1, 2, which exit 1's confidence tells apart: about .95, .6 and .4.

    Easy frames are right everywhere, hard ones at exit 3 alone, hopeless ones nowhere.
    """
    generator = torch.Generator().manual_seed(seed)
    kind_N = torch.multinomial(torch.tensor(shares, dtype=torch.double), frames, replacement=True, generator=generator)
    right_NK = torch.stack([kind_N == 0, kind_N == 0, kind_N < 2], 1)
    confidence_NK = torch.tensor([0.95, 0.6, 0.4])[kind_N][:, None].repeat(1, 3)
    confidence_NK[:, 2] = torch.where(kind_N == 1, 0.9, confidence_NK[:, 2])
    confidence_NK += 0.08 * (torch.rand(frames, 3, generator=generator) - 0.5)
    return table_of(confidence_NK, right_NK, COST_K, seed + 1), kind_N
