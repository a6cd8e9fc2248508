"""Who may do what on a live server, how much of it, and what the log tells of it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from inference import grpc_service_pb2 as oip
from inference import grpc_service_pb2_grpc, model_config_pb2
from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc, model_pb2, model_pb2_grpc
from offramp_server.app import Server, StartupError
from offramp_server.config import Settings
from offramp_server.ops.logging import configure_logging
from offramp_server.rpc.call import current_fields
from tests.integration.conftest import PATIENCE_S, Gate, failure, until
from tests.integration.inference_messages import pictures, request
from tests.integration.messages import bad_frame, config, frame, send
from tests.unit.server.security.test_tokens import entry, write

Classify = classification_pb2_grpc.ClassificationServiceStub
Infer = grpc_service_pb2_grpc.GRPCInferenceServiceStub

GATE, OPS, GREEDY = "t0ken-of-gate", "t0ken-of-ops", "t0ken-of-greedy"


def bearer(token: str, *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"), *more)


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    limits = "max_streams = 1\nmax_in_flight = 2\n"
    return write(
        tmp_path / "tokens.toml",
        entry("gate", GATE),
        entry("ops", OPS, '"classify", "admin"'),
        entry("greedy", GREEDY, more=limits),
    )


@pytest.fixture
def settings(settings: Settings, tokens_file: Path) -> Settings:
    return settings.model_copy(update={"tokens_file": tokens_file, "model_control": "explicit"})


@pytest.fixture
async def server(settings: Settings, gate: Gate) -> AsyncIterator[Server]:
    async with Server(settings, gate.load) as server:
        yield server


@pytest.fixture
def log() -> Iterator[list[dict[str, Any]]]:
    """The log of the test, at level debug, as it would be written; read it when the server has stopped, or after `until`."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    configure_logging("debug", "json", current_fields, out)

    class Lines(list[dict[str, Any]]):
        text = property(lambda self: out.getvalue())

        def __iter__(self) -> Iterator[dict[str, Any]]:
            return map(json.loads, out.getvalue().splitlines())

    yield Lines()
    root.handlers[:] = handlers
    root.setLevel(level)


# --- scopes -----------------------------------------------------------------------------------------------------------


def calls(channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> dict[str, grpc.aio.Call]:
    """A call of each kind, by the scope that it needs."""
    models = model_pb2_grpc.ModelServiceStub(channel)
    infer = Infer(channel)
    return {
        "classify 1": Classify(channel).Classify(pb.ClassifyRequest(frame=frame()), metadata=metadata),
        "classify 2": models.ListModels(model_pb2.ListModelsRequest(), metadata=metadata),
        "classify 3": infer.ModelInfer(request(pictures(1)), metadata=metadata),
        "classify 4": infer.ModelConfig(model_config_pb2.ModelConfigRequest(name="tiny"), metadata=metadata),
        "classify 5": infer.ModelStatistics(oip.ModelStatisticsRequest(), metadata=metadata),
        "admin 1": infer.RepositoryIndex(oip.RepositoryIndexRequest(), metadata=metadata),
        "admin 2": infer.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="tiny"), metadata=metadata),
        "open 1": infer.ServerReady(oip.ServerReadyRequest(), metadata=metadata),
        "open 2": health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), metadata=metadata),
    }


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ((), {"classify": grpc.StatusCode.UNAUTHENTICATED, "admin": grpc.StatusCode.UNAUTHENTICATED}),
        (bearer("wr0ng"), {"classify": grpc.StatusCode.UNAUTHENTICATED, "admin": grpc.StatusCode.UNAUTHENTICATED}),
        (bearer(GATE), {"classify": grpc.StatusCode.OK, "admin": grpc.StatusCode.PERMISSION_DENIED}),
        (bearer(OPS), {"classify": grpc.StatusCode.OK, "admin": grpc.StatusCode.OK}),
    ],
)
async def test_each_call_needs_its_scope_and_health_none(
    server: Server, metadata: tuple[tuple[str, str], ...], expected: dict[str, grpc.StatusCode]
) -> None:
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        for name, call in calls(channel, metadata).items():
            assert await call.code() is expected.get(name.split()[0], grpc.StatusCode.OK), name


