"""Between the client's dataclasses and the wire's messages; the only module besides the calls that knows protobuf."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped, unused-ignore]
from grpc import aio  # type: ignore[attr-defined, unused-ignore]  # newer stubs leave it out
from grpc_status import rpc_status  # type: ignore[import-untyped, unused-ignore]

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import model_pb2
from offramp_client.errors import InvalidRequestError, RequestError, error_for
from offramp_client.types import (
    Classification,
    ClassProbability,
    Control,
    Exit,
    ExitReason,
    Frame,
    FrameError,
    Frontier,
    FrontierPoint,
    Image,
    Model,
    ModelSummary,
    OperatingPoint,
    Policy,
    Result,
)

Built = TypeVar("Built", bound=Message)

_POLICY_TO_WIRE = {
    Policy.ROUTER: pb.POLICY_ROUTER,
    Policy.ENTROPY: pb.POLICY_ENTROPY,
    Policy.CONFIDENCE: pb.POLICY_CONFIDENCE,
    Policy.FIXED: pb.POLICY_FIXED,
}
_POLICY_FROM_WIRE = {wire: policy for policy, wire in _POLICY_TO_WIRE.items()}
_REASON_FROM_WIRE = {
    pb.EXIT_REASON_POLICY: ExitReason.POLICY,
    pb.EXIT_REASON_LAST_EXIT: ExitReason.LAST_EXIT,
    pb.EXIT_REASON_MAX_EXIT: ExitReason.MAX_EXIT,
    pb.EXIT_REASON_MAX_COST: ExitReason.MAX_COST,
    pb.EXIT_REASON_DEADLINE: ExitReason.DEADLINE,
}
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


# --- to the wire ------------------------------------------------------------------------------------------------------


def control_to_wire(control: Control, field: str = "control") -> pb.RoutingControl:
    """Put a control on the wire; ranges are the server's to check.

    Raises:
        InvalidRequestError: a value does not fit its field's type.
    """
    values: dict[str, Any] = {
        "lambda": control.lambda_,
        "threshold": control.threshold,
        "exit_thresholds": control.exit_thresholds or None,
        "min_exit": control.min_exit,
        "max_exit": control.max_exit,
        "max_cost": control.max_cost,
        "max_mean_cost": control.max_mean_cost,
        "max_accuracy_drop": control.max_accuracy_drop,
        "confidence": control.confidence,
        "max_latency_ms": control.max_latency_ms,
        "allow_early_answer": control.allow_early_answer,
        "allow_degrade": control.allow_degrade,
    }
    message = pb.RoutingControl()
    if control.policy is not None:
        message.policy = _POLICY_TO_WIRE[control.policy]
    for name, value in values.items():
        if value is not None:
            # By name, since `lambda` is a word of Python's.
            message.MergeFrom(_built(partial(pb.RoutingControl, **{name: value}), f"{field}.{name}"))
    return message


def frame_to_wire(frame: Frame, frame_id: int) -> pb.Frame:
    """Put a frame on the wire under the given number.

    Raises:
        InvalidRequestError: the image is of no kind that the wire carries, or a number does not fit.
    """
    message = _built(lambda: pb.Frame(frame_id=frame_id), "frame.frame_id")
    message.MergeFrom(_built(lambda: pb.Frame(timestamp_us=frame.timestamp_us), "frame.timestamp_us"))
    _put_image(frame.image, message)
    if frame.control is not None:
        message.control.CopyFrom(control_to_wire(frame.control, "frame.control"))
    return message


def config_to_wire(model: str, version: str, control: Control, ordered: bool, top_k: int) -> pb.StreamConfig:
    """Put a stream's configuration on the wire.

    Raises:
        InvalidRequestError: a value does not fit its field's type.
    """
    message = pb.StreamConfig(model=model, version=version, control=control_to_wire(control), ordered=ordered, batch_results=True)
    message.MergeFrom(_built(lambda: pb.StreamConfig(top_k=top_k), "top_k"))
    return message


def classify_to_wire(model: str, version: str, frame: pb.Frame, top_k: int) -> pb.ClassifyRequest:
    """Put a request for a single frame on the wire.

    Raises:
        InvalidRequestError: a value does not fit its field's type.
    """
    message = pb.ClassifyRequest(model=model, version=version, frame=frame)
    message.MergeFrom(_built(lambda: pb.ClassifyRequest(top_k=top_k), "top_k"))
    return message


def _put_image(image: Image, message: pb.Frame) -> None:
    if isinstance(image, (bytes, bytearray, memoryview)):
        message.encoded = bytes(image)
    elif isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        message.rgb8.CopyFrom(pb.RawImage(data=image.tobytes(), height=image.shape[0], width=image.shape[1]))
    elif isinstance(image, np.ndarray) and image.dtype == np.float32 and image.ndim == 3:
        message.tensor.CopyFrom(pb.FloatTensor(data=image.astype("<f4", copy=False).tobytes(), shape=image.shape))
    else:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        expected = "uint8 (H, W, 3), float32 (C, H, W), or the bytes of a JPEG or PNG"
        raise InvalidRequestError(f"expected {expected}, got {got}", field="frame.image")


def _built(build: Callable[[], Built], field: str) -> Built:
    try:
        return build()
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(str(error), field=field) from None


# --- from the wire ----------------------------------------------------------------------------------------------------


def control_from_wire(message: pb.RoutingControl) -> Control:
    """Read a control; what was not sent is None."""

    def number(name: str) -> float | None:
        return float(getattr(message, name)) if message.HasField(name) else None

    return Control(
        policy=_POLICY_FROM_WIRE.get(message.policy),
        lambda_=number("lambda"),
        threshold=number("threshold"),
        exit_thresholds=tuple(message.exit_thresholds),
        min_exit=message.min_exit if message.HasField("min_exit") else None,
        max_exit=message.max_exit if message.HasField("max_exit") else None,
        max_cost=number("max_cost"),
        max_mean_cost=number("max_mean_cost"),
        max_accuracy_drop=number("max_accuracy_drop"),
        confidence=number("confidence"),
        max_latency_ms=message.max_latency_ms if message.HasField("max_latency_ms") else None,
        allow_early_answer=message.allow_early_answer if message.HasField("allow_early_answer") else None,
        allow_degrade=message.allow_degrade if message.HasField("allow_degrade") else None,
    )


def classification_from_wire(message: pb.Classification) -> Classification:
    """Read what a frame shows."""
    return Classification(
        top=tuple(ClassProbability(entry.label, entry.name, entry.probability) for entry in message.top),
        exit=message.exit,
        reason=_REASON_FROM_WIRE.get(message.reason, ExitReason.UNKNOWN),
        halting_probabilities=tuple(message.halting_probabilities),
        cost_ratio=message.cost_ratio,
        cost_macs=message.cost_macs,
        queue_ms=message.queue_ms,
        compute_ms=message.compute_ms,
        model=message.model,
        version=message.version,
        control=control_from_wire(message.control),
        degraded=message.degraded,
    )


def frame_error_from_wire(message: pb.Error) -> FrameError:
    """Read a failure inside a stream."""
    code = _CODE_NAMES.get(message.code, "UNKNOWN")
    return FrameError(code, message.message, message.field, message.retry_after_ms)


def result_from_wire(message: pb.FrameResult, latency_ms: float) -> Result:
    """Read the answer to one frame.

    Raises:
        ServerFaultError: it holds neither a classification nor an error, or a classification without a class.
    """
    classification, error = None, None
    if message.HasField("error"):
        error = frame_error_from_wire(message.error)
    elif message.HasField("classification") and message.classification.top:
        classification = classification_from_wire(message.classification)
    else:
        raise error_for("INTERNAL", f"the server sent an empty result for frame {message.frame_id}")
    return Result(message.frame_id, message.timestamp_us, latency_ms, classification, error)


def summary_from_wire(message: model_pb2.ModelSummary) -> ModelSummary:
    """Read one line of the list of models."""
    return ModelSummary(
        name=message.name,
        version=message.version,
        is_default=message.is_default,
        exits=message.exits,
        classes=message.classes,
        frames_classified=message.frames_classified,
    )


def model_from_wire(message: model_pb2.Model) -> Model:
    """Read a model version."""
    thresholds = {_POLICY_FROM_WIRE.get(entry.policy): entry.threshold for entry in message.default_thresholds}
    return Model(
        name=message.name,
        version=message.version,
        labels=tuple(message.labels),
        input_height=message.input_height,
        input_width=message.input_width,
        exits=tuple(Exit(e.exit, e.macs, e.cost_ratio, e.nominal_cost, e.accuracy) for e in message.exits),
        full_macs=message.full_macs,
        router_lambdas=tuple(message.router_lambdas),
        default_control=control_from_wire(message.default_control),
        default_thresholds={policy: threshold for policy, threshold in thresholds.items() if policy is not None},
        operating_points=tuple(
            OperatingPoint(control_from_wire(p.control), p.accuracy, p.mean_cost, tuple(p.exit_fractions))
            for p in message.operating_points
        ),
        backend=message.backend,
        device=message.device,
        full_accuracy=message.full_accuracy,
        data_note=message.data_note,
        frontier=_frontier_from_wire(message.frontier) if message.HasField("frontier") else None,
    )


def _frontier_from_wire(message: model_pb2.Frontier) -> Frontier:
    points = (
        # By name, since `lambda` is a word of Python's.
        FrontierPoint(getattr(p, "lambda"), p.mean_cost, p.accuracy, tuple(p.exit_fractions), p.losses)
        for p in message.points
    )
    return Frontier(tuple(points), message.frames)


def error_from_rpc(error: aio.AioRpcError) -> RequestError:
    """Return the typed error for a failed call, with what its google.rpc details say."""
    field, retry_after_ms = "", 0
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type, unused-ignore]  # asks only for what AioRpcError has
    except ValueError:  # the details contradict the status; the status is what counts
        status = None
    for detail in status.details if status is not None else ():
        bad_request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(bad_request) and bad_request.field_violations:
            field = bad_request.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after_ms = -(-retry.retry_delay.ToMicroseconds() // 1000)
    return error_for(error.code().name, error.details() or "", field=field, retry_after_ms=retry_after_ms)
