"""StreamClassify on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
import grpc.aio
import pytest

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from offramp_server.app import Server
from offramp_server.config import Settings
from tests.integration.conftest import PATIENCE_S, Gate, until
from tests.integration.messages import bad_frame, config, frame, send
from tests.unit.server.rpc.manifests import EXITS

Stub = classification_pb2_grpc.ClassificationServiceStub
INVALID, EXHAUSTED, DEADLINE = (
    code.value[0]
    for code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
)
DEEP = {"lambda_": 0.0, "threshold": 1.0}
"""A control that takes every frame to the last exit."""


async def exchange(stub: Stub, requests: Iterable[pb.StreamClassifyRequest], **call: object) -> list[pb.StreamClassifyResponse]:
    """Send everything, then read everything."""
    return [response async for response in stub.StreamClassify(iter(requests), **call)]


def results(responses: Iterable[pb.StreamClassifyResponse]) -> list[pb.FrameResult]:
    return [response.result for response in responses if response.HasField("result")]


def statuses(responses: Iterable[pb.StreamClassifyResponse]) -> list[pb.StreamStatus]:
    return [response.status for response in responses if response.HasField("status")]


async def test_frames_are_answered_in_order_after_the_config_is(stub: Stub) -> None:
    responses = await exchange(stub, [config(top_k=2, lambda_=0.3), *(send(frame(n)) for n in range(20))])
    assert responses[0].status.state == pb.StreamStatus.STATE_CONFIGURED
    assert (responses[0].status.model, responses[0].status.version) == ("tiny", "2")
    assert getattr(responses[0].status.control, "lambda") == 0.3
    answers = results(responses)
    assert [answer.frame_id for answer in answers] == list(range(20))
    assert [answer.timestamp_us for answer in answers] == [n * 1000 for n in range(20)]
    assert all(len(answer.classification.top) == 2 for answer in answers)


async def test_the_first_message_must_be_a_config(stub: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await exchange(stub, [send(frame())])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "first message" in caught.value.details()


async def test_a_caller_who_went_while_the_server_wrote_is_no_fault_of_it(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(_: object) -> None:
        raise grpc.aio.InternalError("what gRPC raises where a call is over that it has not cancelled yet")

    monkeypatch.setattr("offramp_server.rpc.stream._wrap", gone)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await exchange(stub, [config()], timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert "a call failed" not in caplog.text


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (config(model="nobody"), grpc.StatusCode.NOT_FOUND),
        (config(version="7"), grpc.StatusCode.NOT_FOUND),
        (config(lambda_=-1.0), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_first_config_that_cannot_be_served_ends_the_stream(
    stub: Stub, first: pb.StreamClassifyRequest, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await exchange(stub, [first])
    assert caught.value.code() is code


async def test_a_stream_without_a_message_ends_well(stub: Stub) -> None:
    assert await exchange(stub, []) == []


async def test_a_later_config_holds_from_the_next_frame_on_and_replaces_the_control_as_a_whole(stub: Stub) -> None:
    responses = await exchange(
        stub,
        [
            config(**DEEP),
            send(frame(0)),
            send(frame(1)),
            config(lambda_=1e9),
            send(frame(2)),
            send(frame(3)),
            config(policy=pb.POLICY_FIXED, max_exit=2),
            send(frame(4)),
        ],
    )
    assert [answer.classification.exit for answer in results(responses)] == [EXITS, EXITS, 1, 1, 2]
    kinds = [response.WhichOneof("response") for response in responses]
    assert kinds == ["status", "result", "result", "status", "result", "result", "status", "result"]
    assert responses[3].status.control.threshold == 0.5  # not the former config's 1.0


@pytest.mark.parametrize(
    ("later", "field"),
    [
        (config(lambda_=-1.0), "config.control.lambda"),
        (config(model="other"), "config.model"),
        (config(version="1"), "config.version"),
        (config(ordered=False), "config.ordered"),
        (pb.StreamClassifyRequest(config=pb.StreamConfig(batch_results=True)), "config.batch_results"),
    ],
)
async def test_a_refused_retune_leaves_the_former_control_in_force(
    stub: Stub, later: pb.StreamClassifyRequest, field: str
) -> None:
    responses = await exchange(stub, [config(**DEEP), later, send(frame(1))])
    refused = statuses(responses)[1]
    assert refused.state == pb.StreamStatus.STATE_REFUSED
    assert (refused.error.code, refused.error.field) == (INVALID, field)
    assert refused.control.threshold == 1.0
    assert results(responses)[0].classification.exit == EXITS


async def test_repeating_the_first_config_is_no_change(stub: Stub) -> None:
    same = config(model="tiny", version="2", ordered=True)
    responses = await exchange(stub, [same, same])
    assert [status.state for status in statuses(responses)] == [pb.StreamStatus.STATE_CONFIGURED] * 2


async def test_frames_of_one_stream_and_one_batch_each_have_their_own_control(stub: Stub) -> None:
    controls = [
        {"lambda_": 1e9},
        {"policy": pb.POLICY_FIXED, "max_exit": 2},
        {},
        {"policy": pb.POLICY_FIXED, "max_exit": 3},
        {"lambda_": 1e9, "min_exit": 2},
    ]
    batch = pb.FrameBatch(frames=[frame(n, **fields) for n, fields in enumerate(controls)])
    responses = await exchange(stub, [config(**DEEP), pb.StreamClassifyRequest(batch=batch)])
    # the stream's threshold of 1 holds where a frame names no other policy, and a very large λ passes even that
    assert [answer.classification.exit for answer in results(responses)] == [1, 2, EXITS, 3, 2]


async def test_one_bad_frame_gets_one_error_in_its_place_and_the_stream_lives_on(stub: Stub) -> None:
    bad_control = frame(3, threshold=2.0)
    batch = pb.StreamClassifyRequest(batch=pb.FrameBatch(frames=[frame(4), bad_frame(5), frame(6)]))
    requests = [config(), send(frame(0)), send(bad_frame(1)), send(frame(2)), send(bad_control), batch]
    answers = results(await exchange(stub, requests))
    assert [answer.frame_id for answer in answers] == list(range(7))
    failed = {answer.frame_id: (answer.error.code, answer.error.field) for answer in answers if answer.HasField("error")}
    assert failed == {
        1: (INVALID, "frame.rgb8.data"),
        3: (INVALID, "frame.control.threshold"),
        5: (INVALID, "batch.frames[1].rgb8.data"),
    }


async def test_an_empty_message_is_refused_and_the_stream_lives_on(stub: Stub) -> None:
    responses = await exchange(stub, [config(), pb.StreamClassifyRequest(), send(frame(1))])
    assert [status.state for status in statuses(responses)] == [pb.StreamStatus.STATE_CONFIGURED, pb.StreamStatus.STATE_REFUSED]
    assert results(responses)[0].HasField("classification")


async def test_a_batch_beyond_the_bound_gets_an_error_for_each_frame(settings: Settings) -> None:
    small = settings.model_copy(update={"max_batch_frames": 3})
    async with Server(small) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        batch = pb.StreamClassifyRequest(batch=pb.FrameBatch(frames=[frame(n) for n in range(4)]))
        answers = results(await exchange(Stub(channel), [config(), batch, send(frame(9))]))
    assert [answer.error.field for answer in answers] == ["batch.frames"] * 4 + [""]
    assert answers[4].HasField("classification")


async def test_unordered_results_come_as_they_finish(settings: Settings, gate: Gate) -> None:
    async with Server(settings, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        call = Stub(channel).StreamClassify()
        await call.write(config(ordered=False))
        await call.write(send(frame(0, **DEEP)))
        await until(lambda: server.in_flight == 1)
        await call.write(send(frame(1, lambda_=1e9)))
        await until(lambda: server.in_flight == 2)
        await call.write(send(bad_frame(2)))  # needs no network at all
        await call.done_writing()
        order = [(await call.read()).WhichOneof("response"), (await call.read()).result.frame_id]
        assert order == ["status", 2]
        gate.open()
        assert {(await call.read()).result.frame_id for _ in range(2)} == {0, 1}
        assert await call.read() is grpc.aio.EOF


async def test_a_full_window_stops_the_reader_and_nothing_is_lost(settings: Settings, gate: Gate) -> None:
    small = settings.model_copy(update={"stream_window": 4})
    async with Server(small, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        call = Stub(channel).StreamClassify()
        await call.write(config(lambda_=1e9))

        async def write() -> None:  # without a read until all is written: both sides would stop for ever if the window leaked
            for n in range(50):
                await call.write(send(frame(n)))
            await call.done_writing()

        writer = asyncio.create_task(write())
        await until(lambda: server.in_flight == 4)
        gate.open()
        answers = results([response async for response in call])
        await writer
        assert [answer.frame_id for answer in answers] == list(range(50))
        assert max(frames for _, frames in gate.backends[0].batches) <= 4


async def test_streams_share_batches(settings: Settings, gate: Gate) -> None:
    async with Server(settings, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        calls = [Stub(channel).StreamClassify(iter([config(lambda_=1e9), send(frame(n))])) for n in range(6)]
        await until(lambda: server.in_flight == 6)
        gate.open()
        for call in calls:
            assert len(results([response async for response in call])) == 1
        assert max(frames for _, frames in gate.backends[0].batches) > 1


async def test_overload_inside_a_stream_is_an_error_result_with_a_time_to_come_back(settings: Settings, gate: Gate) -> None:
    small = settings.model_copy(update={"max_in_flight": 2})
    async with Server(small, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        call = Stub(channel).StreamClassify(iter([config(ordered=False), *(send(frame(n)) for n in range(3))]))
        assert (await call.read()).HasField("status")
        refused = (await call.read()).result
        assert (refused.frame_id, refused.error.code) == (2, EXHAUSTED)
        assert refused.error.retry_after_ms > 0
        gate.open()
        assert {(await call.read()).result.frame_id for _ in range(2)} == {0, 1}


async def test_too_many_streams_are_refused(settings: Settings) -> None:
    small = settings.model_copy(update={"max_streams": 1})
    async with Server(small) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        first = Stub(channel).StreamClassify()
        await first.write(config())
        assert (await first.read()).HasField("status")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await exchange(Stub(channel), [config()])
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await first.done_writing()
        assert await first.read() is grpc.aio.EOF
        assert len(await exchange(Stub(channel), [config()])) == 1


async def test_a_cancelled_stream_leaves_nothing_behind(settings: Settings, gate: Gate) -> None:
    async with Server(settings, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        before = asyncio.all_tasks()
        gate.close()
        call = Stub(channel).StreamClassify()
        await call.write(config(**DEEP))
        for n in range(10):
            await call.write(send(frame(n)))
        await until(lambda: server.in_flight == 10)
        call.cancel()
        await until(
            lambda: not {task for task in asyncio.all_tasks() - before if "handle_rpc" in repr(task) or "_answer" in repr(task)}
        )
        gate.open()  # not before the server has heard of it, or the frames might go on in the meantime
        await until(lambda: server.in_flight == 0)
        stages = [stage for stage, _ in gate.backends[0].batches]
        assert max(stages) <= 2  # only what had begun when the caller went was finished
        assert len(results(await exchange(Stub(channel), [config(), send(frame(1))]))) == 1


async def test_a_deadline_that_passes_drops_the_frames_unrun(settings: Settings, gate: Gate) -> None:
    now = 1000.0
    async with (
        Server(settings, gate.load, clock=lambda: now) as server,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        gate.close()
        call = Stub(channel).StreamClassify(timeout=100)
        await call.write(config(lambda_=1e9))
        await call.write(send(frame(0)))
        await until(lambda: server.in_flight == 1)
        await call.write(send(frame(1)))
        await until(lambda: server.in_flight == 2)
        now += 200  # the server's clock alone: frame 1 expires in the queue while the call still lives
        gate.open()
        await call.done_writing()
        answers = results([response async for response in call])
        assert answers[0].HasField("classification")
        assert answers[1].error.code == DEADLINE
        assert gate.backends[0].batches == [(1, 1)]
