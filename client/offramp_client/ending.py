"""How a call ended, noted before grpc.aio can lose it.

When a server ends a stream while the client writes, the write fails, and grpc.aio then puts INTERNAL, "Internal error
from Core", in the place of the status that the server sent (https://github.com/grpc/grpc/issues/36066), before it comes
or after. The status is noted at the moment it comes, and taken from here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from grpc import aio  # type: ignore[attr-defined, unused-ignore]  # newer stubs leave it out

Value = TypeVar("Value")

CORE_FAILED = "Internal error from Core"
LATE_BY_S = 1.0
"""How long the server's status may come after grpc.aio's own."""


class Ending:
    """The status that the server gave one call."""

    def __init__(self, call: Any) -> None:
        """Watch a call that has just been opened."""
        self._error: aio.AioRpcError | None = None
        self._call = call
        call.add_done_callback(self._note)

    async def error(self, seen: aio.AioRpcError) -> aio.AioRpcError:
        """Return the error that the server sent, or the one seen where it sends none."""
        clock = asyncio.get_running_loop().time
        until = clock() + LATE_BY_S
        while self._error is None and seen.details() == CORE_FAILED and clock() < until:
            await asyncio.sleep(0.01)  # grpc.aio tells nobody when a second status takes the place of its own
            self._note(self._call)
        return self._error or seen

    def _note(self, call: Any) -> None:
        if self._error is None:
            code, details = _at_once(call.code()), _at_once(call.details())
            if code is not None and code.value[0] != 0 and details != CORE_FAILED:
                trailing = _at_once(call.trailing_metadata()) or aio.Metadata()
                self._error = aio.AioRpcError(code, aio.Metadata(), trailing, details=details)


def _at_once(coroutine: Coroutine[Any, Any, Value]) -> Value | None:
    """Run a coroutine that has nothing to wait for, since a callback can't wait; None where it would have to."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        value: Value = done.value
        return value
    coroutine.close()
    return None
