"""A small real gRPC server that behaves as the wire contract says and as a test scripts it.

Run as a program it prints its port and serves until it is ended: `python -m tests.unit.client.fake_server`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_status import rpc_status

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc, model_pb2, model_pb2_grpc

LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COSTS = [0.28, 0.52, 0.76, 1.01]
FULL_MACS = 555_422_720


def control(base: pb.RoutingControl | None = None, **fields: Any) -> pb.RoutingControl:
    merged = pb.RoutingControl(policy=pb.POLICY_ROUTER, threshold=0.5, min_exit=1, max_exit=4, **{"lambda": 0.0})
    if base is not None:
        merged.MergeFrom(base)
    merged.MergeFrom(pb.RoutingControl(**fields))
    return merged


def classify(frame: pb.Frame, stream_control: pb.RoutingControl, top_k: int) -> pb.FrameResult:
    """Answer as a network would in kind: flat pictures go deep, and a larger lambda brings all nearer to exit 1."""
    result = pb.FrameResult(frame_id=frame.frame_id, timestamp_us=frame.timestamp_us)
    if frame.WhichOneof("image") == "encoded" and frame.encoded[:2] not in (b"\xff\xd8", b"\x89P"):
        result.error.CopyFrom(pb.Error(code=3, message="neither a JPEG nor a PNG", field="frame.encoded"))
        return result
    used = control(stream_control)
    used.MergeFrom(frame.control)
    if used.policy == pb.POLICY_FIXED:
        exit_taken = used.max_exit
    else:
        detail = 6.0
        if frame.WhichOneof("image") == "rgb8":
            pixels = np.frombuffer(frame.rgb8.data, np.uint8).reshape(frame.rgb8.height, frame.rgb8.width, 3)
            detail = float(np.abs(np.diff(pixels.astype(np.float32), axis=1)).mean())
        wanted = 4.5 - detail / 4 - getattr(used, "lambda")
        exit_taken = int(min(max(round(wanted), used.min_exit), used.max_exit))
    first = frame.frame_id % len(LABELS)
    result.classification.CopyFrom(
        pb.Classification(
            top=[
                pb.ClassProbability(label=(first + i) % 10, name=LABELS[(first + i) % 10], probability=0.9 / 10**i)
                for i in range(max(top_k, 1))
            ],
            exit=exit_taken,
            reason=pb.EXIT_REASON_LAST_EXIT if exit_taken == 4 else pb.EXIT_REASON_POLICY,
            halting_probabilities=[0.2] * (exit_taken - 1) + ([0.8] if exit_taken < 4 else []),
            cost_ratio=COSTS[exit_taken - 1],
            cost_macs=int(COSTS[exit_taken - 1] * FULL_MACS),
            queue_ms=0.5,
            compute_ms=1.5 * exit_taken,
            model="resnet18-cifar10",
            version="1",
            control=used,
        )
    )
    return result


class FakeServer:
    """Serves on 127.0.0.1 at a free port inside `async with`; its attributes script it and record what came."""

    def __init__(self) -> None:
        self.address = ""
        self.requests: list[pb.StreamClassifyRequest] = []
        """Everything received on streams, in order."""
        self.arrived = asyncio.Condition()
        """Notified after each entry in `requests`."""
        self.answering = asyncio.Event()
        """Results are held back while this is cleared."""
        self.answering.set()
        self.reverse = False
        """Answer in reverse order, once the caller has sent everything."""
        self.together = False
        """Answer in one message, once the caller has sent everything."""
        self.refuse_config: pb.Error | None = None
        """Refuse configs in mid-stream for this reason."""
        self.frame_errors: dict[int, pb.Error] = {}
        self.fail_with: status_pb2.Status | None = None
        """Abort every call with this status; a stream after `fail_after` answers."""
        self.fail_after = 0
        self.drain_after: int | None = None
        """Announce draining after so many frames, read no more, answer those, end."""
        self.over = asyncio.Event()
        """Set when a stream is over: its caller sends no more, or has cancelled it."""
        self.written = asyncio.Event()
        """Set when the server has written an answer, and may wait for the next."""
        self.last_classify: pb.ClassifyRequest | None = None
        self.metadata: list[Any] = []
        """What came with each call but health's."""
        self.health = health_aio.HealthServicer()

    @property
    def frames(self) -> list[pb.Frame]:
        return [request.frame for request in self.requests if request.HasField("frame")]

    @property
    def configs(self) -> list[pb.StreamConfig]:
        return [request.config for request in self.requests if request.HasField("config")]

    async def until_frames(self, count: int) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.frames) >= count)

    async def __aenter__(self) -> FakeServer:
        self._server = grpc.aio.server()
        classification_pb2_grpc.add_ClassificationServiceServicer_to_server(_Classification(self), self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        await self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def opened(self, context: Any) -> None:
        self.metadata.append(context.invocation_metadata())
        if self.fail_after == 0:
            await self.abort_if_scripted(context)

    async def abort_if_scripted(self, context: Any) -> None:
        if self.fail_with is not None:
            status = rpc_status.to_status(self.fail_with)
            context.set_trailing_metadata(status.trailing_metadata)
            await context.abort(status.code, status.details, status.trailing_metadata)


class _Classification(classification_pb2_grpc.ClassificationServiceServicer):
    def __init__(self, script: FakeServer) -> None:
        self.script = script

    async def Classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:  # noqa: N802
        script = self.script
        script.last_classify = request
        await script.opened(context)
        result = classify(request.frame, pb.RoutingControl(), request.top_k)
        if result.HasField("error"):
            await context.abort_with_status(rpc_status.to_status(status(3, result.error.message, field=result.error.field)))
        return pb.ClassifyResponse(result=result)

    async def StreamClassify(self, requests: AsyncIterator[pb.StreamClassifyRequest], context: Any) -> Any:  # noqa: N802
        script = self.script
        # told in two ways: a call that is cancelled during its write never comes back to this generator, and for one whose
        # requests end by being cancelled, which looks like any other end of them, gRPC does not always call back
        context.add_done_callback(lambda _: script.over.set())
        await script.opened(context)
        outgoing: asyncio.Queue[pb.StreamClassifyResponse | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests, outgoing))
        answered = 0
        try:
            while (response := await outgoing.get()) is not None:
                if response.HasField("result"):
                    await script.answering.wait()
                    if answered >= script.fail_after:
                        await script.abort_if_scripted(context)
                    answered += 1
                yield response
                if response.HasField("result"):
                    script.written.set()
            await script.abort_if_scripted(context)
        finally:
            reader.cancel()
            script.over.set()

    async def _read(self, requests: AsyncIterator[pb.StreamClassifyRequest], outgoing: asyncio.Queue[Any]) -> None:
        script, in_force, top_k = self.script, pb.RoutingControl(), 1
        results: list[pb.StreamClassifyResponse] = []
        configured = False
        async for request in requests:
            if request.HasField("config"):
                if configured and script.refuse_config is not None:
                    news = pb.StreamStatus(state=pb.StreamStatus.STATE_REFUSED, error=script.refuse_config)
                else:
                    in_force, top_k = request.config.control, request.config.top_k
                    news = pb.StreamStatus(
                        state=pb.StreamStatus.STATE_CONFIGURED,
                        model="resnet18-cifar10",
                        version="1",
                        control=control(in_force),
                    )
                configured = True
                outgoing.put_nowait(pb.StreamClassifyResponse(status=news))
            else:
                frame_id = request.frame.frame_id
                if frame_id in script.frame_errors:
                    result = pb.FrameResult(frame_id=frame_id, error=script.frame_errors[frame_id])
                else:
                    result = classify(request.frame, in_force, top_k)
                response = pb.StreamClassifyResponse(result=result)
                if script.reverse or script.together:
                    results.append(response)
                else:
                    outgoing.put_nowait(response)
            async with script.arrived:
                script.requests.append(request)
                script.arrived.notify_all()
            if script.drain_after is not None and len(script.frames) == script.drain_after:
                news = pb.StreamStatus(state=pb.StreamStatus.STATE_DRAINING)
                outgoing.put_nowait(pb.StreamClassifyResponse(status=news))
                async for _ in requests:  # like the server: ending while the client writes would cost the call its status
                    pass
        if script.together:
            answers = pb.FrameResultBatch(results=[response.result for response in results])
            results = [pb.StreamClassifyResponse(results=answers)]
        for response in reversed(results):
            outgoing.put_nowait(response)
        outgoing.put_nowait(None)


