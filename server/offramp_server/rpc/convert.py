"""Frames from the wire to the engine, answers and models back."""

from __future__ import annotations

import logging

import numpy as np

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import model_pb2
from offramp_model.outcomes import Frontier
from offramp_model.routing import Policy
from offramp_server.engine.types import Answer, Frame
from offramp_server.errors import ExecutionError, InvalidRequestError, OfframpError, OverloadedError
from offramp_server.rpc.call import current_call
from offramp_server.rpc.control import ResolvedControl
from offramp_server.rpc.images import ImageReader
from offramp_server.rpc.models import ServedModel
from offramp_server.rpc.statistics import now_ns
from offramp_server.rpc.status import write_error

logger = logging.getLogger(__name__)


async def classify_frame(
    model: ServedModel,
    images: ImageReader,
    frame: pb.Frame,
    base: ResolvedControl,
    *,
    top_k: int,
    deadline: float | None,
    path: str = "frame",
) -> pb.FrameResult:
    """Take a frame through the engine. `deadline` is on the engine's clock, in seconds; `path` is where the frame lies.

    Raises the OfframpError that kept it from an answer.
    """
    started = now_ns()
    try:
        control = resolve(model, base, frame.control, f"{path}.control") if frame.HasField("control") else base
        answer, read_at = await run_frame(model, images, frame, control, deadline, path)
    except OfframpError as error:
        model.statistics.failed(started)
        current_call().frames_failed(model, started, error)
        raise
    answered = now_ns()
    classification = write_classification(model, control, answer, top_k)
    ended = now_ns()
    model.statistics.answered(started, read_at, answer.queue_ms, answer.compute_ms, ended - answered)
    current_call().frames_answered(model, started, ((answer, read_at),), answered, ended)
    return pb.FrameResult(frame_id=frame.frame_id, timestamp_us=frame.timestamp_us, classification=classification)


def resolve(model: ServedModel, base: ResolvedControl, control: pb.RoutingControl, path: str) -> ResolvedControl:
    """A frame's control on top of `base`. Raises InvalidRequestError, and counts it."""
    try:
        return model.controls.apply(base, control, path)
    except InvalidRequestError:
        model.metrics.frame_refused("invalid")
        raise


async def run_frame(
    model: ServedModel, images: ImageReader, frame: pb.Frame, control: ResolvedControl, deadline: float | None, path: str
) -> tuple[Answer, int]:
    """A frame's answer, and when its picture had been read, of `now_ns`. Raises the OfframpError that kept it from one."""
    call = current_call()
    try:
        call.enter_frame()
    except OfframpError:
        model.metrics.frame_refused("limited")
        raise
    try:
        image = await _read_image(model, images, frame, path)
        read_at = now_ns()
        return await model.engine.submit(Frame(image, control.frame_control, deadline)), read_at
    except ExecutionError as error:  # the engine, whose batches are of many calls, knows no request ids
        logger.error("a frame failed: %s", error, extra={"model": model.name, "version": model.version})
        raise
    finally:
        call.leave_frame()


async def _read_image(model: ServedModel, images: ImageReader, frame: pb.Frame, path: str) -> np.ndarray:
    try:
        return await images.read(frame, model.manifest.network.input_size, path)
    except InvalidRequestError:
        model.metrics.frame_refused("invalid")
        raise
    except OverloadedError:
        model.metrics.frame_refused("overloaded")
        raise


def write_failure(frame: pb.Frame, error: OfframpError) -> pb.FrameResult:
    """The answer to a frame that was not classified; the call counts it."""
    current_call().error_sent(error)
    return pb.FrameResult(frame_id=frame.frame_id, timestamp_us=frame.timestamp_us, error=write_error(error))


def write_classification(model: ServedModel, control: ResolvedControl, answer: Answer, top_k: int) -> pb.Classification:
    """An answer with its `top_k` class probabilities, at least one and at most all."""
    labels, probabilities = model.manifest.labels, answer.probabilities
    best = np.argsort(-probabilities, kind="stable")[:top_k].tolist() if top_k > 1 else [int(probabilities.argmax())]
    classification = pb.Classification(
        top=[pb.ClassProbability(label=label, name=labels[label], probability=probabilities[label]) for label in best],
        exit=answer.exit,
        reason=int(answer.reason),  # type: ignore[arg-type]  # the numbers are the wire's
        halting_probabilities=answer.halting,
        cost_ratio=model.manifest.costs.ratios[answer.exit - 1],
        cost_macs=model.manifest.costs.exit_macs[answer.exit - 1],
        queue_ms=answer.queue_ms,
        compute_ms=answer.compute_ms,
        model=model.name,
        version=model.version,
        control=control.message,
        degraded=answer.degraded,
    )
    if answer.degraded:
        setattr(classification.control, "lambda", answer.lambda_)  # a keyword of Python
    return classification


def write_summary(model: ServedModel, is_default: bool) -> model_pb2.ModelSummary:
    """A loaded model version in short."""
    return model_pb2.ModelSummary(
        name=model.name,
        version=model.version,
        is_default=is_default,
        exits=model.manifest.network.exits,
        classes=model.manifest.network.classes,
        frames_classified=model.engine.frames_answered,
    )


def write_model(model: ServedModel) -> model_pb2.Model:
    """A model version with its costs, operating points and frontier."""
    manifest, costs = model.manifest, model.manifest.costs
    exits = zip(costs.exit_macs, costs.ratios, costs.nominal, manifest.exit_accuracies, strict=True)
    return model_pb2.Model(
        name=model.name,
        version=model.version,
        labels=manifest.labels,
        input_height=manifest.network.input_size,
        input_width=manifest.network.input_size,
        exits=[
            model_pb2.Exit(exit=exit, macs=macs, cost_ratio=ratio, nominal_cost=nominal, accuracy=accuracy)
            for exit, (macs, ratio, nominal, accuracy) in enumerate(exits, 1)
        ],
        full_macs=costs.full_macs,
        router_lambdas=manifest.network.router_lambdas,
        default_control=model.controls.default.message,
        default_thresholds=[
            model_pb2.PolicyThreshold(policy=int(policy), threshold=model.controls.default_threshold(policy))  # type: ignore[arg-type]
            for policy in (Policy.ROUTER, Policy.ENTROPY, Policy.CONFIDENCE)
        ],
        operating_points=[
            model_pb2.OperatingPoint(
                control=model.controls.of_bundle(point.control).message,
                accuracy=point.accuracy,
                mean_cost=point.mean_cost,
                exit_fractions=point.exit_fractions,
            )
            for point in sorted(manifest.operating_points, key=lambda point: point.mean_cost)
        ],
        backend=model.backend,
        device=model.device,
        backend_reason=model.backend_reason,
        full_accuracy=manifest.full_accuracy,
        data_note=manifest.provenance.data_note,
        frontier=_write_frontier(manifest.frontier) if manifest.frontier is not None else None,
    )


def _write_frontier(frontier: Frontier) -> model_pb2.Frontier:
    message = model_pb2.Frontier(frames=frontier.frames)
    for point in frontier.points:
        written = message.points.add(
            mean_cost=point.mean_cost, accuracy=point.accuracy, exit_fractions=point.exit_fractions, losses=point.losses
        )
        setattr(written, "lambda", point.lambda_)  # a keyword of Python
    return message
