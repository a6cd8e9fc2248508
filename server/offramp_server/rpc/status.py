"""The one table from the server's errors to gRPC codes, as a call's status or as an error inside a stream."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from offramp.v1 import classification_pb2 as pb
from offramp_server.errors import (
    DeadlineError,
    ExecutionError,
    InvalidRequestError,
    ModelLoadError,
    ModelNotFoundError,
    OfframpError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)

CODES: dict[type[OfframpError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    ModelLoadError: grpc.StatusCode.FAILED_PRECONDITION,
    UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    ExecutionError: grpc.StatusCode.INTERNAL,
}


def find_code(error: OfframpError) -> grpc.StatusCode:
    """The canonical code of an error."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), grpc.StatusCode.INTERNAL)


def write_status(error: OfframpError) -> status_pb2.Status:
    """The call's status: code, message, and BadRequest or RetryInfo where there is something to say."""
    number: int = find_code(error).value[0]
    status = status_pb2.Status(code=number, message=str(error))
    detail: error_details_pb2.BadRequest | error_details_pb2.RetryInfo | None = None
    if isinstance(error, InvalidRequestError):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.reason)
        detail = error_details_pb2.BadRequest(field_violations=[violation])
    elif isinstance(error, OverloadedError):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        detail = error_details_pb2.RetryInfo(retry_delay=delay)
    if detail is not None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def write_error(error: OfframpError) -> pb.Error:
    """The same inside a stream."""
    number: int = find_code(error).value[0]
    return pb.Error(
        code=number,
        message=str(error),
        field=error.field if isinstance(error, InvalidRequestError) else "",
        retry_after_ms=error.retry_after_ms if isinstance(error, OverloadedError) else 0,
    )
