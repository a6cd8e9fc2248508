"""The scheduler measured, on the engine in this process: strategies side by side, and overload with and without degrading.

    python bench/scheduler.py BUNDLE strategies [--seconds 5] [--rounds 3]
    python bench/scheduler.py BUNDLE overload [--seconds 8] [--max-in-flight 128]

Writes scheduler_<name>.json into --out and, with --plots, scheduler_<name>.svg there; prints Markdown. Where the environment
variable OFFRAMP_CIFAR10 names an image folder its test pictures are used, else the client's demo. docs/scheduling.md has results.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from loads import Pictures, allowing, closed_loop, open_loop, read_pictures
from offramp_model.bundle import open_bundle
from offramp_model.routing import Policy
from offramp_server.backends import BATCHES_A_SHARE, Wish, load_backend
from offramp_server.engine.engine import Engine
from offramp_server.engine.overload import PriceTable
from offramp_server.engine.scheduler import LaneState, Strategy, choose_lane
from offramp_server.engine.types import Answer, Backend, EngineLimits, Frame, FrameControl
from offramp_server.rpc.control import ModelControls, price_table_of
from scheduler_plots import draw_overload, draw_strategies

LOADS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
"""Offered over capacity."""
Row = dict[str, float | str]


def deepest_first(lanes: Sequence[LaneState], max_wait: float) -> int | None:
    """The deepest lane with any frame: each goes through as fast as it can, in batches as small as that makes them."""
    return max((index for index, lane in enumerate(lanes) if lane.length), default=None)


def fullest_first(lanes: Sequence[LaneState], max_wait: float) -> int | None:
    """The lane with the most frames, the deepest among equals: batches as large as can be, whoever waits."""
    waiting = [index for index, lane in enumerate(lanes) if lane.length]
    return max(waiting, key=lambda index: (lanes[index].length, index), default=None)


STRATEGIES: dict[str, Strategy] = {
    "deepest first": deepest_first,
    "fullest first": fullest_first,
    "efficient batches": choose_lane,
}


class _Silent:
    """Implements engine.types.EngineMetrics and keeps nothing."""

    def frame_admitted(self, frame: Frame) -> None: ...

    def frame_answered(self, frame: Frame, answer: Answer) -> None: ...

    def frame_refused(self, reason: str) -> None: ...

    def frame_dropped(self, reason: str) -> None: ...

    def batch_ran(self, stage: str, size: int, seconds: float, waits: Sequence[float]) -> None: ...

    def in_flight(self, frames: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Setup:
    """What every measurement shares."""

    backend: Backend
    pictures: Pictures
    control: FrameControl
    """The model's default."""
    prices: PriceTable
    seconds: float
    within_ms: float


