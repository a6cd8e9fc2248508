"""The command `offramp bench`: load on a server, and what it gives."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from offramp_client.bench_frames import BenchFrames, load_frames
from offramp_client.bench_lane import open_lanes
from offramp_client.bench_load import run_load
from offramp_client.bench_types import PERCENTILES, Load, Measurement
from offramp_client.cli import options
from offramp_client.cli.access import Access, read_access
from offramp_client.cli.outcome import console, run
from offramp_client.cli.sharing import shares
from offramp_client.types import Control, Model


@shares(control=options.read_control, access=read_access)
def bench(
    access: Access,
    control: Control,
    source: Annotated[str, typer.Argument(help="demo, or a folder; <class>/<image> in it gives an accuracy too.")] = "demo",
    address: options.Address = options.DEFAULT_ADDRESS,
    model: options.ModelName = "",
    version: options.Version = "",
    streams: Annotated[int, typer.Option(min=1, help="Streams at the same time.")] = 8,
    in_flight: Annotated[int, typer.Option(min=1, help="Frames in flight on each stream, all the time.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Frames in one message.")] = 1,
    rate: Annotated[
        float | None,
        typer.Option(metavar="FPS", help="Open loop: so many frames a second in all, at random times, however slow the answers."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of the measurement.")] = 10.0,
    warm_up: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Load before it.")] = 2.0,
    connections: Annotated[int, typer.Option(min=1, help="Connections that the streams share.")] = 1,
    lambdas: Annotated[
        str, typer.Option("--lambda", metavar="L[,L...]", help="Price of compute; of several, every frame draws one.")
    ] = "",
    images: Annotated[int, typer.Option(min=1, help="Different images, sent in turn.")] = 512,
    as_they_are: Annotated[
        bool, typer.Option("--as-they-are", help="Send images coded and in their size, in place of pixels in the model's.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the demo, the draw of lambdas and the times of an open loop.")] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Put load on a server and measure frames a second, latency and exits. How busy this client was is shown too."""
    prices: list[float | None] = [*options.numbers(lambdas, "--lambda")] or [None]
    controls = [replace(control, lambda_=price) for price in prices]

    async def work() -> tuple[Measurement, BenchFrames, Model]:
        load = Load(streams, in_flight, batch, rate, warm_up, seconds, seed=seed)
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(access.client(address)) for _ in range(connections)]
            described = await clients[0].model(model, version)
            size = None if as_they_are else (described.input_width, described.input_height)
            frames = load_frames(source, images, described.labels, size, seed=seed)
            lanes = open_lanes(clients, frames.images, controls, model=described.name, version=described.version, seed=seed)
            return await run_load(load, lanes, len(frames.images)), frames, described

    seen, frames, described = run(work())
    report = seen.report(frames.truth)
    if as_json:
        about = {"address": address, "model": described.name, "version": described.version, "backend": described.backend}
        typer.echo(json.dumps(about | {"device": described.device, "images": len(frames.images)} | report))
    else:
        console().print(_table(report, described), highlight=False)
    if not seen.answered:
        raise typer.Exit(1)


def _table(report: dict[str, Any], model: Model) -> Table:
    title = f"{model.name} {model.version} on {model.backend} ({model.device})"
    table = Table(box=box.SIMPLE, show_header=False, title=title, title_justify="left")
    load = f"{report['streams']} streams, {report['frames_a_message']} frames a message, "
    if report["loop"] == "closed":
        load += f"{report['in_flight_a_stream']} frames of each in flight"
    else:
        load += f"{report['offered_frames_per_s']:g} frames/s offered"
    table.add_row("load", load)
    table.add_row("frames", f"{report['frames']} in {report['seconds']:.1f} s")
    table.add_row("frames/s", f"{report['frames_per_s']:g}")
    percentiles = ((f"p{p}", report["latency_ms"][f"p{p}"]) for p in PERCENTILES)
    table.add_row("latency", ", ".join(f"{name} {'–' if value is None else f'{value:g} ms'}" for name, value in percentiles))
    counted = sum(report["exits"].values())
    table.add_row("exits", ", ".join(f"{exit}: {count / counted:.1%}" for exit, count in report["exits"].items()) or "–")
    if report["mean_cost"] is not None:
        table.add_row("compute", f"{report['mean_cost']:.3f} of the full network")
    if report.get("accuracy") is not None:
        table.add_row("accuracy", f"{report['accuracy']:.4f} over {report['images_with_answer']} images")
    for name, shown in (("errors", report["errors"]), ("streams lost", report["streams_lost"])):
        if shown:
            table.add_row(name, ", ".join(f"{code} {count}" for code, count in shown.items()))
    if report["unanswered"]:
        table.add_row("unanswered", str(report["unanswered"]))
    late = report.get("generator_late_ms_p99")
    busy = f"{report['client_cores']:.2f} cores busy, {report['client_cpu_share']:.0%} of this machine's"
    table.add_row("this client", busy + (f"; sent up to {late:g} ms late (p99)" if late is not None else ""))
    return table
