"""The histograms that a server's drift scores compare live frames with, and the same scores of frames at hand."""

from __future__ import annotations

import torch

from offramp_model.drift import CONFIDENCE_BINS, DriftKind, DriftReference, drift_score
from offramp_model.routing import confidence
from offramp_training.policies import Frames


def exits_and_confidences(frames: Frames, exit_N: torch.Tensor) -> DriftReference:
    """Counts of frames that leave at these exits (1…K), and of their answers' confidences."""
    logits_NC = frames.logits_NKC[torch.arange(len(exit_N)), exit_N - 1]
    # double precision as in offramp_model.drift.confidence_bin, so that both find the same bin
    bin_N = (confidence(logits_NC.softmax(-1)).double() * CONFIDENCE_BINS).long().clamp_max(CONFIDENCE_BINS - 1)
    return DriftReference(
        exit_counts=tuple(torch.bincount(exit_N - 1, minlength=frames.logits_NKC.shape[1]).tolist()),
        confidence_counts=tuple(torch.bincount(bin_N, minlength=CONFIDENCE_BINS).tolist()),
    )


def drift_scores(live: DriftReference, reference: DriftReference) -> dict[DriftKind, float]:
    """What a server would show if its window held these frames."""
    references = reference.histograms()
    return {kind: round(drift_score(histogram.weights, references[kind]), 4) for kind, histogram in live.histograms().items()}
