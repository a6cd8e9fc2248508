"""How far int8 graphs are from float ones on held-out images, and the gate that they must pass to be published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from offramp_model.bundle import Control
from offramp_training.config import JobError
from offramp_training.policies import Frames, choose_exits
from offramp_training.sections import ExportConfig


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Accuracy of every exit in both, and where frames leave under the default control."""

    float_accuracies: tuple[float, ...]
    int8_accuracies: tuple[float, ...]
    same_exit: float
    """Share of the frames that leave at the same exit in both."""
    moved: tuple[float, ...]
    """For each stage the share of the frames that one of the two lets go there and the other does not, or not yet."""

    def report(self) -> dict[str, Any]:
        """For result files and the model card."""
        exits = zip(self.float_accuracies, self.int8_accuracies, self.moved, strict=True)
        return {
            "exits": [
                {"exit": exit, "float32": round(exact, 5), "int8": round(rounded, 5), "moved": round(moved, 5)}
                for exit, (exact, rounded, moved) in enumerate(exits, 1)
            ],
            "same_exit": round(self.same_exit, 5),
        }

    def failing_stage(self, config: ExportConfig) -> tuple[int, str] | None:
        """The first stage that is off by more than allowed, with what is wrong; None where all is well."""
        for exit, (exact, rounded) in enumerate(zip(self.float_accuracies, self.int8_accuracies, strict=True), 1):
            if exact - rounded > config.max_accuracy_loss:
                return exit, (
                    f"exit {exit} is right on {rounded:.4f} of the held-out images in int8 and on {exact:.4f} in float32, a loss "
                    f"of more than export.max_accuracy_loss, {config.max_accuracy_loss:g}"
                )
        if self.same_exit < config.min_same_exit:
            stage = max(range(len(self.moved)), key=self.moved.__getitem__) + 1
            return stage, (
                f"{self.same_exit:.4f} of the held-out images leave at the same exit in int8 as in float32, less than "
                f"export.min_same_exit, {config.min_same_exit:g}; most of the others change at exit {stage}"
            )
        return None

    def check(self, config: ExportConfig) -> None:
        """Raises JobError naming the stage that is off by more than allowed."""
        failing = self.failing_stage(config)
        if failing is not None:
            stage, reason = failing
            raise JobError(f"the int8 graph of stage {stage} is not good enough to publish: {reason}")


def compare(exact: Frames, rounded: Frames, control: Control) -> Fidelity:
    """Hold the same frames in int8 (`rounded`) against those in float32 (`exact`)."""
    exact_N, rounded_N = choose_exits(exact, control), choose_exits(rounded, control)
    earlier_N = torch.minimum(exact_N, rounded_N)[exact_N != rounded_N]
    exits = exact.logits_NKC.shape[1]
    return Fidelity(
        float_accuracies=tuple(exact.right.double().mean(0).tolist()),
        int8_accuracies=tuple(rounded.right.double().mean(0).tolist()),
        same_exit=float((exact_N == rounded_N).double().mean()),
        moved=tuple((torch.bincount(earlier_N - 1, minlength=exits) / len(exact_N)).tolist()),
    )
