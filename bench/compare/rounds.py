"""Alternating rounds: in each, every server in turn gets every one of its loads, while all others stand still."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from compare.processes import ServerProcess, machine_busy_seconds
from compare.subjects import Frames
from offramp_client import OfframpClientError
from offramp_client.bench_load import run_load
from offramp_client.bench_types import Load, OpenLane

Lanes = Callable[[], AbstractAsyncContextManager[OpenLane]]


@dataclass(slots=True)
class Way:
    """One server under one load, and what was seen of it round by round."""

    key: str
    process: ServerProcess
    lanes: Lanes
    load: Load
    rounds: list[dict[str, Any]] = field(default_factory=list)
    labels: dict[int, int] = field(default_factory=dict)
    """The class last answered for each frame."""
    failure: str = ""

    async def run(self, frames: Frames) -> None:
        """Measure it once more; one that has failed is left alone."""
        if self.failure:
            return
        busy: list[float] = []

        def server_cpu_s() -> float:
            busy.append(machine_busy_seconds())
            return self.process.cpu_s()

        self.process.resume()
        try:
            self.process.check()
            async with self.lanes() as open_lane:
                seen = await run_load(self.load, open_lane, len(frames.images_NHWC), server_cpu_s)
            if not seen.answered:
                raise OfframpClientError(f"no frame was answered: {dict(seen.errors) or 'silence'}")
        except Exception as error:  # whatever a foreign server does must not lose what was measured of the others
            self.failure = f"{type(error).__name__}: {error}"
            return
        finally:
            self.process.pause()
        self.labels |= seen.labels
        elsewhere = busy[1] - busy[0] - seen.server_cpu_s - seen.client_cpu_s
        self.rounds.append(
            seen.report()
            | {
                "server_cpu_ms_a_frame": seen.server_cpu_s / seen.answered * 1000,
                "server_cores": seen.server_cpu_s / seen.seconds,
                "elsewhere_cores": elsewhere / seen.seconds,
            }
        )

    def report(self, frames: Frames, full: list[int]) -> dict[str, Any]:
        """Medians, spread, and how often it agrees with the truth and with the full network in float32."""
        if self.failure or not self.rounds:
            return {"failure": self.failure or "not run", "rounds": self.rounds}
        agreeing = sum(full[image] == label for image, label in self.labels.items()) / len(self.labels)
        figures: dict[str, Any] = {"frames_answered": len(self.labels), "agreement": agreeing}
        if frames.truth is not None:
            figures["accuracy"] = self._share_right(frames.truth, self.labels)
            figures["accuracy_drop"] = self._share_right(frames.truth, {i: full[i] for i in self.labels}) - figures["accuracy"]
        return figures | {"median": medians(self.rounds), "spread": self._spread(), "rounds": self.rounds}

    def _share_right(self, truth: list[int], labels: dict[int, int]) -> float:
        return sum(truth[image] == label for image, label in labels.items()) / len(labels)

    def _spread(self) -> list[float]:
        rates = [each["frames_per_s"] for each in self.rounds]
        return [min(rates), max(rates)]


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number of the rounds' reports, by name; those within are named `latency_ms.p50`."""
    flat = [_flat(each) for each in rounds]
    names = [name for name in flat[0] if all(name in each for each in flat)]
    return {name: statistics.median(each[name] for each in flat) for name in names}


def _flat(figures: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[prefix + name] = value
    return flat
