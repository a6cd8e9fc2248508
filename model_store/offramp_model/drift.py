"""How far live frames have drifted from the frames that a bundle was measured on: their histograms, and one distance.

Jensen–Shannon divergence: Lin 1991; the square root of it is a metric (Endres and Schindelin 2003). See docs/shift.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

CONFIDENCE_BINS = 20

DriftKind = Literal["exit", "confidence"]


@dataclass(frozen=True, slots=True)
class Histogram:
    """What live counts are held against."""

    weights: tuple[float, ...]
    """Of each bin: counts or shares."""
    frames: float
    """How many frames it is of; infinity where that is not known."""


class DriftReference(BaseModel):
    """Where held-out frames left under the default control, and how sure the answers were."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exit_counts: tuple[NonNegativeInt, ...]
    """Frames that left at each exit, from the first."""
    confidence_counts: Annotated[tuple[NonNegativeInt, ...], Field(min_length=2)]
    """Frames by the largest class probability at the exit taken, in equal bins over 0…1."""

    @model_validator(mode="after")
    def _consistent(self) -> DriftReference:
        if not 0 < sum(self.exit_counts) == sum(self.confidence_counts):
            raise ValueError("exit_counts and confidence_counts must be of the same frames, and of one at least")
        return self

    def histograms(self) -> dict[DriftKind, Histogram]:
        """Both, by kind."""
        frames = sum(self.exit_counts)
        return {"exit": Histogram(self.exit_counts, frames), "confidence": Histogram(self.confidence_counts, frames)}


def confidence_bin(confidence: float, bins: int = CONFIDENCE_BINS) -> int:
    """The bin, from 0, of a probability among equal ones over 0…1; the last one has 1 in it."""
    return min(int(confidence * bins), bins - 1)


def drift_score(counts: Sequence[float], reference: Histogram) -> float:
    """Jensen–Shannon distance of live counts from a reference, from 0 (the same) to 1 (nothing in common).

    The square root of the divergence in bits, less what is to be expected of it without any drift, since both are finite samples:
    (B − 1)/(8 ln 2) · (1/n + 1/m) for n live and m reference frames in B bins in use. Raises ValueError where the bins differ
    in number; NaN without live frames.
    """
    frames, weight = sum(counts), sum(reference.weights)
    if not frames:
        return math.nan
    divergence, used = 0.0, 0
    for count, reference_weight in zip(counts, reference.weights, strict=True):
        live, held_out = count / frames, reference_weight / weight
        middle = (live + held_out) / 2
        used += middle > 0
        divergence += sum(share * math.log2(share / middle) for share in (live, held_out) if share) / 2
    expected = (used - 1) / (8 * math.log(2)) * (1 / frames + 1 / reference.frames)
    return math.sqrt(min(max(divergence - expected, 0.0), 1.0))
