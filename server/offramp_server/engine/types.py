"""The engine's vocabulary: frames in, answers out, and the two seams (backend, metrics) that it talks through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from offramp_model.routing import ExitReason, HaltingRule, Policy

Features: TypeAlias = Any
"""Input of a stage, in the backend's own kind of array: one row a frame, of which slices can be taken."""


@dataclass(frozen=True, slots=True)
class FrameControl:
    """A frame's control with every field resolved and validated."""

    policy: Policy
    lambda_: float
    thresholds: tuple[float, ...]
    """One for each exit but the last."""
    min_exit: int
    max_exit: int
    """Deepest exit that the frame may reach; K where nothing bounds it."""
    max_exit_reason: ExitReason = ExitReason.MAX_EXIT
    """Why `max_exit` is the bound: MAX_EXIT, or MAX_COST where the caller's cost bound is the tighter one."""
    max_latency_s: float | None = None
    """Seconds from its admission in which the frame must be answered."""
    allow_early_answer: bool = False
    """Whether it leaves at the exit it has reached, at or after `min_exit`, when going on would miss its deadline."""
    allow_degrade: bool = False
    """Whether it may run at a larger λ under overload; of the router policy alone."""

    def goes_to(self, last_exit: int) -> bool:
        """Whether the frame can leave nowhere before `last_exit`, the network's last."""
        return self.max_exit == last_exit and (self.policy is Policy.FIXED or self.min_exit == last_exit)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame to classify. Image: uint8 (H, W, 3), or normalised float32 (3, H, W), at the network's input size."""

    image: np.ndarray
    control: FrameControl
    deadline: float | None = None
    """Of the call, on the engine's clock, in seconds; work past it is dropped."""


@dataclass(frozen=True, slots=True)
class StageTime:
    """What one stage took of a frame's time; a stage begins when the one before it ends."""

    name: str
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a frame shows and where it left the network."""

    probabilities: np.ndarray
    """Calibrated class probabilities at the exit taken, float32 (classes,)."""
    exit: int
    reason: ExitReason
    halting: tuple[float, ...]
    """σ(s_k) of every router met, from exit 1 on."""
    queue_ms: float
    compute_ms: float
    lambda_: float = 0.0
    """The λ used."""
    degraded: bool = False
    """Whether overload had raised it above the control's own."""
    stages: tuple[StageTime, ...] = ()
    """The same by stage, in the order in which they ran."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one engine."""

    max_batch: int = 32
    max_in_flight: int = 1024
    """Frames admitted and not yet answered; more are refused, but for a quarter more of those that may be degraded."""
    max_stage_wait_ms: float = 50.0
    """A frame that has waited this long between stages makes its stage run next, full batch or not."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a backend gives for one stage of a batch."""

    features: Features
    """Input of the next stage."""
    logits_NEC: np.ndarray
    """Class logits of every exit so far, this one's last, in float32."""
    router_output: np.ndarray | None
    """What the exit's router says, one row a frame; None at the last exit and where there are no routers."""


class Backend(Protocol):
    """One network on one runtime, stage by stage, batch first; it knows nothing of requests.

    Methods are called from the executor's threads, one at a time for each backend; those that `split` gives are backends too.
    """

    name: str
    """The runtime, such as `torch`."""
    device_description: str
    """Device and number format, such as `cpu, float32`."""
    reason: str
    """Why this runtime and number format were chosen."""
    exits: int
    input_size: int
    """Height and width of the network's input, in pixels."""
    classes: int
    batch_step: int
    """Batches of a multiple of so many frames run as they are. Others may be filled up to one, so that few sizes are prepared."""
    batches_a_share: int
    """How many of the shares that `split` gives are of the same cores."""
    rule: HaltingRule
    """How the routers' output is read."""

    def prepare(self, images: Sequence[np.ndarray]) -> Features:
        """Stack frames, all of one type, into the input of stage 1."""
        ...

    def take(self, features: Features, rows_S: np.ndarray) -> Features:
        """A copy of these rows."""
        ...

    def join(self, parts: Sequence[Features]) -> Features:
        """The rows of several as one."""
        ...

    def run_stage(self, exit: int, features: Features, earlier_NEC: np.ndarray) -> StageResult:
        """Run stage `exit`, 1…K, given the class logits of the exits before it.

        The features may lie in memory that the stage's next run writes over; logits and router output do not.
        """
        ...

    def run_whole(self, pixels: Features) -> tuple[np.ndarray, list[np.ndarray]]:
        """Run every stage on what `prepare` gives for uint8 images, for frames that go to the last exit anyway.

        Returns the class logits of every exit, shape (N, K, classes), and the output of each router, from exit 1 on.
        """
        ...

    def split(self) -> Sequence[Backend]:
        """The same network several times, each on its share of the device's cores, to run batches at the same time.

        Empty where a batch is best run by the whole device. `self` and its shares may run at the same time.
        """
        ...


class EngineMetrics(Protocol):
    """What the engine reports as it goes; called on the event loop."""

    def frame_admitted(self, frame: Frame) -> None:
        """A frame entered the first queue."""
        ...

    def frame_answered(self, frame: Frame, answer: Answer) -> None:
        """A frame left the network."""
        ...

    def frame_refused(self, reason: str) -> None:
        """A frame was not admitted: `overloaded`, `not_ready` or `closed`."""
        ...

    def frame_dropped(self, reason: str) -> None:
        """An admitted frame got no answer: `cancelled`, `expired` or `failed`."""
        ...

    def batch_ran(self, stage: str, size: int, seconds: float, waits: Sequence[float]) -> None:
        """A stage, `1`…`K` or the `whole` network, ran on `size` frames for `seconds`, for which each had queued `waits`."""
        ...

    def in_flight(self, frames: int) -> None:
        """The number of frames admitted and not yet answered changed."""
        ...
