"""The error table."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2

from offramp_server.errors import (
    MAX_CHARACTERS,
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
from offramp_server.rpc.status import find_code, write_error, write_status

TABLE = [
    (InvalidRequestError("frame.rgb8", "is wrong"), grpc.StatusCode.INVALID_ARGUMENT),
    (ModelNotFoundError("no model"), grpc.StatusCode.NOT_FOUND),
    (ModelLoadError("damaged"), grpc.StatusCode.FAILED_PRECONDITION),
    (UnsupportedError("not here"), grpc.StatusCode.UNIMPLEMENTED),
    (OverloadedError("too much", 1500), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineError("too late"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (UnavailableError("draining"), grpc.StatusCode.UNAVAILABLE),
    (UnauthenticatedError("no token"), grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDeniedError("no scope"), grpc.StatusCode.PERMISSION_DENIED),
    (ExecutionError("failed"), grpc.StatusCode.INTERNAL),
]


@pytest.mark.parametrize(("error", "code"), TABLE)
def test_each_error_has_its_code_on_the_call_and_in_a_stream(error: OfframpError, code: grpc.StatusCode) -> None:
    assert find_code(error) is code
    assert write_status(error).code == code.value[0]
    assert write_error(error).code == code.value[0]
    assert write_status(error).message == write_error(error).message == str(error)


def test_every_error_class_is_in_the_table() -> None:
    assert {type(error) for error, _ in TABLE} == set(OfframpError.__subclasses__())


def test_what_quotes_its_caller_stays_short_enough_for_a_header() -> None:
    for error in (InvalidRequestError("f" * 100_000, "τ" * 100_000), ModelNotFoundError("m" * 100_000)):
        assert write_status(error).ByteSize() < 4096
        assert len(str(error)) == MAX_CHARACTERS


def test_a_subclass_has_its_parents_code() -> None:
    class TruncatedError(InvalidRequestError):
        pass

    assert find_code(TruncatedError("frame", "short")) is grpc.StatusCode.INVALID_ARGUMENT
    assert find_code(OfframpError("unforeseen")) is grpc.StatusCode.INTERNAL


def test_a_wrong_field_is_named_in_the_details() -> None:
    error = InvalidRequestError("frame.rgb8", "is wrong")
    detail = error_details_pb2.BadRequest()
    assert write_status(error).details[0].Unpack(detail)
    assert [(v.field, v.description) for v in detail.field_violations] == [("frame.rgb8", "is wrong")]
    assert write_error(error).field == "frame.rgb8"


def test_overload_says_when_to_come_back() -> None:
    detail = error_details_pb2.RetryInfo()
    assert write_status(OverloadedError("too much", 1500)).details[0].Unpack(detail)
    assert detail.retry_delay.ToMilliseconds() == 1500
    assert write_error(OverloadedError("too much", 1500)).retry_after_ms == 1500