async def test_nobody_is_asked_who_reads_the_contract(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
        assert (await call.read()).list_services_response.service


@pytest.mark.parametrize("method", ["StreamClassify", "ModelStreamInfer"])
async def test_a_stream_without_a_token_ends_before_it_is_read(server: Server, method: str) -> None:
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        stub = Classify(channel) if method == "StreamClassify" else Infer(channel)
        call = getattr(stub, method)()  # nothing is written
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "authorization: Bearer" in await call.details()


async def test_a_token_that_is_taken_back_ends_the_frames_of_open_streams(server: Server, tokens_file: Path) -> None:
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        call = Classify(channel).StreamClassify(metadata=bearer(GATE))
        await call.write(config())
        await call.write(send(frame(1)))
        assert (await call.read()).HasField("status")
        assert (await call.read()).result.HasField("classification")
        write(tokens_file, entry("ops", OPS))
        # any call has the file looked at; frames do, too, but once a second
        late = Classify(channel).Classify(pb.ClassifyRequest(frame=frame()), metadata=bearer(GATE))
        assert await late.code() is grpc.StatusCode.UNAUTHENTICATED
        await call.write(send(frame(2)))
        refused = (await call.read()).result.error
        assert refused.code == grpc.StatusCode.UNAUTHENTICATED.value[0]
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(("text", "word"), [(None, "can't read"), ("[[clients]]", "clients.0.name")])
async def test_a_tokens_file_of_no_use_is_one_line(settings: Settings, tmp_path: Path, text: str | None, word: str) -> None:
    path = tmp_path / "other.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StartupError, match=word):
        async with Server(settings.model_copy(update={"tokens_file": path})):
            pass


# --- limits -----------------------------------------------------------------------------------------------------------


def retry_after_ms(error: grpc.aio.AioRpcError) -> int:
    status = rpc_status.from_call(error)
    assert status is not None
    detail = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(detail)
    return int(detail.retry_delay.ToMilliseconds())


async def test_a_greedy_client_is_held_to_its_limits_and_disturbs_no_other(server: Server, gate: Gate) -> None:
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        greedy = Classify(channel).StreamClassify(metadata=bearer(GREEDY))
        await greedy.write(config(ordered=False))
        assert (await greedy.read()).HasField("status")
        second = Classify(channel).StreamClassify(metadata=bearer(GREEDY))
        assert await second.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_streams" in await second.details()
        for n in range(4):
            await greedy.write(send(frame(n)))
        for _ in range(2):
            error = (await greedy.read()).result.error
            assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
            assert "max_in_flight" in error.message
            assert error.retry_after_ms > 0
        # its unary calls count with its stream, over another connection too
        async with grpc.aio.insecure_channel(server.grpc_address, options=[("grpc.use_local_subchannel_pool", 1)]) as apart:
            refused = await failure(Classify(apart).Classify(pb.ClassifyRequest(frame=frame()), metadata=bearer(GREEDY)))
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert retry_after_ms(refused) > 0
        other = Classify(channel).StreamClassify(metadata=bearer(GATE))
        await other.write(config())
        for n in range(8):
            await other.write(send(frame(n)))
        await other.done_writing()
        await until(lambda: server.in_flight == 10)
        gate.open()
        answers = [response.result async for response in other][1:]
        assert [answer.frame_id for answer in answers if answer.HasField("classification")] == list(range(8))
        assert {(await greedy.read()).result.HasField("classification") for _ in range(2)} == {True}
        await greedy.done_writing()
        assert await greedy.code() is grpc.StatusCode.OK
        third = Classify(channel).StreamClassify(metadata=bearer(GREEDY))
        await third.write(config())
        assert (await third.read()).HasField("status")


async def test_frames_a_second_are_bounded_and_the_time_to_wait_is_right(settings: Settings, tokens_file: Path) -> None:
    write(tokens_file, entry("gate", GATE, more="max_frames_per_s = 2"))
    now = 100.0
    async with (
        Server(settings, clock=lambda: now) as server,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        call = Classify(channel).StreamClassify(metadata=bearer(GATE))
        await call.write(config())
        assert (await call.read()).HasField("status")

        async def one() -> pb.FrameResult:
            await call.write(send(frame()))
            return (await call.read()).result  # type: ignore[no-any-return]

        assert [(await one()).HasField("classification") for _ in range(3)] == [True, True, False]
        error = (await one()).error
        assert (error.code, error.retry_after_ms) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], 500)
        assert "max_frames_per_s" in error.message
        now += 0.5
        assert [(await one()).HasField("classification") for _ in range(2)] == [True, False]
        # a request of the other protocol counts each of its pictures
        now += 1.0
        refused = await failure(Infer(channel).ModelInfer(request(pictures(3)), metadata=bearer(GATE)))
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await call.done_writing()


# --- the log ----------------------------------------------------------------------------------------------------------


