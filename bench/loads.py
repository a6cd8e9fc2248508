"""Loads for an engine in this process, without gRPC in between: frames, a closed loop, and an open one with Poisson arrivals."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from offramp_client.demo import Demo
from offramp_model.routing import Policy
from offramp_server.engine import execution
from offramp_server.engine.engine import Engine
from offramp_server.engine.types import Answer, Backend, Frame, FrameControl
from offramp_server.errors import OverloadedError

CHUNK = 32
DRAIN_S = 60.0
"""For the last frames of a load to be answered."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures with what counts as the right answer."""

    images: list[np.ndarray]
    labels: list[int]
    truth: str
    """What the labels are: given with the pictures, or the full network's answers."""

    def frame(self, number: int, control: FrameControl) -> Frame:
        """Frame `number` of an endless sequence."""
        return Frame(self.images[number % len(self.images)], control)


def read_pictures(backend: Backend, labels: Sequence[str], count: int, seed: int) -> Pictures:
    """Of the test split of the folder that OFFRAMP_CIFAR10 names, or else of the client's demo, labelled by the full network."""
    size, random = backend.input_size, np.random.default_rng(seed)
    root = os.environ.get("OFFRAMP_CIFAR10")
    if root and all((Path(root) / "test" / name).is_dir() for name in labels):
        files = [(file, label) for label, name in enumerate(labels) for file in sorted((Path(root) / "test" / name).iterdir())]
        chosen = [files[index] for index in random.permutation(len(files))[:count]]
        images = [np.asarray(Image.open(file).convert("RGB").resize((size, size))) for file, _ in chosen]
        return Pictures(images, [label for _, label in chosen], "labels of the data")
    demo = Demo(seed, size)
    images = [demo.frame(7 * number).image for number in range(count)]
    last = FrameControl(Policy.FIXED, 0.0, (1.0,) * (backend.exits - 1), 1, backend.exits)
    answers: list[int] = []
    for start in range(0, count, CHUNK):
        chunk = images[start : start + CHUNK]
        answers += execution.run_whole(backend, chunk, [last] * len(chunk)).probabilities_NC.argmax(1).tolist()
    return Pictures(images, answers, "answers of the full network")


@dataclass(slots=True)
class Tally:
    """What a load came to."""

    offered: int = 0
    refused: int = 0
    seconds: float = 0.0
    """In which frames were offered."""
    ended_in: float = 0.0
    """In which all of them were answered."""
    latencies_ms: list[float] = field(default_factory=list)
    right: int = 0
    degraded: int = 0
    exits: list[int] = field(default_factory=list)

    def take(self, answer: Answer, latency_ms: float, label: int) -> None:
        """Count an answer."""
        self.latencies_ms.append(latency_ms)
        self.right += int(answer.probabilities.argmax()) == label
        self.degraded += answer.degraded
        self.exits.append(answer.exit)

    def summary(self, within_ms: float) -> dict[str, float]:
        """Rates a second of the offering, latencies in milliseconds, and shares of the answered frames."""
        answered = len(self.latencies_ms)
        p50, p99 = np.percentile(self.latencies_ms, (50, 99)).tolist() if answered else (float("nan"), float("nan"))
        good = sum(latency <= within_ms for latency in self.latencies_ms)
        return {
            "offered_fps": self.offered / self.seconds,
            "answered_fps": answered / max(self.ended_in, self.seconds),
            "goodput_fps": good / max(self.ended_in, self.seconds),
            "refused": self.refused / max(self.offered, 1),
            "p50_ms": p50,
            "p99_ms": p99,
            "accuracy": self.right / answered if answered else float("nan"),
            "degraded": self.degraded / answered if answered else 0.0,
            "mean_exit": float(np.mean(self.exits)) if answered else float("nan"),
        }


async def closed_loop(
    engine: Engine, pictures: Pictures, controls: Sequence[FrameControl], in_flight: int, seconds: float
) -> Tally:
    """`in_flight` callers, each of which sends its next frame when it has the answer to its last."""
    tally, started, numbers = Tally(), time.perf_counter(), iter(range(10**9))

    async def caller() -> None:
        while time.perf_counter() - started < seconds:
            number, sent = next(numbers), time.perf_counter()
            tally.offered += 1
            answer = await engine.submit(pictures.frame(number, controls[number % len(controls)]))
            tally.take(answer, (time.perf_counter() - sent) * 1000, pictures.labels[number % len(pictures.labels)])

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    tally.seconds = tally.ended_in = time.perf_counter() - started
    return tally


async def open_loop(
    engine: Engine, pictures: Pictures, controls: Sequence[FrameControl], rate: float, seconds: float, seed: int
) -> Tally:
    """Poisson arrivals at `rate` frames a second, whatever becomes of the earlier ones; latency counts from the arrival due."""
    arrivals = np.random.default_rng(seed).exponential(1 / rate, max(1, round(rate * seconds))).cumsum().tolist()
    tally, started, open_frames = Tally(seconds=arrivals[-1]), time.perf_counter(), set[asyncio.Future[Answer]]()

    def answered(due: float, label: int, future: asyncio.Future[Answer]) -> None:
        open_frames.discard(future)
        tally.take(future.result(), (time.perf_counter() - started - due) * 1000, label)

    for number, due in enumerate(arrivals):
        if (pause := due - (time.perf_counter() - started)) > 0:
            await asyncio.sleep(pause)
        elif number % CHUNK == 0:
            await asyncio.sleep(0)  # behind the schedule, the answers still want to be taken
        tally.offered += 1
        try:
            future = engine.submit(pictures.frame(number, controls[number % len(controls)]))
        except OverloadedError:
            tally.refused += 1
            continue
        open_frames.add(future)
        future.add_done_callback(partial(answered, due, pictures.labels[number % len(pictures.labels)]))
    async with asyncio.timeout(DRAIN_S):
        while open_frames:
            await asyncio.wait(set(open_frames))
    tally.ended_in = time.perf_counter() - started
    return tally


def allowing(controls: Sequence[FrameControl], **allowed: bool) -> list[FrameControl]:
    """The same controls with what their callers allow."""
    return [replace(control, **allowed) for control in controls]  # type: ignore[arg-type]  # the flags alone
