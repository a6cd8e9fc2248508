"""The bare loop over stage graphs in one process: cut int8 stages in a row, the uncut int8 graph, and torch in float32.

`python bench/stages.py BUNDLE [--rounds 7] [--batches 1,8,32,64] [--threads 0] [--seconds 0.5]`, BUNDLE being the folder of a
bundle with OpenVINO graphs. Alternating rounds; medians, spread, ratios. Numbers mean something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offramp_model.bundle import open_bundle
from offramp_server.backends import OpenVinoBackend
from offramp_server.backends.torch_backend import TorchBackend
from offramp_server.engine.execution import no_logits

Run = Callable[[list[np.ndarray]], object]


def run_cut(backend: OpenVinoBackend | TorchBackend) -> Run:
    """Every stage in a row, each on what the one before gave."""

    def run(images: list[np.ndarray]) -> None:
        features: Any = backend.prepare(images)
        logits_NEC = no_logits(len(images), backend.classes)
        for exit in range(1, backend.exits + 1):
            result = backend.run_stage(exit, features, logits_NEC)
            features, logits_NEC = result.features, result.logits_NEC

    return run


def images_a_second(run: Run, images: list[np.ndarray], seconds: float) -> float:
    """Of as many whole batches as fit into about that time, at least one."""
    started, batches = time.perf_counter(), 0
    while not batches or time.perf_counter() - started < seconds:
        run(images)
        batches += 1
    return batches * len(images) / (time.perf_counter() - started)


def main() -> None:
    """Print one line a batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", default="1,8,32,64")
    parser.add_argument("--threads", type=int, default=0, help="of OpenVINO and of torch; 0 leaves it to them")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one way in one round")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    int8, exact = OpenVinoBackend(bundle, "int8", arguments.threads), TorchBackend(bundle, "cpu")
    ways: dict[str, Run] = {
        "cut int8": run_cut(int8),
        "uncut int8": lambda images: int8.run_whole(int8.prepare(images)),
        "torch float32": run_cut(exact),
    }
    names = list(ways)
    print(
        f"openvino {version('openvino')}, torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    print(
        f"{arguments.rounds} alternating rounds of {arguments.seconds:g} s after one warm-up; images/s are medians (least–most)"
    )
    size, random = bundle.manifest.network.input_size, np.random.default_rng(0)
    with torch.inference_mode():
        for batch in map(int, arguments.batches.split(",")):
            images = list(random.integers(0, 256, (batch, size, size, 3), dtype=np.uint8))
            rounds = [
                {name: images_a_second(run, images, arguments.seconds) for name, run in ways.items()}
                for _ in range(arguments.rounds + 1)
            ][1:]
            rates = {name: [each[name] for each in rounds] for name in names}
            shown = ", ".join(f"{n} {statistics.median(r):.0f} ({min(r):.0f}–{max(r):.0f})" for n, r in rates.items())
            ratios = {other: statistics.median(each["cut int8"] / each[other] for each in rounds) for other in names[1:]}
            print(f"batch {batch}: {shown}; cut over " + ", over ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))


if __name__ == "__main__":
    main()