async def test_a_stream_leaves_one_line_with_its_totals(settings: Settings, log: list[dict[str, Any]]) -> None:
    async with Server(settings) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        sent = [config(policy=pb.POLICY_FIXED, max_exit=2), *(send(frame(n)) for n in range(3)), send(bad_frame(9))]
        call = Classify(channel).StreamClassify(iter(sent), metadata=bearer(GATE, ("x-request-id", "id-of-mine")))
        answers = [answer async for answer in call]
        absent = request()
        absent.model_name = "absent"
        infer = Infer(channel).ModelStreamInfer(iter([request(pictures(2)), absent]), metadata=bearer(OPS))
        assert len([each async for each in infer]) == 2
        await Classify(channel).Classify(pb.ClassifyRequest(frame=frame()), metadata=bearer(OPS))
    ours, theirs = (line for line in log if line["message"] == "call ended" and line["level"] == "info")
    assert (ours["request_id"], ours["client"], ours["code"]) == ("id-of-mine", "gate", "OK")
    assert ours["method"] == "/offramp.v1.ClassificationService/StreamClassify"
    assert (ours["frames"], ours["exits"], ours["errors"]) == (3, {"2": 3}, {"INVALID_ARGUMENT": 1})
    assert ours["models"] == "tiny:2"
    assert ours["received_bytes"] == sum(message.ByteSize() for message in sent)
    assert ours["sent_bytes"] == sum(answer.ByteSize() for answer in answers)
    assert ours["seconds"] > 0
    assert (theirs["client"], theirs["frames"], theirs["errors"]) == ("ops", 2, {"NOT_FOUND": 1})
    assert ours["request_id"] != theirs["request_id"]
    unary = [line for line in log if line["message"] == "call ended" and line["level"] == "debug"]
    assert [line["method"] for line in unary] == ["/offramp.v1.ClassificationService/Classify"]


async def test_a_fault_of_the_engine_is_logged_with_the_id_of_each_call_that_it_hit(
    settings: Settings, gate: Gate, log: list[dict[str, Any]]
) -> None:
    async with Server(settings, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:

        def fail(*_: object) -> None:
            raise RuntimeError("the device is on fire")

        (backend,) = gate.backends
        backend.run_stage = fail  # type: ignore[method-assign,assignment]
        error = await failure(
            Classify(channel).Classify(pb.ClassifyRequest(frame=frame()), metadata=bearer(GATE, ("x-request-id", "hit")))
        )
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "fire" not in error.details()
        assert dict(error.trailing_metadata())["x-request-id"] == "hit"
    (line,) = (line for line in log if line["message"].startswith("a frame failed"))
    assert (line["level"], line["request_id"], line["client"], line["model"]) == ("error", "hit", "gate", "tiny")
    assert any("on fire" in line.get("exception", "") for line in log)


async def test_a_model_that_a_call_has_loaded_does_not_log_under_that_calls_id(
    settings: Settings, gate: Gate, log: list[dict[str, Any]]
) -> None:
    async with Server(settings, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        message = oip.RepositoryModelLoadRequest(model_name="tiny")
        message.parameters["config"].string_param = '{"version_policy": {"specific": {"versions": [1]}}}'
        await Infer(channel).RepositoryModelLoad(message, metadata=bearer(OPS, ("x-request-id", "of-the-load")))

        def fail(*_: object) -> None:
            raise RuntimeError("the device is on fire")

        gate.backends[-1].run_stage = fail  # type: ignore[method-assign,assignment]
        await failure(Classify(channel).Classify(pb.ClassifyRequest(frame=frame()), metadata=bearer(GATE)))
    (line,) = (line for line in log if "on fire" in line.get("exception", ""))
    assert "request_id" not in line
    assert any(line.get("request_id") == "of-the-load" and line["message"] == "loaded" for line in log)


async def test_neither_tokens_nor_metadata_are_ever_logged(settings: Settings, tokens_file: Path, log: Any) -> None:
    async with Server(settings) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        secrets = ["wr0ng-token", "v4lue-of-a-header"]
        header = ("x-private", secrets[1])
        for token in (GATE, OPS, secrets[0]):
            for call in calls(channel, bearer(token, header)).values():
                await call.code()
        for metadata in ((("authorization", f"Basic {secrets[0]}"), header), (*bearer(GATE), *bearer(OPS), header)):
            await Classify(channel).StreamClassify(metadata=metadata).code()
        broken = Classify(channel).StreamClassify(iter([send(frame())]), metadata=bearer(GATE, header))
        assert await broken.code() is grpc.StatusCode.INVALID_ARGUMENT
        write(tokens_file, f"{GATE} = [")
        await Classify(channel).Classify(pb.ClassifyRequest(frame=frame()), metadata=bearer(GATE, header))
    text = log.text
    assert "call refused" in text
    assert "the tokens stay as they were" in text
    for secret in (GATE, OPS, *secrets):
        assert secret not in text


async def test_a_cut_call_leaves_its_line_too(settings: Settings, log: list[dict[str, Any]]) -> None:
    async with Server(settings) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        call = Classify(channel).StreamClassify(metadata=bearer(GATE))
        await call.write(config())
        assert (await call.read()).HasField("status")
        call.cancel()
        async with asyncio.timeout(PATIENCE_S):
            while not (ended := [line for line in log if line["message"] == "call ended"]):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    assert ended[0]["code"] == "CANCELLED"
