"""The queues between callers and stages: what waits in each, and what a batch taken from one holds."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from offramp_model.routing import ExitReason
from offramp_server.engine.execution import Place
from offramp_server.engine.pace import Pace
from offramp_server.engine.types import Answer, Frame, FrameControl, StageTime

WHOLE = "whole"
"""Name of the lane whose batches run every stage at once."""


@dataclass(slots=True, eq=False)
class Row:
    """A frame on its way through the network."""

    frame: Frame
    control: FrameControl
    """What it runs under: its own control, or under overload a dearer λ."""
    future: asyncio.Future[Answer]
    input: np.ndarray | Place
    queued_at: float
    deadline: float = math.inf
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    stages: tuple[StageTime, ...] = ()
    halting: tuple[float, ...] = ()
    exit: int = 0
    """The exit that it has reached; 0 before the first."""
    held: np.ndarray | None = None
    """Class probabilities there, kept where the frame may be answered early."""

    def answer(self, reason: ExitReason, probabilities: np.ndarray) -> Answer:
        """What its caller is told when it leaves at the exit that it has reached."""
        return Answer(
            probabilities=probabilities,
            exit=self.exit,
            reason=reason,
            halting=self.halting,
            queue_ms=self.queue_seconds * 1000,
            compute_ms=self.compute_seconds * 1000,
            stages=self.stages,
            lambda_=self.control.lambda_,
            degraded=self.control is not self.frame.control,
        )


class Lane:
    """Frames that can share a batch: one stage's, with inputs of one type."""

    def __init__(self, name: str, stage: int, max_batch: int, *, entry: bool = False) -> None:
        """`stage` is the one that its batches begin with; an `entry` takes frames from callers."""
        self.name, self.stage, self.entry = name, stage, entry
        self.rows = deque[Row]()
        self._paces = {alone: Pace(max_batch) for alone in (True, False)}

    def pace(self, *, alone: bool) -> Pace:
        """How long its batches take: with the whole device to itself, or on a share of it."""
        return self._paces[alone]


class Lanes:
    """Every lane of one network, shallow to deep."""

    def __init__(self, exits: int, max_batch: int) -> None:
        self._exits = exits
        self._tensors = Lane("1", 1, max_batch, entry=True)
        self._pixels = Lane("1", 1, max_batch, entry=True)
        self._whole = Lane(WHOLE, 1, max_batch, entry=True)
        self.later = [Lane(str(stage), stage, max_batch) for stage in range(2, exits + 1)]
        """Those between stages."""
        self.all = [self._tensors, self._pixels, self._whole, *self.later]

    def named(self, name: str) -> list[Lane]:
        """The lanes of that name; images and tensors enter stage 1 by lanes of their own."""
        return [lane for lane in self.all if lane.name == name]

    def enter(self, row: Row) -> None:
        """Queue a new frame.

        Frames bound for the last exit gather in a lane of their own, for a backend's uncut network; it takes uint8 images
        alone. A frame that may be answered early goes by stages, so that it can be.
        """
        if row.frame.image.dtype != np.uint8:
            lane = self._tensors
        elif row.control.goes_to(self._exits) and not (row.control.allow_early_answer and row.deadline < math.inf):
            lane = self._whole
        else:
            lane = self._pixels
        lane.rows.append(row)

    def after(self, stage: int) -> Lane:
        """Where frames queue that go on after `stage`."""
        return self.later[stage - 1]
