"""Streams against a real server: order, window, retuning, errors and ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterable, AsyncIterator, Iterator

import numpy as np
import pytest

from offramp.v1 import classification_pb2 as pb
from offramp_client import (
    Client,
    Control,
    Frame,
    InvalidRequestError,
    OverloadedError,
    Policy,
    Result,
    ServerFaultError,
    StreamClosedError,
    UnavailableError,
)
from tests.unit.client.fake_server import FakeServer, status

IMAGE = np.zeros((8, 8, 3), np.uint8)


async def collect(results: AsyncIterable[Result], seen: list[int] | None = None) -> list[Result]:
    """Read a stream to its end; `seen` gets the numbers, also where it ends in an exception."""
    collected = []
    async for result in results:
        collected.append(result)
        if seen is not None:
            seen.append(result.frame_id)
    return collected


async def test_results_answer_every_frame_in_order(client: Client) -> None:
    results = await collect(client.stream([IMAGE] * 100, window=7))
    assert [result.frame_id for result in results] == list(range(100))
    assert all(result.latency_ms > 0 for result in results)
    assert results[3].unwrap().name == "cat"


async def test_every_kind_of_source_is_read(client: Client) -> None:
    def generator() -> Iterator[np.ndarray]:
        yield from [IMAGE] * 5

    async def async_generator() -> AsyncIterator[Frame]:
        for number in (9, 8, 9):
            yield Frame(IMAGE, frame_id=number, timestamp_us=-number)

    assert len(await collect(client.stream(generator()))) == 5
    results = await collect(client.stream(async_generator()))
    assert [(r.frame_id, r.timestamp_us) for r in results] == [(9, -9), (8, -8), (9, -9)]
    assert await collect(client.stream([])) == []


async def test_config_and_frame_carry_what_the_caller_chose(server: FakeServer, client: Client) -> None:
    frames = [Frame(IMAGE, control=Control(policy=Policy.FIXED, max_exit=3))]
    stream = client.stream(frames, model="resnet18-cifar10", lambda_=0.5, policy="entropy", ordered=False, top_k=3)
    (result,) = await collect(stream)
    config = server.configs[0]
    assert (config.model, config.ordered, config.top_k) == ("resnet18-cifar10", False, 3)
    assert (config.control.policy, getattr(config.control, "lambda")) == (pb.POLICY_ENTROPY, 0.5)
    assert not config.control.HasField("threshold")
    assert result.unwrap().exit == 3
    assert len(result.unwrap().top) == 3
    assert (stream.model, stream.version, stream.control.threshold) == ("resnet18-cifar10", "1", 0.5)


async def test_unordered_results_come_as_they_finish_and_keep_their_numbers(server: FakeServer, client: Client) -> None:
    server.reverse = True
    results = await collect(client.stream([IMAGE] * 5, ordered=False))
    assert [result.frame_id for result in results] == [4, 3, 2, 1, 0]


async def test_results_in_one_message_come_one_by_one(server: FakeServer, client: Client) -> None:
    server.together = True
    results = await collect(client.stream([IMAGE, b"rubbish", IMAGE]))
    assert [(result.frame_id, result.error is None) for result in results] == [(0, True), (1, False), (2, True)]
    assert server.configs[0].batch_results


async def test_a_bad_frame_is_a_result_and_the_stream_lives_on(client: Client) -> None:
    results = await collect(client.stream([IMAGE, b"rubbish", IMAGE]))
    assert [result.error is None for result in results] == [True, False, True]
    error = results[1].error
    assert error is not None
    assert (error.code, error.field) == ("INVALID_ARGUMENT", "frame.encoded")
    with pytest.raises(InvalidRequestError, match="neither a JPEG nor a PNG"):
        results[1].unwrap()


async def test_raise_errors_ends_the_stream_at_a_bad_frame(server: FakeServer, client: Client) -> None:
    server.frame_errors[1] = pb.Error(code=8, message="full", retry_after_ms=40)
    seen: list[int] = []
    with pytest.raises(OverloadedError) as caught:
        await collect(client.stream([IMAGE] * 3, raise_errors=True), seen)
    assert (seen, caught.value.retry_after_ms) == ([0], 40)


async def test_no_more_than_a_window_is_read_ahead(server: FakeServer, client: Client) -> None:
    taken = 0

    async def source() -> AsyncIterator[np.ndarray]:
        nonlocal taken
        for _ in range(20):
            taken += 1
            yield IMAGE

    server.answering.clear()
    async with client.stream(source(), window=4) as stream:
        results = asyncio.create_task(collect(stream))
        await server.until_frames(4)
        # The server has all that the window allows and answers nothing; a fifth frame would need a slot.
        for _ in range(50):
            await asyncio.sleep(0)
        assert (taken, len(server.frames), stream.unanswered) == (4, 4, (0, 1, 2, 3))
        server.answering.set()
        assert len(await results) == 20


async def test_a_slow_caller_holds_the_source_back_too(server: FakeServer, client: Client) -> None:
    async with client.stream([IMAGE] * 50, window=3) as stream:
        results = aiter(stream)
        await anext(results)
        await server.until_frames(4)
        await client.models()  # a whole round trip, in which frames would have gone out
        assert len(server.frames) == 4
        assert len([result async for result in results]) == 49


async def test_retune_inside_the_source_holds_from_the_very_next_frame(server: FakeServer, client: Client) -> None:
    async def source() -> AsyncIterator[np.ndarray]:
        for number in range(6):
            if number == 3:
                in_force = await stream.retune(lambda_=8.0)
                assert in_force == stream.control
                assert in_force.threshold == 0.5
            yield IMAGE

    stream = client.stream(source(), lambda_=0.0, top_k=3)
    results = await collect(stream)
    assert [len(result.unwrap().top) for result in results] == [3] * 6
    assert [result.unwrap().control.lambda_ for result in results] == [0.0] * 3 + [8.0] * 3


async def test_retune_between_results_and_on_top_of_what_was_asked(server: FakeServer, client: Client) -> None:
    stream = client.stream([IMAGE] * 20, window=2, control=Control(lambda_=1.0, exit_thresholds=(0.9, 0.8, 0.7)))
    async for result in stream:
        if result.frame_id == 5:
            await stream.retune(threshold=0.25)
            await stream.retune(max_exit=3)
    (first, second, third) = server.configs
    assert list(first.control.exit_thresholds) == [0.9, 0.8, 0.7]
    # A threshold for all exits takes the place of those for each; the rest of what was asked stays.
    assert (list(second.control.exit_thresholds), second.control.threshold) == ([], 0.25)
    assert getattr(second.control, "lambda") == 1.0
    assert not second.control.HasField("max_exit")
    assert (third.control.threshold, third.control.max_exit, getattr(third.control, "lambda")) == (0.25, 3, 1.0)


async def test_a_refused_retune_raises_and_the_former_control_holds(server: FakeServer, client: Client) -> None:
    server.refuse_config = pb.Error(code=3, message="must be >= 0", field="config.control.lambda")
    stream = client.stream([IMAGE] * 20, window=2, lambda_=1.0)
    after = []
    async for result in stream:
        after.append(result.unwrap().control.lambda_)
        if result.frame_id == 5:
            with pytest.raises(InvalidRequestError) as caught:
                await stream.retune(lambda_=-1.0)
            assert caught.value.field == "config.control.lambda"
    assert after == [1.0] * 20
    assert stream.control.lambda_ == 1.0


async def test_retune_before_the_first_frame_and_after_the_last(server: FakeServer, client: Client) -> None:
    stream = client.stream([IMAGE])
    await stream.retune(lambda_=3.0)
    (result,) = await collect(stream)
    assert result.unwrap().control.lambda_ == 3.0
    assert len(server.configs) == 1
    with pytest.raises(StreamClosedError):
        await stream.retune(lambda_=4.0)


async def test_a_waiting_retune_fails_when_the_stream_is_closed(server: FakeServer, client: Client) -> None:
    server.answering.clear()
    stream = client.stream([IMAGE] * 9, window=1)
    reading = asyncio.create_task(collect(stream))
    await server.until_frames(1)
    # Its status waits behind a held-back result, so it cannot have been answered.
    retuning = asyncio.create_task(stream.retune(lambda_=4.0))
    await asyncio.sleep(0)
    await stream.aclose()
    with pytest.raises(StreamClosedError):
        await retuning
    with pytest.raises(StreamClosedError, match="while its results were read"):
        await reading


async def test_leaving_the_loop_cancels_the_call_and_closes_the_source(server: FakeServer, client: Client) -> None:
    closed = asyncio.Event()

    async def source() -> AsyncIterator[np.ndarray]:
        try:
            yield IMAGE
            await asyncio.Event().wait()
        finally:
            closed.set()

    async for _ in client.stream(source()):
        await server.written.wait()
        break
    gc.collect()
    async with asyncio.timeout(10):
        await server.over.wait()
        await closed.wait()


async def test_cancelling_the_task_cancels_the_call(server: FakeServer, client: Client) -> None:
    server.answering.clear()
    reading = asyncio.create_task(collect(client.stream([IMAGE])))
    await server.until_frames(1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    async with asyncio.timeout(10):
        await server.over.wait()


async def test_closing_the_client_ends_its_streams(server: FakeServer) -> None:
    server.answering.clear()
    async with Client(server.address) as client:
        reading = asyncio.create_task(collect(client.stream([IMAGE])))
        await server.until_frames(1)
    with pytest.raises(StreamClosedError):
        await reading


async def test_an_exception_in_the_source_reaches_the_caller_and_cancels_the_call(server: FakeServer, client: Client) -> None:
    async def source() -> AsyncIterator[np.ndarray]:
        yield IMAGE
        await server.written.wait()
        raise OSError("camera unplugged")

    with pytest.raises(OSError, match="camera unplugged"):
        await collect(client.stream(source()))
    async with asyncio.timeout(10):
        await server.over.wait()


async def test_a_frame_unfit_for_the_wire_names_its_field(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match=r"float64 \(8, 8, 3\)") as caught:
        await collect(client.stream([IMAGE.astype(np.float64)]))  # type: ignore[list-item]
    assert caught.value.field == "frame.image"


async def test_a_failed_stream_raises_its_typed_error_after_the_results_before_it(server: FakeServer, client: Client) -> None:
    server.fail_with, server.fail_after = status(8, "too much in flight", retry_after_ms=125), 2
    seen: list[int] = []
    with pytest.raises(OverloadedError, match="too much in flight") as caught:
        await collect(client.stream([IMAGE] * 5), seen)
    assert (seen, caught.value.retry_after_ms, caught.value.code) == ([0, 1], 125, "RESOURCE_EXHAUSTED")


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("answers", [0, 3])
async def test_the_status_of_a_stream_that_fails_while_frames_are_sent_is_not_lost(
    server: FakeServer, client: Client, answers: int, attempt: int
) -> None:
    server.fail_with, server.fail_after = status(3, "must be >= 0", field="config.control.lambda"), answers
    with pytest.raises(InvalidRequestError) as caught:
        await collect(client.stream([np.zeros((96, 96, 3), np.uint8)] * 200))
    assert caught.value.field == "config.control.lambda"


async def test_a_draining_server_ends_the_stream_with_what_to_send_again(server: FakeServer, client: Client) -> None:
    server.drain_after = 3
    stream = client.stream([IMAGE] * 10, window=10)
    seen: list[int] = []
    with pytest.raises(UnavailableError, match="going away"):
        await collect(stream, seen)
    assert seen == [0, 1, 2]
    assert stream.draining
    assert set(seen).isdisjoint(stream.unanswered)


async def test_a_server_that_drains_after_the_last_frame_has_answered_all(server: FakeServer, client: Client) -> None:
    server.drain_after = 3
    assert len(await collect(client.stream([IMAGE] * 3))) == 3


async def test_an_answer_outside_the_contract_is_a_server_fault(
    server: FakeServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_number(frame: pb.Frame, control: pb.RoutingControl, top_k: int) -> pb.FrameResult:
        return pb.FrameResult(frame_id=77)

    monkeypatch.setattr("tests.unit.client.fake_server.classify", wrong_number)
    with pytest.raises(ServerFaultError, match="frame 77"):
        await collect(client.stream([IMAGE]))


async def test_a_stream_is_iterated_over_once(client: Client) -> None:
    stream = client.stream([IMAGE])
    await collect(stream)
    with pytest.raises(StreamClosedError):
        aiter(stream)


async def test_many_streams_share_a_client(client: Client) -> None:
    counts = await asyncio.gather(*(collect(client.stream([IMAGE] * n)) for n in range(1, 6)))
    assert [len(results) for results in counts] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("fields", [{"policy": "psychic"}, {"min_exit": -1}, {"lambda_": "much"}])
async def test_bad_values_are_refused_before_anything_is_sent(client: Client, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.stream([IMAGE], **fields)  # type: ignore[arg-type]
    assert caught.value.field.startswith("control.")


@pytest.mark.parametrize("options", [{"window": 0}, {"top_k": -1}])
async def test_bad_options_are_refused(client: Client, options: dict[str, int]) -> None:
    with pytest.raises(InvalidRequestError):
        client.stream([IMAGE], **options)  # type: ignore[arg-type]
