"""Hold a compute budget on a live stream by turning τ: frames leave sooner while they cost too much, later while there is room.

    python examples/hold_budget.py [demo | FOLDER | film.mp4] [--budget 0.6] [--frames 640] [--address localhost:50051]

`max_mean_cost` asks the server for a λ that was measured on the model's own held-out frames. This loop measures the frames that
really come, so it holds the budget in the mean on whatever they show: fog, night, another camera.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress
from itertools import islice

from offramp_client import Client, Frame, StreamClosedError
from offramp_client.sources import open_source

EVERY = 16
"""Frames between two turns of τ; more than the window, so that a turn is felt before the next one."""
WINDOW = 8
GAIN = 0.5
"""How far τ moves for each unit of compute over or under the budget."""
LOWEST, HIGHEST = 0.01, 0.99


def turned(threshold: float, spent: float, budget: float) -> float:
    """The next τ. Each turn adds up what was over or under, so for as long as τ has room the mean error must vanish."""
    return min(max(threshold + GAIN * (budget - spent), LOWEST), HIGHEST)


async def main() -> None:
    """Read the command line, stream, and print every turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="demo", help="what `offramp stream` takes")
    parser.add_argument("--budget", type=float, default=0.6, help="mean compute to hold, over the full network's")
    parser.add_argument("--frames", type=int, default=640, help="frames to send")
    parser.add_argument("--lambda", dest="lambda_", type=float, help="price of compute; the model's own where not given")
    parser.add_argument("--address", default="localhost:50051", help="host:port of the server")
    arguments = parser.parse_args()
    threshold, costs = 0.5, list[float]()
    frames = (Frame(frame.image) for frame in islice(open_source(arguments.source), arguments.frames))
    async with Client(arguments.address) as client:
        stream = client.stream(
            frames, policy="router", lambda_=arguments.lambda_, threshold=threshold, window=WINDOW, raise_errors=True
        )
        async for result in stream:
            costs.append(result.unwrap().cost_ratio)
            if len(costs) % EVERY == 0:
                spent = sum(costs[-EVERY:]) / EVERY
                threshold = turned(threshold, spent, arguments.budget)
                with suppress(StreamClosedError):  # the last frames are on their way already
                    await stream.retune(threshold=threshold)
                print(f"{len(costs):>6}  compute {spent:.3f}  τ {threshold:.3f}")
    print(f"mean compute {sum(costs) / len(costs):.3f} over {len(costs)} frames, with a budget of {arguments.budget:g}")


if __name__ == "__main__":
    asyncio.run(main())
