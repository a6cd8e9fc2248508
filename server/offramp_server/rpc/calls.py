"""Counts of what is open: calls of the server or of one model, and streams against their bound."""

from __future__ import annotations

import asyncio

from offramp_server.errors import OverloadedError

STREAM_RETRY_AFTER_MS = 1000


class OpenCalls:
    """Counts calls that are being served; a context manager around each of them, or `enter` and `leave`."""

    def __init__(self) -> None:
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """One more."""
        self.count += 1
        self._idle.clear()

    def leave(self) -> None:
        """One less."""
        self.count -= 1
        if self.count == 0:
            self._idle.set()

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *_: object) -> None:
        self.leave()

    async def wait_idle(self) -> None:
        """Return when no call is being served."""
        await self._idle.wait()


class StreamSlots:
    """The places of open streams, of all services together; a context manager around each stream."""

    def __init__(self, most: int) -> None:
        self._most, self._open = most, 0

    def __enter__(self) -> None:
        """Raises OverloadedError where every place is taken."""
        if self._open >= self._most:
            raise OverloadedError(f"{self._open} streams are open, the most that this server takes", STREAM_RETRY_AFTER_MS)
        self._open += 1

    def __exit__(self, *_: object) -> None:
        self._open -= 1
