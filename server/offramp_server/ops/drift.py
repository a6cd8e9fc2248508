"""The drift score: whether the last frames leave, and are as sure, as the bundle's held-out frames were (docs/shift.md)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from offramp_model.drift import DriftKind, Histogram, confidence_bin, drift_score
from offramp_server.engine.types import FrameControl


class DriftWindow:
    """Exits and confidences of one model's last frames under its default control, beside the bundle's own.

    Frames under another control are passed over: another λ alone moves both histograms.
    """

    def __init__(self, control: FrameControl, references: Mapping[DriftKind, Histogram], size: int) -> None:
        """`control` is the model's default, `size` the number of frames that the window holds."""
        self._control, self._references, self._size = control, references, size
        self._recent = {kind: _Recent(len(reference.weights), size) for kind, reference in references.items()}
        self._last = (control, True)  # frames of a stream share their control, so one is compared once
        self.frames = 0
        """Frames in the window."""

    @property
    def kinds(self) -> tuple[DriftKind, ...]:
        """The scores that the bundle has a reference for."""
        return tuple(self._references)

    def observe(self, control: FrameControl, exit: int, confidence: float) -> None:
        """Take a frame that left at `exit`, 1…K, with this probability of its first class."""
        if control is not self._last[0]:
            self._last = (control, self._is_default(control))
        if not self._last[1]:
            return
        self.frames = min(self.frames + 1, self._size)
        for kind, recent in self._recent.items():
            recent.add(exit - 1 if kind == "exit" else confidence_bin(confidence, len(recent.counts)))

    def score(self, kind: DriftKind) -> float:
        """From 0, no drift, to 1; NaN until a quarter of the window is full."""
        if 4 * self.frames < self._size:
            return math.nan
        return drift_score(self._recent[kind].counts, self._references[kind])

    def _is_default(self, control: FrameControl) -> bool:
        ours = self._control
        numbers = zip((control.lambda_, *control.thresholds), (ours.lambda_, *ours.thresholds), strict=True)
        return (control.policy, control.min_exit, control.max_exit) == (ours.policy, ours.min_exit, ours.max_exit) and all(
            math.isclose(given, default, rel_tol=1e-6) for given, default in numbers
        )


class _Recent:
    """Counts of the last values, each a bin's index."""

    def __init__(self, bins: int, size: int) -> None:
        self.counts = [0] * bins
        self._values: deque[int] = deque(maxlen=size)

    def add(self, value: int) -> None:
        if len(self._values) == self._values.maxlen:
            self.counts[self._values[0]] -= 1
        self._values.append(value)
        self.counts[value] += 1
