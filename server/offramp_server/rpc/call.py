"""The call that is being served, as everything beneath it sees it: who made it, its request id, what it has come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Protocol

from offramp_server.engine.types import Answer
from offramp_server.errors import OfframpError
from offramp_server.rpc.models import ServedModel
from offramp_server.rpc.status import find_code
from offramp_server.security.tokens import Caller

_call: ContextVar[Call] = ContextVar("call")


class CallTrace(Protocol):
    """A traced call. Times are nanoseconds of `statistics.now_ns`."""

    trace_id: str
    """In hex, for the log."""

    def frames_answered(
        self, model: tuple[str, str], started: int, answers: Sequence[tuple[Answer, int]], answered: int, ended: int
    ) -> None:
        """Frames came together, were read, each at its time, and answered, and their answer was written.

        `model` is its name and version.
        """
        ...

    def frames_failed(self, model: tuple[str, str], started: int, error: Exception) -> None:
        """Frames that came together were refused, or failed."""
        ...

    def end(self, code: str) -> None:
        """The call ended with this status."""
        ...


class Tracing(Protocol):
    """Begins traces."""

    def begin(self, method: str, metadata: Sequence[tuple[str, str | bytes]], request_id: str, client: str) -> CallTrace | None:
        """A call of `/package.Service/Name` begins, and goes on with the trace that its metadata names.

        None where it is not sampled.
        """
        ...


class Call:
    """Counts what one call comes to, and holds its frames against the caller's limits."""

    def __init__(self, method: str, request_id: str, caller: Caller) -> None:
        """`method` is `/package.Service/Name`."""
        self.method, self.request_id, self.caller = method, request_id, caller
        self.client = caller.name
        """The caller's name, empty where none is known."""
        self.trace: CallTrace | None = None
        self.received_bytes = self.sent_bytes = 0
        """Of messages, before compression."""
        self.exits: Counter[int] = Counter()
        """Frames answered, by exit."""
        self.errors: Counter[str] = Counter()
        """Errors sent inside the stream, by code."""
        self.models: dict[str, None] = {}
        """`name:version` of the models that answered, in order."""

    def enter(self) -> None:
        """Be what `current_call` returns in this task and those that it starts."""
        _call.set(self)

    def enter_frame(self) -> None:
        """A frame asks to come in. Raises OverloadedError or UnauthenticatedError."""
        self.caller.enter_frame()

    def leave_frame(self) -> None:
        """A frame that had come in was answered, or failed."""
        self.caller.leave_frame()

    def frames_answered(
        self, model: ServedModel, started: int, answers: Sequence[tuple[Answer, int]], answered: int, ended: int
    ) -> None:
        """Frames that came together were answered; see CallTrace."""
        self.models[f"{model.name}:{model.version}"] = None
        for answer, _ in answers:
            self.exits[answer.exit] += 1
        if self.trace is not None:
            self.trace.frames_answered((model.name, model.version), started, answers, answered, ended)

    def frames_failed(self, model: ServedModel, started: int, error: OfframpError) -> None:
        """Frames that came together were not; see CallTrace."""
        if self.trace is not None:
            self.trace.frames_failed((model.name, model.version), started, error)

    def error_sent(self, error: OfframpError) -> None:
        """An error went to the caller inside the stream."""
        self.errors[find_code(error).name] += 1

    def totals(self) -> dict[str, object]:
        """What it came to, for a line of the log."""
        return {
            "models": ",".join(self.models),
            "frames": self.exits.total(),
            "exits": {str(exit): count for exit, count in sorted(self.exits.items())},
            "errors": dict(self.errors),
            "received_bytes": self.received_bytes,
            "sent_bytes": self.sent_bytes,
        }


def current_call() -> Call:
    """The call that is being served here. Raises LookupError outside of calls."""
    return _call.get()


def current_fields() -> dict[str, str]:
    """What every log line of a call carries: its request id, client and trace, as far as there are any."""
    call = _call.get(None)
    if call is None:
        return {}
    fields = {"request_id": call.request_id, "client": call.client, "trace_id": call.trace.trace_id if call.trace else ""}
    return {name: value for name, value in fields.items() if value}
