"""Bounds that hold before work is spent, on a live server; docs/security.md lists them."""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc
import grpc.aio
import pytest

from inference import grpc_service_pb2 as oip
from inference import grpc_service_pb2_grpc
from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc, model_pb2, model_pb2_grpc
from offramp_server.app import Server
from offramp_server.config import Settings
from tests.integration.conftest import failure
from tests.integration.inference_messages import pictures, request
from tests.integration.messages import config, frame, send

Classify = classification_pb2_grpc.ClassificationServiceStub
Infer = grpc_service_pb2_grpc.GRPCInferenceServiceStub

CLIMBING = ["../tiny", "tiny/../tiny", "/etc", "..", ".", "tiny/1", "tiny\n", "tiny\x00", "TINY", "x" * 100_000]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    small = {"max_message_bytes": 200_000, "max_metadata_bytes": 4096, "max_batch_frames": 4, "model_control": "explicit"}
    return settings.model_copy(update=small)


async def still_serves(channel: grpc.aio.Channel) -> bool:
    return bool((await Classify(channel).Classify(pb.ClassifyRequest(frame=frame()))).result.classification.exit)


async def test_a_message_beyond_the_bound_is_refused_and_others_go_on(channel: grpc.aio.Channel) -> None:
    large = pb.Frame(encoded=bytes(200_001))
    error = await failure(Classify(channel).Classify(pb.ClassifyRequest(frame=large)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    call = Classify(channel).StreamClassify(iter([config(), send(large)]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        assert [answer.WhichOneof("response") async for answer in call] == ["status"]
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await still_serves(channel)


async def test_metadata_beyond_the_bound_is_refused_and_others_go_on(channel: grpc.aio.Channel) -> None:
    async def send_header(size: int) -> grpc.StatusCode:
        call = Classify(channel).Classify(pb.ClassifyRequest(frame=frame()), metadata=(("x-filler", "x" * size),))
        return await call.code()

    assert [await send_header(size) for size in (2000, 5000, 5000, 50_000)] == [
        grpc.StatusCode.OK,
        *[grpc.StatusCode.RESOURCE_EXHAUSTED] * 3,
    ]
    assert await still_serves(channel)


async def test_calls_that_wait_to_be_taken_are_not_turned_away(server: Server) -> None:
    """gRPC has a bound of its own, beyond which calls end as CANCELLED without a word."""
    with grpc.insecure_channel(server.grpc_address) as channel:
        ask = Infer(channel).ServerLive.future
        calls = [ask(oip.ServerLiveRequest()) for _ in range(2500)]  # on this thread: the server's loop stands still meanwhile
        codes = await asyncio.to_thread(lambda: Counter(call.code() for call in calls))
    assert codes == {grpc.StatusCode.OK: 2500}


async def test_a_batch_beyond_the_bound_is_refused_frame_by_frame_and_the_stream_lives_on(channel: grpc.aio.Channel) -> None:
    batch = pb.FrameBatch(frames=[frame(n) for n in range(5)])
    call = Classify(channel).StreamClassify(iter([config(), pb.StreamClassifyRequest(batch=batch), send(frame(9))]))
    answers = [answer.result async for answer in call][1:]
    assert ["at most 4" in answer.error.message for answer in answers] == [True] * 5 + [False]
    assert answers[-1].HasField("classification")
    error = await failure(Infer(channel).ModelInfer(request(pictures(5))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 4" in error.details()


@pytest.mark.parametrize("name", CLIMBING, ids=range(len(CLIMBING)))
async def test_a_name_that_climbs_out_of_the_store_finds_nothing(server: Server, channel: grpc.aio.Channel, name: str) -> None:
    infer = Infer(channel)
    climbing = request()
    climbing.model_name = name
    for call in (
        infer.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name=name)),
        infer.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name=name)),
        infer.ModelMetadata(oip.ModelMetadataRequest(name=name)),
        infer.ModelInfer(climbing),
        model_pb2_grpc.ModelServiceStub(channel).GetModel(model_pb2.GetModelRequest(model=name)),
        Classify(channel).Classify(pb.ClassifyRequest(model=name, frame=frame())),
    ):
        error = await failure(call)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert len(error.details()) <= 500
    call = Classify(channel).StreamClassify(iter([config(model=name)]))
    assert await call.code() is grpc.StatusCode.NOT_FOUND
    assert await still_serves(channel)


@pytest.mark.parametrize("version", ["../1", "1/../2", "-1", "latest/../1"])
async def test_a_version_that_climbs_out_of_its_model_finds_nothing(channel: grpc.aio.Channel, version: str) -> None:
    error = await failure(Classify(channel).Classify(pb.ClassifyRequest(version=version, frame=frame())))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    message = oip.RepositoryModelLoadRequest(model_name="tiny")
    message.parameters["config"].string_param = f'{{"version_policy": {{"specific": {{"versions": ["{version}"]}}}}}}'
    error = await failure(Infer(channel).RepositoryModelLoad(message))
    assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
