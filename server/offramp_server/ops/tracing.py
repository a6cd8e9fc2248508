"""OpenTelemetry spans of calls, frames and stages; imported only where tracing is asked for, and needs the extra `otel`.

    offramp.v1.ClassificationService/StreamClassify    the call, which goes on with its caller's trace
      frame                                            from arrival to its answer; an exception where it was refused or failed
        admission                                      checking, decoding, resizing, and the client's limits
        stage 1                                        in the first stage's queue and then in its batch
        stage 2 …
        answer                                         writing the result

Frames' spans are made when their answer is, from times that were measured anyway, so the engine knows nothing of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from offramp_server.engine.types import Answer

MAX_FRAMES = 1000
"""Frames of one call that get spans: a trace of a camera's whole day is of no use to anybody, and no store takes it."""


class OpenTelemetry:
    """Implements rpc.call.Tracing. Exporter and sampler are those that the OTEL_ environment variables name."""

    def __init__(self, version: str, processor: SpanProcessor | None = None) -> None:
        """Spans go to `processor`; to an OTLP collector, in batches and from a thread, where none is given."""
        resource = Resource.create({SERVICE_VERSION: version})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "offramp-server"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("offramp", version)

    def begin(self, method: str, metadata: Sequence[tuple[str, str | bytes]], request_id: str, client: str) -> _Call | None:
        """See rpc.call.Tracing."""
        headers = {key: value for key, value in metadata if isinstance(value, str)}
        name = method.lstrip("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name, "offramp.request_id": request_id}
        if client:
            attributes["offramp.client"] = client
        parent = propagate.extract(headers)
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        return _Call(self._tracer, span, request_id) if span.is_recording() else None

    def close(self) -> None:
        """Send what has not been sent yet; blocks for as long as the exporter's timeout."""
        self._provider.shutdown()


class _Call:
    """Implements rpc.call.CallTrace."""

    def __init__(self, tracer: Tracer, span: Span, request_id: str) -> None:
        self._tracer, self._span, self._request_id = tracer, span, request_id
        self._within = trace.set_span_in_context(span)
        self._frames = 0
        self.trace_id = trace.format_trace_id(span.get_span_context().trace_id)

    def frames_answered(
        self, model: tuple[str, str], started: int, answers: Sequence[tuple[Answer, int]], answered: int, ended: int
    ) -> None:
        """See rpc.call.CallTrace."""
        clock = _Clock()
        for answer, read in answers:
            if (span := self._frame(model, clock.at(started))) is None:
                return
            span.set_attributes({"offramp.exit": answer.exit, "offramp.left_by": answer.reason.name.lower()})
            within = trace.set_span_in_context(span)
            self._part("admission", within, clock.at(started), clock.at(read))
            begun = clock.at(read)
            for stage in answer.stages:
                queued, ran = round(stage.queue_ms * 1e6), round(stage.compute_ms * 1e6)
                self._part(f"stage {stage.name}", within, begun, begun + queued + ran, {"offramp.queue_ms": stage.queue_ms})
                begun += queued + ran
            self._part("answer", within, clock.at(answered), clock.at(ended))
            span.end(clock.at(ended))

    def frames_failed(self, model: tuple[str, str], started: int, error: Exception) -> None:
        """See rpc.call.CallTrace."""
        clock = _Clock()
        if (span := self._frame(model, clock.at(started))) is not None:
            span.set_status(Status(StatusCode.ERROR, str(error)))
            span.end(clock.now)

    def end(self, code: str) -> None:
        """See rpc.call.CallTrace."""
        self._span.set_attributes({"rpc.response.status_code": code, "offramp.frames": self._frames})
        if code != "OK":
            self._span.set_status(Status(StatusCode.ERROR, code))
        self._span.end()

    def _frame(self, model: tuple[str, str], start: int) -> Span | None:
        self._frames += 1
        if self._frames > MAX_FRAMES:
            return None
        name, version = model
        attributes = {"offramp.model": name, "offramp.version": version, "offramp.request_id": self._request_id}
        return self._tracer.start_span("frame", self._within, attributes=attributes, start_time=start)

    def _part(self, name: str, within: Context, start: int, end: int, attributes: dict[str, float] | None = None) -> None:
        self._tracer.start_span(name, within, attributes=attributes, start_time=start).end(end)


class _Clock:
    """Turns times of `time.perf_counter_ns` into nanoseconds since 1970."""

    def __init__(self) -> None:
        self.now = time.time_ns()
        self._offset = self.now - time.perf_counter_ns()

    def at(self, counted: int) -> int:
        return counted + self._offset