class _Models(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, script: FakeServer) -> None:
        self.script = script

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> model_pb2.ListModelsResponse:  # noqa: N802
        await self.script.opened(context)
        summary = model_pb2.ModelSummary(
            name="resnet18-cifar10", version="1", is_default=True, exits=4, classes=10, frames_classified=7
        )
        return model_pb2.ListModelsResponse(models=[summary])

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:  # noqa: N802
        await self.script.opened(context)
        if request.model not in ("", "resnet18-cifar10"):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model!r} is loaded")
        return model_pb2.GetModelResponse(model=model())


def model() -> model_pb2.Model:
    return model_pb2.Model(
        name="resnet18-cifar10",
        version="1",
        labels=LABELS,
        input_height=32,
        input_width=32,
        exits=[
            model_pb2.Exit(exit=k + 1, macs=int(c * FULL_MACS), cost_ratio=c, nominal_cost=(k + 1) / 4, accuracy=0.7 + 0.05 * k)
            for k, c in enumerate(COSTS)
        ],
        full_macs=FULL_MACS,
        router_lambdas=[0, 0.5, 2, 8],
        default_control=control(),
        default_thresholds=[model_pb2.PolicyThreshold(policy=pb.POLICY_ENTROPY, threshold=0.3)],
        operating_points=[
            model_pb2.OperatingPoint(
                control=control(**{"lambda": 8.0}), accuracy=0.71, mean_cost=0.29, exit_fractions=[0.97, 0.02, 0.01, 0]
            ),
            model_pb2.OperatingPoint(control=control(), accuracy=0.9, mean_cost=0.6, exit_fractions=[0.4, 0.3, 0.1, 0.2]),
        ],
        backend="torch",
        device="cpu, float32",
        full_accuracy=0.9,
        data_note="JPEG-coded CIFAR-10.",
        frontier=frontier(),
    )


