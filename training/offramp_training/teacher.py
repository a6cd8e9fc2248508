"""Training the plain network with a trained one as its teacher; no files here.

The teacher sees every image as the network does, with the same crop, flip and cut-out (Beyer et al. 2022, *Knowledge
distillation: a good teacher is patient and consistent*, arXiv:2106.05237).
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from offramp_model.network import MultiExitNetwork
from offramp_training.distillation import distilled_loss
from offramp_training.sections import TeacherConfig


class TaughtNetwork(nn.Module):
    """A network in training beside its teacher, which stays as it is."""

    def __init__(self, network: MultiExitNetwork, teacher: MultiExitNetwork) -> None:
        super().__init__()
        self.network = network
        self.teacher = teacher.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Switch the network to training, or with `mode` False to evaluation; the teacher stays in the latter."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Class logits, shape (N, classes); in training the teacher's and then the network's, shape (N, 2, classes)."""
        logits_NC: Tensor = self.network(images_NCHW)
        if not self.training:
            return logits_NC
        with torch.no_grad():
            teacher_NC = self.teacher(images_NCHW)
        return torch.stack([teacher_NC, logits_NC], 1)


def taught_loss(logits_N2C: Tensor, labels_N: Tensor, config: TeacherConfig, label_smoothing: float) -> Tensor:
    """Each image's loss in nats, shape (N,), from what `TaughtNetwork` gives in training."""
    teacher_NC, logits_NC = logits_N2C.unbind(1)
    return distilled_loss(logits_NC, labels_N, teacher_NC, config.share, config.temperature, label_smoothing)
