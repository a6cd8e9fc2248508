"""Loading and unloading on a real server: no frame is lost, whatever is swapped under it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inference import grpc_service_pb2 as oip
from inference import grpc_service_pb2_grpc
from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from offramp_client import Client, Frame
from offramp_server.app import Server
from offramp_server.config import Settings
from tests.integration.conftest import Gate, failure, publish_tiny, until
from tests.integration.inference_messages import exchange, pictures, request
from tests.integration.messages import config, frame, send

Infer = grpc_service_pb2_grpc.GRPCInferenceServiceStub
Classify = classification_pb2_grpc.ClassificationServiceStub


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of one's own, with the model `tiny` in version 1."""
    publish_tiny(tmp_path, 1)
    return tmp_path


@pytest.fixture
def explicit(settings: Settings, store: Path) -> Settings:
    return settings.model_copy(update={"store": store, "model_control": "explicit"})


@pytest.fixture
async def server(explicit: Settings, gate: Gate) -> AsyncIterator[Server]:
    async with Server(explicit, gate.load) as server:
        yield server


async def load(channel: grpc.aio.Channel, version: int | None = None) -> None:
    message = oip.RepositoryModelLoadRequest(model_name="tiny")
    if version is not None:
        message.parameters["config"].string_param = f'{{"version_policy": {{"specific": {{"versions": [{version}]}}}}}}'
    await Infer(channel).RepositoryModelLoad(message)


async def unload(channel: grpc.aio.Channel) -> None:
    await Infer(channel).RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="tiny"))


async def index(channel: grpc.aio.Channel) -> dict[str, tuple[str, str]]:
    models = (await Infer(channel).RepositoryIndex(oip.RepositoryIndexRequest())).models
    return {entry.version: (entry.state, entry.reason) for entry in models}


async def until_state(channel: grpc.aio.Channel, version: str, state: str) -> None:
    async with asyncio.timeout(120):
        while (await index(channel))[version][0] != state:  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0.005)


async def test_control_is_off_unless_it_is_asked_for(settings: Settings) -> None:
    async with Server(settings) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        for call in (
            Infer(channel).RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="tiny")),
            Infer(channel).RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="tiny")),
        ):
            error = await failure(call)
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "--model-control explicit" in error.details()
        assert await index(channel) == {"1": ("UNAVAILABLE", "it is not loaded"), "2": ("READY", "")}


async def test_streams_stay_with_their_version_or_follow_the_latest(channel: grpc.aio.Channel, store: Path) -> None:
    async def answered(call: grpc.aio.StreamStreamCall, n: int) -> pb.StreamClassifyResponse:
        await call.write(send(frame(n)))
        return await call.read()

    stays, follows = Classify(channel).StreamClassify(), Classify(channel).StreamClassify()
    await stays.write(config())
    await follows.write(config(version="latest", lambda_=0.25))
    for call in (stays, follows):
        assert (await call.read()).status.version == "1"
        assert (await answered(call, 0)).result.classification.version == "1"
    publish_tiny(store, 2)
    await load(channel)
    assert (await answered(stays, 1)).result.classification.version == "1"
    moved = (await answered(follows, 1)).status
    assert (moved.state, moved.version) == (pb.StreamStatus.STATE_MOVED, "2")
    assert getattr(moved.control, "lambda") == 0.25
    assert (await follows.read()).result.classification.version == "2"
    assert (await index(channel))["1"][0] == "UNLOADING"
    fresh = await Classify(channel).Classify(pb.ClassifyRequest(frame=frame()))
    assert fresh.result.classification.version == "2"
    assert (await answered(stays, 2)).result.classification.version == "1"
    await stays.done_writing()
    assert await stays.read() is grpc.aio.EOF
    await until_state(channel, "1", "UNAVAILABLE")
    await unload(channel)
    assert (await answered(follows, 2)).result.classification.version == "2"  # unloaded, and the stream still lives
    follows.cancel()


