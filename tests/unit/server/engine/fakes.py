"""A backend whose frames carry their own answers, and metrics that remember."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from offramp_model.routing import BankRule, ExitReason, Policy
from offramp_server.engine.types import Answer, Frame, FrameControl, StageResult

EXITS = 3
CLASSES = 4


def frame(halting: float = 0.5, label: int = 0, deadline: float | None = None, **control: Any) -> Frame:
    """A frame whose routers all say σ(s_k) = `halting` and whose heads all say `label`."""
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0, 0] = round(halting * 100)
    image[0, 0, 1] = label
    return Frame(image, control_of(**control), deadline)


def control_of(
    policy: Policy = Policy.ROUTER,
    lambda_: float = 0.0,
    threshold: float = 0.5,
    min_exit: int = 1,
    max_exit: int = EXITS,
    max_exit_reason: ExitReason = ExitReason.MAX_EXIT,
    **allowed: Any,
) -> FrameControl:
    return FrameControl(policy, lambda_, (threshold,) * (EXITS - 1), min_exit, max_exit, max_exit_reason, **allowed)


class FakeBackend:
    """Implements engine.types.Backend; features are the frame's own bytes, passed on unchanged."""

    name = "fake"
    device_description = "none"
    reason = "none other fits a test"
    exits = EXITS
    input_size = 2
    classes = CLASSES
    batch_step = batches_a_share = 1

    def __init__(self) -> None:
        self.rule = BankRule((0.3, 0.6, 1.0), (0.0, 1.0))
        self.batches: list[tuple[int | str, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()
        self.fail_on: int | None = None
        self.types: list[set[str]] = []
        self.shares: list[FakeBackend] = []
        self.after_run: Callable[[int | str, int], None] = lambda lane, size: None
        """Called with every batch that has run, such as to let a clock pass."""

    def prepare(self, images: Sequence[np.ndarray]) -> np.ndarray:
        self.types.append({image.dtype.name for image in images})
        return np.stack(images).astype(np.float32)

    def take(self, features: np.ndarray, rows_S: np.ndarray) -> np.ndarray:
        return features[rows_S]

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts)

    def run_stage(self, exit: int, features: np.ndarray, earlier_NEC: np.ndarray) -> StageResult:
        self._run(exit, len(features))
        return self._stage(exit, features, earlier_NEC)

    def run_whole(self, pixels: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        self._run("whole", len(pixels))
        logits_NEC, routers = np.zeros((len(pixels), 0, CLASSES), np.float32), []
        for exit in range(1, EXITS + 1):
            result = self._stage(exit, pixels, logits_NEC)
            logits_NEC = result.logits_NEC
            routers += [result.router_output] if result.router_output is not None else []
        return logits_NEC, routers

    def split(self) -> Sequence[FakeBackend]:
        return self.shares

    def _run(self, lane: int | str, size: int) -> None:
        self.running.set()
        assert self.gate.wait(10)
        self.batches.append((lane, size))
        if lane == self.fail_on:
            raise RuntimeError("secret detail of the machine")
        self.after_run(lane, size)

    def _stage(self, exit: int, features: np.ndarray, earlier_NEC: np.ndarray) -> StageResult:
        # label 9 stands for a frame on which the network overflows
        broken = np.where(features[:, 0, 0, 1:2] == 9, np.float32(np.nan), np.float32(0))
        logits = broken + 5 * np.eye(CLASSES, dtype=np.float32)[features[:, 0, 0, 1].astype(int) % CLASSES]
        halting = np.clip(features[:, 0, 0, 0] / 100, 1e-6, 1 - 1e-6)
        router = np.repeat(np.log(halting / (1 - halting))[:, None], 2, axis=1) if exit < EXITS else None
        return StageResult(features, np.concatenate([earlier_NEC, logits[:, None]], 1), router)


class RecordingMetrics:
    """Implements engine.types.EngineMetrics."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.answers: list[Answer] = []
        self.frames_in_flight = 0

    def frame_admitted(self, frame: Frame) -> None:
        self.events["admitted"] += 1

    def frame_answered(self, frame: Frame, answer: Answer) -> None:
        self.events["answered"] += 1
        self.answers.append(answer)

    def frame_refused(self, reason: str) -> None:
        self.events[f"refused {reason}"] += 1

    def frame_dropped(self, reason: str) -> None:
        self.events[f"dropped {reason}"] += 1

    def batch_ran(self, stage: str, size: int, seconds: float, waits: Sequence[float]) -> None:
        assert len(waits) == size
        self.events[f"stage {stage}"] += size

    def in_flight(self, frames: int) -> None:
        self.frames_in_flight = frames
