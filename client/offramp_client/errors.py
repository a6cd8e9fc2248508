"""Everything that the client raises on purpose.

OfframpClientError
├── RequestError             a server refused or failed a call, or one frame of a stream
│   ├── InvalidRequestError      a field of the request is wrong; .field names it
│   ├── NotFoundError            no such model or version is loaded
│   ├── OverloadedError          too much in flight; .retry_after_ms says how long to wait
│   ├── DeadlineExceededError    no answer within the time given
│   ├── UnavailableError         nobody listens, the server drains, or no model is ready
│   ├── UnauthenticatedError     credentials are missing or wrong
│   ├── PermissionDeniedError    the credentials do not cover this call
│   └── ServerFaultError         a fault of the server's, or an answer outside the contract
├── StreamClosedError        the stream takes nothing more
├── CredentialsError         a certificate, key or token is of no use
└── SourceError              frames cannot be read
    └── MissingExtraError        an optional package is not installed; the message says how to install it
"""

from __future__ import annotations


class OfframpClientError(Exception):
    """Base of everything that the client raises on purpose; its message is one line for people."""


class RequestError(OfframpClientError):
    """A server refused or failed a call, or one frame of a stream."""

    def __init__(self, message: str, *, code: str = "", field: str = "", retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.code = code
        """Canonical gRPC status, such as NOT_FOUND; empty where no server was asked."""
        self.field = field
        """The field that is wrong, such as `control.lambda`; empty where no field is."""
        self.retry_after_ms = retry_after_ms
        """How long to wait before trying again; 0 where the server gave no such hint."""

    def __str__(self) -> str:
        message = str(self.args[0])
        return f"{self.field}: {message}" if self.field and not message.startswith(self.field) else message


class InvalidRequestError(RequestError):
    """A field of the request is wrong; `.field` names it."""


class NotFoundError(RequestError):
    """No such model or version is loaded."""


class OverloadedError(RequestError):
    """Too much is in flight; `.retry_after_ms` says how long to wait."""


class DeadlineExceededError(RequestError):
    """No answer came within the time given."""


class UnavailableError(RequestError):
    """Nobody listens at the address, the server drains, or no model is ready."""


class UnauthenticatedError(RequestError):
    """Credentials are missing or wrong."""


class PermissionDeniedError(RequestError):
    """The credentials do not cover this call."""


class ServerFaultError(RequestError):
    """A fault of the server's, or an answer outside the contract."""


class StreamClosedError(OfframpClientError):
    """The stream takes nothing more: it ended, was closed, or has sent its last frame."""


class CredentialsError(OfframpClientError):
    """A certificate, key or token of one's own is of no use; the message never holds a token."""


class SourceError(OfframpClientError):
    """Frames cannot be read."""


class MissingExtraError(SourceError):
    """An optional package is not installed; the message says how to install it."""

    def __init__(self, need: str, extra: str) -> None:
        super().__init__(f"{need} needs an optional package: pip install 'offramp[{extra}]'")


_BY_CODE: dict[str, type[RequestError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "FAILED_PRECONDITION": InvalidRequestError,
    "OUT_OF_RANGE": InvalidRequestError,
    "NOT_FOUND": NotFoundError,
    "RESOURCE_EXHAUSTED": OverloadedError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "UNAVAILABLE": UnavailableError,
    "CANCELLED": UnavailableError,
    "ABORTED": UnavailableError,
    "UNAUTHENTICATED": UnauthenticatedError,
    "PERMISSION_DENIED": PermissionDeniedError,
}


def error_for(code: str, message: str, *, field: str = "", retry_after_ms: int = 0) -> RequestError:
    """Return the error that fits a canonical gRPC status name; ServerFaultError for those without a class of their own."""
    kind = _BY_CODE.get(code, ServerFaultError)
    return kind(message or code, code=code, field=field, retry_after_ms=retry_after_ms)
