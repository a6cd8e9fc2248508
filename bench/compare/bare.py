"""The limit: the stages of a bundle in a loop in one process, with nothing around them. Also answers what the full network says.

Runs as a process of its own, so that its CPU time is its own: one JSON command a line on stdin, one JSON answer a line on stdout.
The exits are decided beforehand, so that the loop has only the stages to run, and rows to move between their batches.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offramp_model.bundle import Bundle, Control, open_bundle
from offramp_model.routing import Controls, Policy, decide
from offramp_model.weights import load_network
from offramp_server.backends import Wish, load_backend
from offramp_server.engine.execution import no_logits
from offramp_server.engine.types import Backend, Features

DECIDED_AT_ONCE = 32
"""Frames in a batch while the exits are decided."""


class BareLoop:
    """One backend and the frames, each with the exit that it leaves at."""

    def __init__(self, backend: Backend, images_NHWC: np.ndarray, control: Control) -> None:
        self._backend, self._images = backend, list(images_NHWC)
        self.exits_N = self._decide(control)

    def _decide(self, control: Control) -> list[int]:
        """Where each frame leaves, by the same rule as in the server."""
        backend, exits = self._backend, []
        for images in _chunks(self._images, DECIDED_AT_ONCE):
            controls = _controls(control, len(images), backend.exits)
            taken_N = np.zeros(len(images), int)
            features, logits_NEC = backend.prepare(images), no_logits(len(images), backend.classes)
            for stage in range(1, backend.exits + 1):
                result = backend.run_stage(stage, features, logits_NEC)
                decision = decide(stage, result.logits_NEC[:, -1], result.router_output, controls, backend.rule)
                taken_N[(taken_N == 0) & decision.leaves_N] = stage
                features, logits_NEC = result.features, result.logits_NEC
            exits += taken_N.tolist()
        return exits

    def adaptive(self, batch: int, seconds: float) -> dict[str, Any]:
        """Run frames to their exits in batches of `batch`, made anew before each stage, for so long."""
        order, queues = _endless(len(self._images)), [_Queue(self._backend) for _ in range(self._backend.exits)]
        return _timed(lambda: self._run_on(order, queues, batch), seconds)

    def uncut(self, batch: int, seconds: float) -> dict[str, Any]:
        """Run the uncut network, in batches of `batch`, for so long."""
        order = _endless(len(self._images))

        def run() -> int:
            images = [self._images[next(order)] for _ in range(batch)]
            self._backend.run_whole(self._backend.prepare(images))
            return batch

        return _timed(run, seconds)

    def _run_on(self, order: Iterator[int], queues: list[_Queue], batch: int) -> int:
        """Take `batch` new frames through stage 1, then through each later stage for which a full batch has come together.

        Returns the frames that left.
        """
        answered = 0
        frames = [next(order) for _ in range(batch)]
        exits_N = np.array([self.exits_N[frame] for frame in frames])
        features = self._backend.prepare([self._images[frame] for frame in frames])
        logits_NEC = no_logits(batch, self._backend.classes)
        for stage in range(1, self._backend.exits + 1):
            result = self._backend.run_stage(stage, features, logits_NEC)
            staying_S = np.flatnonzero(exits_N > stage)
            answered += len(exits_N) - len(staying_S)
            if stage == self._backend.exits or not len(staying_S):
                break
            queue = queues[stage]
            queue.add(self._backend.take(result.features, staying_S), result.logits_NEC[staying_S], exits_N[staying_S])
            if len(queue) < batch:
                break
            features, logits_NEC, exits_N = queue.take(batch)
        return answered


class _Queue:
    """Rows that wait for a stage until there is a batch of them."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._parts: list[tuple[Features, np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        return sum(len(part[0]) for part in self._parts)

    def add(self, features: Features, logits_NEC: np.ndarray, exits_N: np.ndarray) -> None:
        self._parts.append((features, logits_NEC, exits_N))

    def take(self, batch: int) -> tuple[Features, np.ndarray, np.ndarray]:
        """The first `batch` rows."""
        features, logits_NEC, exits_N = self._parts[0]
        if len(self._parts) > 1:
            parts = list(zip(*self._parts, strict=True))
            features, logits_NEC, exits_N = self._backend.join(parts[0]), np.concatenate(parts[1]), np.concatenate(parts[2])
        self._parts = [(features[batch:], logits_NEC[batch:], exits_N[batch:])] if len(exits_N) > batch else []
        return features[:batch], logits_NEC[:batch], exits_N[:batch]


def full_labels(bundle: Bundle, images_NHWC: np.ndarray) -> list[int]:
    """The classes that the plain full-depth network answers in float32."""
    network, preprocessing = load_network(bundle), bundle.manifest.preprocessing
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    labels: list[int] = []
    for images in _chunks(list(images_NHWC), DECIDED_AT_ONCE):
        pixels_NHWC = torch.from_numpy(np.stack(images)).float() / 255
        labels += network(((pixels_NHWC - mean) / std).permute(0, 3, 1, 2)).argmax(1).tolist()
    return labels


def _timed(run: Callable[[], int], seconds: float) -> dict[str, Any]:
    """Call `run`, which says how many frames it finished, for so long; times are those of single calls."""
    run()
    frames, times, cpu, started = 0, [], time.process_time(), time.perf_counter()
    ended = started
    while ended - started < seconds:
        before = ended
        frames += run()
        ended = time.perf_counter()
        times.append((ended - before) * 1000)
    cpu = time.process_time() - cpu
    spent = ended - started
    p50, p99 = np.percentile(times, [50, 99])
    figures = {"frames": frames, "seconds": spent, "frames_per_s": frames / spent, "cpu_ms_a_frame": cpu / frames * 1000}
    return figures | {"call_ms": {"p50": float(p50), "p99": float(p99)}}


def _controls(control: Control, frames: int, exits: int) -> Controls[np.ndarray]:
    last = min(control.max_exit or exits, exits)
    return Controls(
        policy_N=np.full(frames, int(Policy[control.policy.upper()])),
        lambda_N=np.full(frames, control.lambda_, np.float32),
        threshold_NE=np.full((frames, exits - 1), control.threshold, np.float32),
        min_exit_N=np.ones(frames, int),
        max_exit_N=np.full(frames, last),
    )


def _chunks(images: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    for at in range(0, len(images), size):
        yield images[at : at + size]


def _endless(count: int) -> Iterator[int]:
    while True:
        yield from range(count)


def main() -> None:
    """`bare.py BUNDLE IMAGES.npy CONTROL(JSON)`."""
    folder, images, control = sys.argv[1:]
    bundle, images_NHWC = open_bundle(Path(folder)), np.load(images)
    with torch.inference_mode():
        backend = load_backend(bundle, Wish(device="cpu"))
        loop = BareLoop(backend, images_NHWC, Control.model_validate_json(control))
        said: Any = {"backend": backend.name, "device": backend.device_description, "exits": loop.exits_N}
        print(json.dumps(said), flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            match command["do"]:
                case "adaptive":
                    said = loop.adaptive(command["batch"], command["seconds"])
                case "uncut":
                    said = loop.uncut(command["batch"], command["seconds"])
                case "full":
                    said = full_labels(bundle, images_NHWC)
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
