"""Single calls against a real server."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from offramp.v1 import classification_pb2 as pb
from offramp_client import (
    Client,
    Control,
    DeadlineExceededError,
    Frame,
    Health,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from tests.unit.client.fake_server import FakeServer, status

IMAGE = np.zeros((8, 8, 3), np.uint8)


async def test_classify_answers_one_image(server: FakeServer, client: Client) -> None:
    frame = Frame(IMAGE, frame_id=3, control=Control(max_exit=2), timestamp_us=9)
    shown = await client.classify(frame, policy="fixed", lambda_=0.5, max_exit=4, top_k=2)
    assert (shown.name, shown.probability, shown.exit, len(shown.top)) == ("cat", 0.9, 2, 2)
    assert shown.cost_ratio == 0.52
    request = server.last_classify
    assert request is not None
    # The frame's own control goes on top of the call's; a call has but one place on the wire for both.
    assert (request.frame.control.policy, request.frame.control.max_exit) == (pb.POLICY_FIXED, 2)
    assert getattr(request.frame.control, "lambda") == 0.5
    assert request.frame.timestamp_us == 9


async def test_classify_raises_what_is_wrong_with_the_image(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="neither a JPEG nor a PNG") as caught:
        await client.classify(b"rubbish")
    assert caught.value.field == "frame.encoded"


async def test_models_are_listed_and_described(client: Client) -> None:
    (summary,) = await client.models()
    assert (summary.name, summary.is_default, summary.frames_classified) == ("resnet18-cifar10", True, 7)
    assert (await client.model()).full_macs == 555_422_720
    with pytest.raises(NotFoundError, match="no model 'vgg' is loaded"):
        await client.model("vgg")


async def test_overload_says_how_long_to_wait(server: FakeServer, client: Client) -> None:
    server.fail_with = status(8, "too much in flight", retry_after_ms=250)
    with pytest.raises(OverloadedError) as caught:
        await client.classify(IMAGE)
    assert caught.value.retry_after_ms == 250


async def test_health_is_told_not_raised(server: FakeServer, client: Client) -> None:
    assert await client.health() == Health(True, "SERVING")
    await server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert await client.health() == Health(False, "NOT_SERVING")
    assert await client.health("no.such.Service") == Health(False, "SERVICE_UNKNOWN")


async def test_nobody_listening_is_unavailable() -> None:
    async with FakeServer() as gone:
        address = gone.address
    async with Client(address) as client:
        with pytest.raises(UnavailableError):
            await client.models()
        with pytest.raises(UnavailableError):
            async for _ in client.stream([IMAGE]):
                pass
        assert await client.health() == Health(False, "UNREACHABLE")
        with pytest.raises(DeadlineExceededError, match="is not serving after"):
            await client.wait_until_serving(0.05)


async def test_waiting_ends_when_the_server_serves(server: FakeServer, client: Client) -> None:
    await server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    waiting = asyncio.create_task(client.wait_until_serving(30))
    await client.models()
    assert not waiting.done()
    await server.health.set("", health_pb2.HealthCheckResponse.SERVING)
    await waiting


async def test_metadata_goes_with_every_call(server: FakeServer) -> None:
    async with Client(server.address, metadata=[("authorization", "Bearer of-news")]) as client:
        await client.classify(IMAGE)
        async for _ in client.stream([IMAGE]):
            pass
        await client.models()
    assert [dict(seen)["authorization"] for seen in server.metadata] == ["Bearer of-news"] * 3


async def test_a_client_can_be_used_again_after_closing(server: FakeServer) -> None:
    client = Client(server.address)
    assert (await client.health()).serving
    await client.close()
    assert (await client.health()).serving
    await client.close()
