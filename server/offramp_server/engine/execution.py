"""One stage on one batch, and what its exit decides: the part of the engine that runs in the executor's thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from offramp_model.routing import Controls, decide
from offramp_server.engine.types import Backend, FrameControl


@dataclass(frozen=True, slots=True)
class Survivor:
    """What a frame that goes on takes to its next stage: one row of the stage's features, and its class logits so far."""

    features: Tensor
    logits_EC: Tensor


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """What the exit decided about one frame of the batch."""

    leaves: bool
    by_policy: bool
    halting: float | None
    """σ(s_k); None where this exit has no router."""
    probabilities: np.ndarray | None
    """Class probabilities of a frame that leaves; None where the network gave no finite ones."""
    survivor: Survivor | None
    """The next stage's input, of a frame that goes on."""


def run_batch(
    backend: Backend, stage: int, inputs: Sequence[np.ndarray | Survivor], controls: Sequence[FrameControl]
) -> list[RowOutcome]:
    """Run stage `stage` and decide row by row. Stage 1 takes images, later stages the survivors of the stage before."""
    with torch.inference_mode():
        if stage == 1:
            features = backend.prepare(cast("list[np.ndarray]", inputs))
            earlier_NEC = features.new_zeros(len(inputs), 0, backend.classes)
        else:
            survivors = cast("list[Survivor]", inputs)
            features = torch.stack([survivor.features for survivor in survivors])
            earlier_NEC = torch.stack([survivor.logits_EC for survivor in survivors])
        result = backend.run_stage(stage, features, earlier_NEC)
        controls_N = _as_tensors(controls, features.device)
        decision = decide(stage, result.logits_NEC[:, -1], result.router_output, controls_N, backend.rule)
        leaves = decision.leaves_N.tolist()
        # a copy of the survivors alone, so that no row keeps the whole batch's features alive
        stays_N = ~decision.leaves_N if stage < backend.exits else torch.zeros_like(decision.leaves_N)
        going_on = map(Survivor, result.features[stays_N], result.logits_NEC[stays_N])
        sound = decision.probabilities_NC.isfinite().all(-1).tolist()
        halting = decision.halting_N.tolist() if result.router_output is not None else [None] * len(leaves)
        rows = zip(leaves, decision.by_policy_N.tolist(), halting, sound, decision.probabilities_NC.cpu().numpy(), strict=True)
        return [
            RowOutcome(left, by_policy, halt, row.copy() if left and whole else None, None if left else next(going_on))
            for left, by_policy, halt, whole, row in rows
        ]


def warm_up(backend: Backend, batch: int) -> None:
    """Run every stage on blank frames, at batch 1 and at the full batch, so that no caller pays for first-time work."""
    blank = np.zeros((backend.input_size, backend.input_size, 3), np.uint8)
    with torch.inference_mode():
        for size in (1, batch):
            features = backend.prepare([blank] * size)
            logits_NEC = features.new_zeros(size, 0, backend.classes)
            for stage in range(1, backend.exits + 1):
                result = backend.run_stage(stage, features, logits_NEC)
                features, logits_NEC = result.features, result.logits_NEC


def _as_tensors(controls: Sequence[FrameControl], device: torch.device) -> Controls:
    return Controls(
        policy_N=torch.tensor([int(c.policy) for c in controls], device=device),
        lambda_N=torch.tensor([c.lambda_ for c in controls], dtype=torch.float32, device=device),
        threshold_NE=torch.tensor([c.thresholds for c in controls], dtype=torch.float32, device=device),
        min_exit_N=torch.tensor([c.min_exit for c in controls], device=device),
        max_exit_N=torch.tensor([c.max_exit for c in controls], device=device),
    )