@asynccontextmanager
async def running(setup: Setup, limits: EngineLimits, choose: Strategy = choose_lane) -> AsyncIterator[Engine]:
    """A warm engine, with a thread for each share of the backend."""
    threads = BATCHES_A_SHARE * (os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as executor:
        engine = Engine(setup.backend, limits, _Silent(), executor, prices=setup.prices, choose=choose)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()


async def find_capacity(setup: Setup, controls: Sequence[FrameControl]) -> float:
    """Frames a second with always enough in flight to fill batches."""
    async with running(setup, EngineLimits()) as engine:
        tally = await closed_loop(engine, setup.pictures, controls, 256, setup.seconds)
    return tally.summary(setup.within_ms)["answered_fps"]


async def compare_strategies(setup: Setup, rounds: int) -> list[Row]:
    """Medians over alternating rounds, in a closed loop and at Poisson arrivals, frames under several λ and all exits in use."""
    lambdas = setup.prices.lambdas or (setup.control.lambda_,)
    controls = [*(_at(setup.control, lambda_) for lambda_ in (lambdas[0], lambdas[len(lambdas) // 3])), setup.control]
    capacity = await find_capacity(setup, controls)
    cases = [("closed", n) for n in (1, 8, 64, 256)] + [("open", load) for load in (0.3, 0.6, 0.9)]
    measured: dict[tuple[str, str, float], list[dict[str, float]]] = {}
    for round_ in range(rounds):
        for kind, value in cases:
            for name, choose in STRATEGIES.items():
                async with running(setup, EngineLimits(), choose) as engine:
                    if kind == "closed":
                        tally = await closed_loop(engine, setup.pictures, controls, int(value), setup.seconds)
                    else:
                        tally = await open_loop(engine, setup.pictures, controls, value * capacity, setup.seconds, round_)
                measured.setdefault((name, kind, value), []).append(tally.summary(setup.within_ms))
    rows: list[Row] = []
    for (name, kind, value), runs in measured.items():
        medians = {key: statistics.median(each[key] for each in runs) for key in runs[0]}
        p99s = [each["p99_ms"] for each in runs]
        rows.append({"strategy": name, "loop": kind, "value": value, **medians, "p99_low": min(p99s), "p99_high": max(p99s)})
    return rows


async def compare_overload(setup: Setup, max_in_flight: int) -> list[Row]:
    """Offered load from half to three times the capacity at the default control, with and without allow_degrade."""
    limits, capacity = EngineLimits(max_in_flight=max_in_flight), await find_capacity(setup, [setup.control])
    rows: list[Row] = []
    for load in LOADS:
        for allowed in (False, True):
            controls = allowing([setup.control], allow_degrade=allowed)
            async with running(setup, limits) as engine:
                tally = await open_loop(engine, setup.pictures, controls, load * capacity, setup.seconds, seed=round(load * 100))
            rows.append({"allow_degrade": str(allowed).lower(), "load": load, **tally.summary(setup.within_ms)})
    return rows


def show(rows: list[Row], columns: dict[str, str]) -> str:
    """A Markdown table; `columns` gives each one's format."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(format(row[name], form) for name, form in columns.items()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("what", choices=("strategies", "overload"))
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of strategies")
    parser.add_argument("--max-in-flight", type=int, default=128, help="under overload")
    parser.add_argument("--within-ms", type=float, default=1000.0, help="an answer that counts as goodput")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--backend", choices=("auto", "torch", "openvino"), default="auto")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--plots", type=Path, help="folder for the plot")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    backend = load_backend(bundle, Wish(backend=arguments.backend))
    pictures = read_pictures(backend, bundle.manifest.labels, arguments.pictures, seed=0)
    control = ModelControls(bundle.manifest).default.frame_control
    setup = Setup(backend, pictures, control, price_table_of(bundle.manifest), arguments.seconds, arguments.within_ms)
    about = f"{_processor()}, {torch.get_num_threads()} threads, {backend.name} {backend.device_description}, {pictures.truth}"
    if arguments.what == "strategies":
        rows = asyncio.run(compare_strategies(setup, arguments.rounds))
        columns = {"loop": "", "value": "g", "strategy": "", "answered_fps": ".0f", "p50_ms": ".1f", "p99_ms": ".1f"}
        draw = draw_strategies
    else:
        rows = asyncio.run(compare_overload(setup, arguments.max_in_flight))
        columns = {"load": "g", "allow_degrade": "", "offered_fps": ".0f", "goodput_fps": ".0f", "refused": ".2f"}
        columns |= {"p50_ms": ".0f", "p99_ms": ".0f", "accuracy": ".3f", "mean_exit": ".2f", "degraded": ".2f"}
        draw = draw_overload
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = f"scheduler_{arguments.what}"
    (arguments.out / f"{name}.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    if arguments.plots:
        draw(rows, arguments.plots / f"{name}.svg")
    print(f"{about}\n\n{show(rows, columns)}")


def _at(control: FrameControl, lambda_: float) -> FrameControl:
    return FrameControl(Policy.ROUTER, lambda_, control.thresholds, 1, control.max_exit)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