def frontier() -> model_pb2.Frontier:
    """Thirty λ from 0 to 2.9, whose cost falls fast at first."""
    message = model_pb2.Frontier(frames=2000)
    for step in range(30):
        cost, share = 0.3 + 0.6 / (1 + step), 1 / (1 + step)
        point = message.points.add(mean_cost=cost, accuracy=0.9 - 0.005 * step, losses=2 + 10 * step)
        point.exit_fractions.extend([1 - share, 0, 0, share])
        setattr(point, "lambda", step / 10)
    return message


def status(code: int, message: str, *, field: str = "", retry_after_ms: int = 0) -> status_pb2.Status:
    details = []
    for message_of_detail in (
        error_details_pb2.BadRequest(
            field_violations=[error_details_pb2.BadRequest.FieldViolation(field=field, description=message)]
        )
        if field
        else None,
        _retry_info(retry_after_ms) if retry_after_ms else None,
    ):
        if message_of_detail is not None:
            packed = any_pb2.Any()
            packed.Pack(message_of_detail)
            details.append(packed)
    assert code in code_pb2.Code.values()
    return status_pb2.Status(code=code, message=message, details=details)


def _retry_info(retry_after_ms: int) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(retry_after_ms)
    return info


async def _main() -> None:
    async with FakeServer() as server:
        print(server.address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        asyncio.run(_main())
    except KeyboardInterrupt:
        sys.exit(0)