async def test_streams_of_the_inference_protocol_do_so_too(channel: grpc.aio.Channel, store: Path) -> None:
    call = Infer(channel).ModelStreamInfer()

    async def version_of(asked: str) -> str:
        await call.write(request(version=asked, id=asked))
        response: oip.ModelStreamInferResponse = await call.read()
        return response.infer_response.model_version or response.error_message

    assert [await version_of(asked) for asked in ("", "latest", "1")] == ["1", "1", "1"]
    publish_tiny(store, 2)
    await load(channel)
    assert [await version_of(asked) for asked in ("", "latest", "1", "2")] == ["1", "2", "1", "2"]
    assert [each.infer_response.model_version for each in await exchange(Infer(channel), [request()])] == ["2"]
    await unload(channel)
    assert [await version_of(asked) for asked in ("", "latest", "1", "2")] == ["1", "2", "1", "2"]
    assert "UNAVAILABLE" in await version_of("7")
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    for version in ("1", "2"):
        await until_state(channel, version, "UNAVAILABLE")


async def test_no_frame_is_lost_while_versions_are_swapped(server: Server, channel: grpc.aio.Channel, store: Path) -> None:
    publish_tiny(store, 2)
    swapped = asyncio.Event()

    async def frames() -> AsyncIterator[Frame]:
        after = 0
        while after < 40:
            yield Frame(pictures()[0])
            after += swapped.is_set()

    async def stream(client: Client, version: str) -> list[str]:
        stream = client.stream(frames(), version=version)
        versions = [result.unwrap().version async for result in stream]
        assert stream.version == versions[-1]
        return versions

    async def ask() -> list[str]:
        versions = []
        while not swapped.is_set():
            versions.append((await Infer(channel).ModelInfer(request(pictures(3)))).model_version)
        return versions

    async def swap() -> None:
        for version in (2, 1, 2):
            await load(channel, version)
        swapped.set()

    async with Client(server.grpc_address) as client, asyncio.timeout(240):
        stayed, followed, asked, _ = await asyncio.gather(stream(client, ""), stream(client, "latest"), ask(), swap())
    assert len(stayed) >= 40
    assert len(followed) >= 40
    assert len(set(stayed)) == 1
    assert followed[-1] == "2"
    assert set(asked) <= {"1", "2"}
    await until(lambda: server.in_flight == 0)


async def test_a_broken_version_leaves_the_old_one_serving_and_says_why(channel: grpc.aio.Channel, store: Path) -> None:
    weights = publish_tiny(store, 2).path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x00")
    error = await failure(Infer(channel).RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="tiny")))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "version 2 of 'tiny' can't be loaded: weights.safetensors" in error.details()
    assert str(store) not in error.details()
    states = await index(channel)
    assert states["1"] == ("READY", "")
    assert states["2"][0] == "UNAVAILABLE"
    assert "weights.safetensors" in states["2"][1]
    assert (await Infer(channel).ModelInfer(request())).model_version == "1"


async def test_frames_are_answered_while_a_version_warms_up(
    channel: grpc.aio.Channel, store: Path, gate: Gate, server: Server
) -> None:
    publish_tiny(store, 2)
    server._load_backend = gate.load_closed
    loading = asyncio.create_task(load(channel))
    await until(lambda: len(gate.backends) == 2)
    assert (await index(channel))["2"][0] == "LOADING"
    assert (await Infer(channel).ModelInfer(request())).model_version == "1"
    assert not loading.done()
    gate.open()
    await loading
    assert (await Infer(channel).ModelInfer(request())).model_version == "2"


async def test_an_unload_answers_what_is_in_flight(channel: grpc.aio.Channel, gate: Gate, server: Server) -> None:
    gate.close()
    call = Infer(channel).ModelInfer(request(id="a"))
    await until(lambda: server.in_flight == 1)
    await unload(channel)
    assert (await failure(Infer(channel).ModelInfer(request()))).code() is grpc.StatusCode.UNAVAILABLE
    gate.open()
    assert (await call).id == "a"
    await until_state(channel, "1", "UNAVAILABLE")


async def test_a_server_without_a_model_is_not_ready(channel: grpc.aio.Channel, server: Server) -> None:
    health = health_pb2_grpc.HealthStub(channel)

    async def probes() -> set[bool]:
        async with httpx.AsyncClient(base_url=f"http://{server.http_address}", trust_env=False) as client:
            http = (await client.get("/readyz")).status_code == 200
        ready = (await Infer(channel).ServerReady(oip.ServerReadyRequest())).ready
        model = (await Infer(channel).ModelReady(oip.ModelReadyRequest(name="tiny"))).ready
        status = (await health.Check(health_pb2.HealthCheckRequest())).status
        return {http, ready, model, status == health_pb2.HealthCheckResponse.SERVING}

    assert await probes() == {True}
    await unload(channel)
    assert await probes() == {False}
    await load(channel)
    assert await probes() == {True}
