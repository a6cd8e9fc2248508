"""How sure a difference between two methods is: the paired bootstrap over test frames (Efron and Tibshirani 1993)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 2000
COVERAGE = 0.95
_AT_ONCE = 64
"""Resamples whose counts are in memory together."""


@dataclass(frozen=True, slots=True)
class Replicated:
    """Mean over replicas (seeds), and their sample standard deviation; None of a single one."""

    mean: float
    deviation: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of method A less that of method B over frames and replicas, its 95 % percentile interval, the replicas' spread.

    The interval is about the frames: it takes the replicas as they are.
    """

    mean: float
    low: float
    high: float
    deviation: float | None
    """Sample standard deviation of the difference over replicas; None of a single one."""


def over_replicas(value_R: Tensor) -> Replicated:
    """Summarise one figure of R replicas, shape (R,)."""
    value_R = value_R.double()
    return Replicated(float(value_R.mean()), float(value_R.std()) if len(value_R) > 1 else None)


def paired_bootstrap(a_RN: Tensor, b_RN: Tensor, seed: int, resamples: int = RESAMPLES) -> Difference:
    """Compare the (expected) correctness of two methods on the same N frames, in R replicas each, shape (R, N)."""
    return paired_bootstraps([(a_RN, b_RN)], seed, resamples)[0]


def paired_bootstraps(pairs: Sequence[tuple[Tensor, Tensor]], seed: int, resamples: int = RESAMPLES) -> list[Difference]:
    """Many comparisons on the same resampled frames, each of two tensors of shape (R, N).

    A resample draws N frames with replacement, for all methods and replicas jointly. Raises ValueError where shapes differ.
    """
    shapes = {tensor.shape for pair in pairs for tensor in pair}
    if any(a_RN.shape != b_RN.shape for a_RN, b_RN in pairs) or len({shape[-1] for shape in shapes}) > 1:
        raise ValueError(f"every method must be measured on the same frames and replicas, but shapes are {sorted(shapes)}")
    by_replica = [(a_RN.double() - b_RN.double()) for a_RN, b_RN in pairs]
    difference_NM = torch.stack([difference_RN.mean(0) for difference_RN in by_replica], 1)
    resampled_SM = resampled_means(difference_NM, seed, resamples)
    tail = (1 - COVERAGE) / 2
    low_M, high_M = resampled_SM.quantile(torch.tensor([tail, 1 - tail], dtype=torch.double), 0)
    spread = [over_replicas(difference_RN.mean(1)) for difference_RN in by_replica]
    return [
        Difference(summary.mean, low, high, summary.deviation)
        for summary, low, high in zip(spread, low_M.tolist(), high_M.tolist(), strict=True)
    ]


def resampled_means(value_NM: Tensor, seed: int, resamples: int = RESAMPLES) -> Tensor:
    """Means of M columns over frames drawn with replacement, the same frames for every column, shape (resamples, M)."""
    frames = len(value_NM)
    generator = torch.Generator().manual_seed(seed)
    means = []
    for first in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - first)
        drawn_SN = torch.randint(frames, (count, frames), generator=generator)
        drawn_SN += frames * torch.arange(count)[:, None]
        times_SN = torch.bincount(drawn_SN.flatten(), minlength=count * frames).view(count, frames)
        means.append(times_SN.double() @ value_NM.double() / frames)
    return torch.cat(means)
