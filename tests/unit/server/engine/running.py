"""An engine on a fake backend, a clock that tests move, and a way to hold the executor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from offramp_server.engine.engine import Engine
from offramp_server.engine.overload import PriceTable
from offramp_server.engine.types import EngineLimits
from tests.unit.server.engine.fakes import FakeBackend, RecordingMetrics, frame


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def running(
    limits: EngineLimits | None = None,
    clock: Callable[[], float] | None = None,
    prices: PriceTable | None = None,
    backend: FakeBackend | None = None,
) -> AsyncIterator[tuple[Engine, FakeBackend, RecordingMetrics]]:
    backend, metrics = backend or FakeBackend(), RecordingMetrics()
    with ThreadPoolExecutor(max(1, len(backend.shares))) as executor:
        engine = Engine(backend, limits or EngineLimits(max_batch=4), metrics, executor, clock or Clock(), prices)
        await engine.start()
        everyone = (backend, *backend.shares)
        for each in everyone:
            each.batches.clear()
            each.types.clear()
            each.running.clear()
        try:
            yield engine, backend, metrics
        finally:
            for each in everyone:
                each.gate.set()
            await engine.close()


async def block(engine: Engine, backend: FakeBackend) -> asyncio.Future:  # type: ignore[type-arg]
    """Occupy the executor with one frame until the gate opens."""
    backend.gate.clear()
    backend.running.clear()
    future = engine.submit(frame(halting=1.0))
    await asyncio.to_thread(backend.running.wait, 10)
    return future
