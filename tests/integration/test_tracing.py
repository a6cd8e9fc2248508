"""Traces of a live server, taken from the SDK's exporter in memory; and that tracing costs nothing where it is off."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from itertools import pairwise

import grpc.aio
import pytest

from inference import grpc_service_pb2_grpc
from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from offramp_server.app import Server, StartupError
from offramp_server.config import Settings
from tests.integration.conftest import Gate, failure
from tests.integration.inference_messages import pictures, request
from tests.integration.messages import bad_frame, config, frame, send
from tests.unit.server.rpc.manifests import EXITS

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from offramp_server.ops.tracing import MAX_FRAMES, OpenTelemetry

Stub = classification_pb2_grpc.ClassificationServiceStub
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def server(settings: Settings, exporter: InMemorySpanExporter) -> AsyncIterator[Server]:
    tracing = OpenTelemetry("0", SimpleSpanProcessor(exporter))
    async with Server(settings, tracing=tracing) as server:
        yield server


def children(spans: tuple[ReadableSpan, ...], parent: ReadableSpan) -> list[ReadableSpan]:
    assert parent.context is not None
    return sorted(
        (span for span in spans if span.parent is not None and span.parent.span_id == parent.context.span_id),
        key=lambda span: (span.start_time, span.end_time),
    )


async def test_a_call_goes_on_with_its_callers_trace_down_to_each_stage(
    channel: grpc.aio.Channel, server: Server, exporter: InMemorySpanExporter
) -> None:
    depth = EXITS - 1
    sent = [config(policy=pb.POLICY_FIXED, max_exit=depth), send(frame(1)), send(frame(2)), send(bad_frame(3))]
    metadata = (("traceparent", SAMPLED), ("x-request-id", "id-of-mine"))
    call = Stub(channel).StreamClassify(iter(sent), metadata=metadata)
    assert len([answer async for answer in call]) == 4
    await server.shutdown()
    spans = exporter.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {TRACE}
    (root,) = (span for span in spans if span.kind.name == "SERVER")
    assert root.name == "offramp.v1.ClassificationService/StreamClassify"
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == PARENT
    assert root.attributes is not None
    assert (root.attributes["offramp.request_id"], root.attributes["offramp.frames"]) == ("id-of-mine", 3)
    assert root.attributes["rpc.response.status_code"] == "OK"
    frames = children(spans, root)
    assert [span.name for span in frames] == ["frame"] * 3
    failed = [span for span in frames if span.status.status_code is StatusCode.ERROR]
    assert len(failed) == 1
    assert "rgb8.data" in str(failed[0].status.description)
    for span in frames:
        assert span.attributes is not None
        assert (span.attributes["offramp.model"], span.attributes["offramp.request_id"]) == ("tiny", "id-of-mine")
        if span is failed[0]:
            continue
        assert span.attributes["offramp.exit"] == depth
        parts = children(spans, span)
        assert [part.name for part in parts] == ["admission", *(f"stage {n}" for n in range(1, depth + 1)), "answer"]
        assert [part.start_time for part in parts] == sorted(part.start_time or 0 for part in parts)
        for before, after in pairwise(parts[:-1]):
            assert before.end_time == after.start_time, "a stage begins when the one before it ends"
        assert all((span.start_time or 0) <= (part.start_time or 0) <= (part.end_time or 0) for part in parts)
        assert parts[-1].end_time == span.end_time


async def test_what_its_caller_does_not_sample_is_not_traced(
    channel: grpc.aio.Channel, server: Server, exporter: InMemorySpanExporter
) -> None:
    call = Stub(channel).Classify(pb.ClassifyRequest(frame=frame()), metadata=(("traceparent", UNSAMPLED),))
    assert (await call).result.HasField("classification")
    await server.shutdown()
    assert exporter.get_finished_spans() == ()


async def test_each_picture_of_a_request_is_a_frame_and_a_refused_call_an_error(
    channel: grpc.aio.Channel, server: Server, exporter: InMemorySpanExporter
) -> None:
    await grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request(pictures(2)))
    await failure(Stub(channel).Classify(pb.ClassifyRequest(model="absent", frame=frame())))
    await server.shutdown()
    spans = exporter.get_finished_spans()
    calls = {span.name.rpartition("/")[2]: span for span in spans if span.kind.name == "SERVER"}
    assert [span.name for span in children(spans, calls["ModelInfer"])] == ["frame", "frame"]
    assert calls["Classify"].attributes is not None
    assert calls["Classify"].attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert calls["Classify"].status.status_code is StatusCode.ERROR


async def test_a_long_stream_makes_no_endless_trace(
    channel: grpc.aio.Channel, server: Server, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_FRAMES >= 100
    monkeypatch.setattr("offramp_server.ops.tracing.MAX_FRAMES", 2)
    call = Stub(channel).StreamClassify(iter([config(), *(send(frame(n)) for n in range(4))]))
    assert len([answer async for answer in call]) == 5
    await server.shutdown()
    spans = exporter.get_finished_spans()
    assert sum(span.name == "frame" for span in spans) == 2
    (root,) = (span for span in spans if span.kind.name == "SERVER")
    assert root.attributes is not None
    assert root.attributes["offramp.frames"] == 4


def test_off_means_not_even_imported() -> None:
    code = "import sys, offramp_server.app; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


async def test_tracing_without_its_package_is_one_line_that_names_it(
    settings: Settings, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "offramp_server.ops.tracing", None)
    with pytest.raises(StartupError, match=r"tracing: .*offramp\[otel\]"):
        async with Server(settings.model_copy(update={"tracing": True}), gate.load):
            pass
