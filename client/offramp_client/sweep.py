"""Measures what a choice of λ and τ gives on labelled images: accuracy, compute, latency and exits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from offramp_client.client import Client
from offramp_client.errors import SourceError
from offramp_client.sources import read_image
from offramp_client.tally import Tally
from offramp_client.types import Control, Frame, Model, Result


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One choice with what it gave."""

    control: Control
    """Really used, every field resolved."""
    frames: int
    """Images classified."""
    failed: int
    """Images answered by an error; they count in nothing else."""
    accuracy: float
    """In [0, 1]."""
    mean_cost: float
    """Over the full network's MACs."""
    latency_p50_ms: float
    """As this client saw it, with a whole window of frames in flight."""
    latency_p95_ms: float
    exit_fractions: tuple[float, ...]
    """Share of images that left at each exit, from the first."""


async def sweep(
    client: Client,
    model: Model,
    images: list[tuple[Path, str]],
    controls: list[Control],
    window: int = 32,
    progress: Callable[[], None] = lambda: None,
) -> AsyncIterator[SweepPoint]:
    """Stream all images once for each control and yield what came of it.

    Args:
        client: connected to the server.
        model: which to measure.
        images: each with the name of its class.
        controls: the choices to measure.
        window: frames in flight; larger fills the server's batches, smaller shows a lone caller's latency.
        progress: called after each frame.

    Raises:
        SourceError: a class is none of the model's.
        RequestError: a stream failed, or every frame of one did.
    """
    unknown = sorted({label for _, label in images} - set(model.labels))
    if unknown:
        raise SourceError(f"{model.name} has no class {', '.join(unknown[:5])}; it has {', '.join(model.labels[:20])}")
    for control in controls:
        yield await _measure(client, model, images, control, window, progress)


async def _measure(
    client: Client,
    model: Model,
    images: list[tuple[Path, str]],
    control: Control,
    window: int,
    progress: Callable[[], None],
) -> SweepPoint:
    tally, right, failure = Tally(), 0, None
    frames = _frames([path for path, _ in images])
    stream = client.stream(frames, model=model.name, version=model.version, control=control, ordered=False, window=window)
    async with stream:
        async for result in stream:
            tally.add(result)
            right += _is_right(result, images)
            failure = failure or result.error
            progress()
    if not tally.answered and failure is not None:
        raise failure.exception()
    return SweepPoint(
        control=stream.control,
        frames=tally.answered,
        failed=tally.failed,
        accuracy=right / max(tally.answered, 1),
        mean_cost=tally.mean_cost,
        latency_p50_ms=tally.latency_ms(50),
        latency_p95_ms=tally.latency_ms(95),
        exit_fractions=tuple(tally.fraction(exit.exit) for exit in model.exits),
    )


def _frames(paths: list[Path]) -> Iterator[Frame]:
    for number, path in enumerate(paths):
        yield Frame(read_image(path), frame_id=number)


def _is_right(result: Result, images: list[tuple[Path, str]]) -> bool:
    return result.classification is not None and result.classification.name == images[result.frame_id][1]
