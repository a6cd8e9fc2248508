"""The command `offramp stream`: frames from a source, shown as they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Annotated

import typer

from offramp_client.cli import options
from offramp_client.cli.access import Access, read_access
from offramp_client.cli.outcome import console, fail, run
from offramp_client.cli.sharing import shares
from offramp_client.live import LiveView
from offramp_client.sources import SourceFrame, open_source
from offramp_client.streaming import ClassificationStream
from offramp_client.tally import Tally
from offramp_client.types import Control, Frame, Model
from offramp_client.views import JsonView, LinesView, View, summary

WATCHABLE_FPS = 15.0
"""Rate of the demo where somebody watches it live and gave no rate."""


@shares(control=options.read_control, access=read_access)
def stream(
    access: Access,
    control: Control,
    source: Annotated[str, typer.Argument(help="demo, camera, camera:N, a folder of images, an image or a video file.")] = "demo",
    address: options.Address = options.DEFAULT_ADDRESS,
    model: options.ModelName = "",
    version: options.Version = "",
    lambda_: options.Lambda = None,
    top_k: options.TopK = 1,
    window: options.Window = 32,
    frames: Annotated[int | None, typer.Option(min=1, help="End after so many frames.")] = None,
    fps: Annotated[float | None, typer.Option(min=0.01, help="Send no more frames a second than this.")] = None,
    unordered: Annotated[bool, typer.Option("--unordered", help="Take results as they finish.")] = False,
    lambda_schedule: Annotated[
        str | None, typer.Option(metavar="L,L,...", help="Retune the stream to these lambdas in turn, over and over.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Frames for which each lambda of the schedule holds.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the demo.")] = 0,
    plain: Annotated[bool, typer.Option("--plain", help="One line a frame in place of the live view.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Stream frames to the server and watch where they leave the network. Ctrl-C ends it and prints the summary."""
    control = replace(control, lambda_=lambda_)
    schedule = options.numbers(lambda_schedule, "--lambda-schedule") if lambda_schedule else []
    if schedule and (control.max_mean_cost, control.max_accuracy_drop, control.confidence) != (None, None, None):
        raise typer.BadParameter("can't be given with a wanted outcome, which chooses lambda", param_hint="--lambda-schedule")
    out, tally = console(), Tally()
    live = out.is_terminal and not plain and not as_json
    if live and fps is None and source == "demo":
        fps = WATCHABLE_FPS
    described: Model | None = None

    async def work() -> None:
        nonlocal described
        async with access.client(address) as client:
            described = await client.model(model, version)
            feed = _Feed(open_source(source, seed), frames, fps, schedule, every)
            running = client.stream(
                feed.frames(),
                model=model,
                version=version,
                control=control.with_fields(lambda_=schedule[0] if schedule else None),
                ordered=not unordered,
                top_k=top_k,
                window=window,
            )
            feed.stream = running
            view: View = LinesView(out, len(described.exits))
            if as_json:
                view = JsonView(out)
            elif live:
                view = LiveView(out, described, address, tally)
            async with running:
                with view:
                    async for result in running:
                        tally.add(result)
                        view.show(feed.sent.pop(result.frame_id), result)

    try:
        run(work())
    finally:
        if described is not None and not as_json and tally.answered + tally.failed:
            out.print(summary(tally, len(described.exits)), highlight=False)
    if tally.failed and not tally.answered:
        fail("no frame could be classified")
        raise typer.Exit(1)


class _Feed:
    """Takes frames from a source at its pace, and remembers them until they are answered."""

    def __init__(
        self, source: Iterator[SourceFrame], limit: int | None, fps: float | None, schedule: list[float], every: int
    ) -> None:
        self.sent: dict[int, SourceFrame] = {}
        self.stream: ClassificationStream | None = None
        self._source, self._limit, self._fps, self._schedule, self._every = source, limit, fps, schedule, every

    async def frames(self) -> AsyncIterator[Frame]:
        clock = asyncio.get_running_loop().time
        due = clock()
        number = 0
        # Reading a camera or a file blocks, so it is done in a thread.
        while number != self._limit and (frame := await asyncio.to_thread(next, self._source, None)) is not None:
            if self._fps is not None:
                await asyncio.sleep(due - clock())
                due = max(due + 1 / self._fps, clock())
            turn, within = divmod(number, self._every)
            if self._schedule and turn > 0 and within == 0 and self.stream is not None:
                await self.stream.retune(lambda_=self._schedule[turn % len(self._schedule)])
            self.sent[number] = frame
            yield Frame(frame.image, number, timestamp_us=frame.timestamp_us)
            number += 1
