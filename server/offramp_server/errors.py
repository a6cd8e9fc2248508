"""What can go wrong with a request, in the server's own words; rpc/ maps each class to a gRPC status.

OfframpError
├── InvalidRequestError      a field of the request is wrong
├── ModelNotFoundError       no such model or version is loaded, or in the store
├── ModelLoadError           a model can't be loaded; what was served goes on being served
├── UnsupportedError         the protocol has it and this server does not
├── OverloadedError          too much in flight; try again after a while
├── DeadlineError            the deadline passed before the frame ran
├── UnavailableError         draining, or no model ready
├── UnauthenticatedError     credentials are missing or wrong
├── PermissionDeniedError    the credentials do not cover the call
└── ExecutionError           a fault of ours; its message holds nothing but that
"""

from __future__ import annotations

MAX_CHARACTERS = 500
"""Of a message: it may quote what was sent, and travels in a header."""


class OfframpError(Exception):
    """Base of every error that may reach a caller; its message is safe to send, and short enough."""

    def __init__(self, message: str) -> None:
        super().__init__(_shorten(message))


class InvalidRequestError(OfframpError):
    """A field is wrong. `field` is its path in the request, such as `frame.control.lambda`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.reason = _shorten(field), _shorten(message)


class ModelNotFoundError(OfframpError):
    """No such model or version is loaded, or in the store."""


class ModelLoadError(OfframpError):
    """A model version can't be loaded: damaged, of a foreign format, or not fit for the device."""


class UnsupportedError(OfframpError):
    """Something that the protocol has and this server does not, or has switched off."""


class OverloadedError(OfframpError):
    """Too much is in flight."""

    def __init__(self, message: str, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class DeadlineError(OfframpError):
    """The deadline passed before the frame ran."""


class UnavailableError(OfframpError):
    """The server is draining, or no model is ready."""


class UnauthenticatedError(OfframpError):
    """Credentials are missing or wrong; the message says nothing of what was sent."""


class PermissionDeniedError(OfframpError):
    """The caller is known and may not do this."""


class ExecutionError(OfframpError):
    """The network could not be run on a frame; the log has the reason."""


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
