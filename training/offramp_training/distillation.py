"""Learning from a teacher's softmax besides the labels (Hinton et al. 2015, *Distilling the knowledge in a neural network*)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def divergence(teacher_C: Tensor, student_C: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher ‖ student) in nats, of logits softened by a temperature T, over their last dimension.

    T² keeps the size of its gradient whatever the temperature.
    """
    teacher_log, student_log = (teacher_C / temperature).log_softmax(-1), (student_C / temperature).log_softmax(-1)
    return temperature**2 * (teacher_log.exp() * (teacher_log - student_log)).sum(-1)


def distilled_loss(
    logits_NC: Tensor, labels_N: Tensor, teacher_NC: Tensor, share: float, temperature: float, label_smoothing: float = 0
) -> Tensor:
    """(1 − share)·cross-entropy + share·divergence of each frame, in nats, shape (N,); from logits."""
    label_N = F.cross_entropy(logits_NC, labels_N, reduction="none", label_smoothing=label_smoothing)
    return (1 - share) * label_N + share * divergence(teacher_NC, logits_NC, temperature)
