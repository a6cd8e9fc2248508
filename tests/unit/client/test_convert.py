"""Dataclasses to messages and back."""

from __future__ import annotations

import numpy as np
import pytest
from grpc import StatusCode, aio
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from offramp.v1 import classification_pb2 as pb
from offramp_client import (
    Control,
    DeadlineExceededError,
    ExitReason,
    Frame,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    Policy,
    RequestError,
    ServerFaultError,
    UnauthenticatedError,
    UnavailableError,
    convert,
)
from tests.unit.client.fake_server import model, status

finite = st.floats(allow_nan=False)
exits = st.none() | st.integers(0, 2**32 - 1)
controls = st.builds(
    Control,
    policy=st.none() | st.sampled_from(Policy),
    lambda_=st.none() | finite,
    threshold=st.none() | finite,
    exit_thresholds=st.lists(finite, max_size=5).map(tuple),
    min_exit=exits,
    max_exit=exits,
    max_cost=st.none() | finite,
    max_mean_cost=st.none() | finite,
    max_accuracy_drop=st.none() | finite,
    confidence=st.none() | finite,
    max_latency_ms=st.none() | st.integers(0, 2**32 - 1),
    allow_early_answer=st.none() | st.booleans(),
    allow_degrade=st.none() | st.booleans(),
)


@given(controls)
def test_a_control_comes_back_from_the_wire_as_it_went(control: Control) -> None:
    sent = convert.control_to_wire(control).SerializeToString()
    assert convert.control_from_wire(pb.RoutingControl.FromString(sent)) == control


def test_zero_is_sent_and_none_is_not() -> None:
    message = convert.control_to_wire(Control(lambda_=0.0))
    assert message.HasField("lambda")
    assert not message.HasField("threshold")


@pytest.mark.parametrize(
    ("control", "field"),
    [
        (Control(max_exit=-1), "frame.control.max_exit"),
        (Control(min_exit=2**32), "frame.control.min_exit"),
        (Control(lambda_="large"), "frame.control.lambda"),  # type: ignore[arg-type]
        (Control(max_mean_cost="low"), "frame.control.max_mean_cost"),  # type: ignore[arg-type]
    ],
)
def test_a_value_that_does_not_fit_names_its_field(control: Control, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        convert.control_to_wire(control, "frame.control")
    assert caught.value.field == field
    assert field in str(caught.value)


def test_pixels_go_row_by_row_red_first() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    # A view that is not contiguous must be sent as it looks, not as it lies in memory.
    message = convert.frame_to_wire(Frame(image[:, ::-1], timestamp_us=-5), 7)
    assert (message.frame_id, message.timestamp_us) == (7, -5)
    assert (message.rgb8.height, message.rgb8.width) == (2, 3)
    assert message.rgb8.data == bytes([6, 7, 8, 3, 4, 5, 0, 1, 2, 15, 16, 17, 12, 13, 14, 9, 10, 11])


def test_encoded_images_and_tensors_are_told_apart_by_type() -> None:
    assert convert.frame_to_wire(Frame(b"\xff\xd8"), 0).encoded == b"\xff\xd8"
    tensor = np.array([[[1.5, -2.0]]], dtype=">f4").astype(np.float32)
    message = convert.frame_to_wire(Frame(tensor), 0).tensor
    assert list(message.shape) == [1, 1, 2]
    assert np.frombuffer(message.data, "<f4").tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float64), "cat.png", None]
)
def test_other_images_are_refused(image: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        convert.frame_to_wire(Frame(image), 0)  # type: ignore[arg-type]
    assert caught.value.field == "frame.image"


def test_a_number_outside_the_wire_is_refused() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        convert.frame_to_wire(Frame(b""), -1)
    assert caught.value.field == "frame.frame_id"


def test_what_a_newer_server_says_is_read_as_unknown() -> None:
    message = pb.Classification(top=[pb.ClassProbability(name="cat", probability=0.5)], exit=2)
    message = pb.Classification.FromString(message.SerializeToString() + bytes([3 << 3, 99]))
    assert convert.classification_from_wire(message).reason is ExitReason.UNKNOWN
    assert convert.frame_error_from_wire(pb.Error(code=99)).code == "UNKNOWN"


def test_an_empty_result_is_a_server_fault() -> None:
    for empty in (pb.FrameResult(frame_id=3), pb.FrameResult(frame_id=3, classification=pb.Classification(exit=1))):
        with pytest.raises(ServerFaultError, match="frame 3"):
            convert.result_from_wire(empty, 0.0)


def test_a_model_is_read_whole() -> None:
    read = convert.model_from_wire(model())
    assert [exit.cost_ratio for exit in read.exits] == [0.28, 0.52, 0.76, 1.01]
    assert read.labels[3] == "cat"
    assert read.default_thresholds == {Policy.ENTROPY: 0.3}
    assert [point.control.lambda_ for point in read.operating_points] == [8.0, 0.0]
    assert read.operating_points[0].exit_fractions == (0.97, 0.02, 0.01, 0)
    assert read.frontier is not None
    assert (read.frontier.frames, len(read.frontier.points)) == (2000, 30)
    point = read.frontier.points[1]
    assert (point.lambda_, point.mean_cost, point.accuracy, point.losses) == (0.1, 0.6, 0.895, 12)
    assert point.exit_fractions == (0.5, 0, 0, 0.5)


def test_a_model_without_a_frontier_has_none() -> None:
    bare = model()
    bare.ClearField("frontier")
    assert convert.model_from_wire(bare).frontier is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (StatusCode.INVALID_ARGUMENT, InvalidRequestError),
        (StatusCode.NOT_FOUND, NotFoundError),
        (StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
        (StatusCode.DEADLINE_EXCEEDED, DeadlineExceededError),
        (StatusCode.UNAVAILABLE, UnavailableError),
        (StatusCode.UNAUTHENTICATED, UnauthenticatedError),
        (StatusCode.PERMISSION_DENIED, PermissionDeniedError),
        (StatusCode.INTERNAL, ServerFaultError),
        (StatusCode.UNIMPLEMENTED, ServerFaultError),
    ],
)
def test_each_code_has_its_class(code: StatusCode, kind: type[RequestError]) -> None:
    error = convert.error_from_rpc(aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details="what is wrong"))
    assert type(error) is kind
    assert (str(error), error.code, error.field, error.retry_after_ms) == ("what is wrong", code.name, "", 0)


def rpc_error(code: StatusCode, code_in_details: int, **details: object) -> aio.AioRpcError:
    packed = rpc_status.to_status(status(code_in_details, "no", **details))  # type: ignore[arg-type]
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(*packed.trailing_metadata), details="no")


def test_details_give_the_field_and_the_wait() -> None:
    error = convert.error_from_rpc(rpc_error(StatusCode.INVALID_ARGUMENT, 3, field="frame.control.lambda"))
    assert error.field == "frame.control.lambda"
    assert str(error) == "frame.control.lambda: no"
    error = convert.error_from_rpc(rpc_error(StatusCode.RESOURCE_EXHAUSTED, 8, retry_after_ms=1500))
    assert error.retry_after_ms == 1500


def test_details_that_contradict_the_status_are_left_alone() -> None:
    error = convert.error_from_rpc(rpc_error(StatusCode.UNAVAILABLE, 3, field="frame"))
    assert isinstance(error, UnavailableError)
    assert error.field == ""
