"""Redraw docs/images/live.svg from a running server: `make serve`, then `.venv/bin/python docs/images/live_view.py`."""

from __future__ import annotations

import asyncio
import io
from itertools import islice
from pathlib import Path

from rich.console import Console

from offramp_client import Client
from offramp_client.live import HEIGHT, WIDTH, LiveView
from offramp_client.sources import open_source
from offramp_client.tally import Tally

ADDRESS = "localhost:50051"
FRAMES = 130  # ends on the second photograph with smoke rising


async def draw() -> None:
    """Stream the demo, and keep the picture that the terminal shows at the end."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, height=HEIGHT, force_terminal=True, color_system="truecolor")
    tally = Tally()
    async with Client(ADDRESS) as client:
        view = LiveView(console, await client.model(), ADDRESS, tally)
        frames = list(islice(open_source("demo", 0), FRAMES))
        async for result in client.stream([frame.image for frame in frames], lambda_=0.15):
            tally.add(result)
            view.show(frames[result.frame_id], result)
    console.print(view.render())
    Path(__file__).with_name("live.svg").write_text(console.export_svg(title="offramp stream demo"))


if __name__ == "__main__":
    asyncio.run(draw())
