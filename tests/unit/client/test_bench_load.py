"""The load generator against lanes in this process: what it sends, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence

import pytest

from offramp_client import InvalidRequestError, OverloadedError
from offramp_client.bench_load import run_load
from offramp_client.bench_types import Answer, Load, Measurement, Sent, Sink

Reply = Callable[[Sent], Answer]


class LoopLane:
    """Answers each message in the loop's next round; notes what came."""

    def __init__(self, sink: Sink, reply: Reply) -> None:
        self.sink, self.reply = sink, reply
        self.messages: list[list[Sent]] = []
        self.under_way = self.most_under_way = 0
        self.finished = False

    async def send(self, frames: Sequence[Sent]) -> None:
        self.messages.append(list(frames))
        self.under_way += len(frames)
        self.most_under_way = max(self.most_under_way, self.under_way)
        for frame in frames:
            asyncio.get_running_loop().call_soon(self.answer, frame)

    def answer(self, frame: Sent) -> None:
        self.under_way -= 1
        self.sink.answered(self.reply(frame))

    async def finish(self) -> None:
        self.finished = True


class Lanes:
    """Opens lanes and keeps them."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.lanes: list[LoopLane] = []

    async def __call__(self, sink: Sink) -> LoopLane:
        self.lanes.append(LoopLane(sink, self.reply))
        return self.lanes[-1]


def classified(frame: Sent) -> Answer:
    return Answer(frame.number, label=frame.image % 3, exit=1 + frame.number % 2, cost=0.25 if frame.number % 2 == 0 else 0.75)


QUICK = Load(streams=3, in_flight=4, warm_up_s=0, seconds=0.2)


async def test_a_closed_loop_keeps_its_frames_in_flight_and_no_more() -> None:
    lanes = Lanes(classified)
    seen = await run_load(Load(streams=3, in_flight=7, batch=3, warm_up_s=0, seconds=0.2), lanes, images=5)
    assert len(lanes.lanes) == 3
    for lane in lanes.lanes:
        assert lane.most_under_way == 6  # a third message of three would make nine
        assert all(len(message) == 3 for message in lane.messages)
        assert lane.finished
    sent = [frame for lane in lanes.lanes for message in lane.messages for frame in message]
    assert sorted(frame.number for frame in sent) == list(range(len(sent)))
    assert {frame.image for frame in sent} == set(range(5))
    assert 0 < seen.answered <= len(sent)
    assert (seen.unanswered, seen.errors, seen.lost) == (0, {}, {})


async def test_exits_compute_and_accuracy_are_those_of_the_answers() -> None:
    seen = await run_load(QUICK, Lanes(classified), images=6)
    assert seen.exits.total() == seen.answered == len(seen.latencies_ms)
    assert seen.mean_cost == pytest.approx((0.25 * seen.exits[1] + 0.75 * seen.exits[2]) / seen.answered)
    assert seen.labels == {image: image % 3 for image in range(6)}
    assert seen.accuracy([0, 1, 2, 0, 1, 2]) == 1
    assert seen.accuracy([0, 1, 0, 0, 1, 0]) == pytest.approx(4 / 6)


async def test_errors_are_counted_by_code_and_in_nothing_else() -> None:
    seen = await run_load(QUICK, Lanes(lambda f: Answer(f.number, error="INTERNAL") if f.image else classified(f)), images=2)
    assert set(seen.errors) == {"INTERNAL"}
    assert seen.exits.total() == seen.answered == len(seen.latencies_ms)
    assert set(seen.labels) == {0}


async def test_a_server_that_asks_to_wait_is_not_hammered() -> None:
    lanes = Lanes(lambda frame: Answer(frame.number, error="RESOURCE_EXHAUSTED", retry_after_ms=60_000))
    seen = await run_load(QUICK, lanes, images=2)
    assert [len(lane.messages) for lane in lanes.lanes] == [4, 4, 4]
    assert seen.answered == 0
    assert math.isnan(seen.latency_ms(50))
    assert seen.report([0, 1])["accuracy"] is None


async def test_an_open_loop_sends_at_its_rate_however_slow_the_answers() -> None:
    held: list[Sent] = []

    class Mute(LoopLane):
        def answer(self, frame: Sent) -> None:
            held.append(frame)

    lanes: list[Mute] = []

    async def open_lane(sink: Sink) -> Mute:
        lanes.append(Mute(sink, classified))
        return lanes[-1]

    load = Load(streams=2, in_flight=1, batch=2, rate=2000, warm_up_s=0, seconds=0.3, drain_s=0)
    seen = await run_load(load, open_lane, images=4)
    assert len(held) > 2  # a closed loop would have two in flight and wait
    assert seen.unanswered > 0
    assert seen.answered == 0
    assert seen.lateness_ms
    assert abs(len(lanes[0].messages) - len(lanes[1].messages)) <= 1


async def test_answers_of_an_open_loop_that_come_after_the_window_still_count_in_its_latency() -> None:
    class Late(LoopLane):
        async def finish(self) -> None:
            for message in self.messages:
                for frame in message:
                    self.sink.answered(self.reply(frame))

        def answer(self, frame: Sent) -> None: ...

    async def open_lane(sink: Sink) -> Late:
        return Late(sink, classified)

    seen = await run_load(Load(streams=1, rate=1000, warm_up_s=0, seconds=0.2), open_lane, images=4)
    assert seen.answered == 0  # none within the window
    assert len(seen.latencies_ms) > 0
    assert max(seen.latencies_ms) > min(seen.latencies_ms)
    assert seen.unanswered == 0


async def test_a_lost_stream_ends_what_is_on_it_and_losing_all_is_an_error() -> None:
    class Dying(LoopLane):
        def answer(self, frame: Sent) -> None:
            if frame.number == 2:
                self.sink.lost("RESOURCE_EXHAUSTED")

    async def open_lane(sink: Sink) -> Dying:
        return Dying(sink, classified)

    with pytest.raises(OverloadedError, match="all 1 streams"):
        await run_load(
            Load(streams=1, in_flight=4, warm_up_s=60, seconds=60), open_lane, images=1
        )  # and does not wait for the end


async def test_lanes_that_opened_are_ended_where_another_does_not_open() -> None:
    lanes = Lanes(classified)

    async def open_lane(sink: Sink) -> LoopLane:
        if len(lanes.lanes) == 2:
            raise OverloadedError("too many streams")
        return await lanes(sink)

    with pytest.raises(OverloadedError):
        await run_load(QUICK, open_lane, images=1)
    assert len(lanes.lanes) == 2


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"streams": 0}, "streams"),
        ({"in_flight": 0}, "in_flight"),
        ({"batch": 0}, "batch"),
        ({"batch": 33}, "batch"),
        ({"rate": 0.0}, "rate"),
        ({"seconds": 0.0}, "seconds"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused_by_name(fields: dict[str, float], named: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Load(**fields)  # type: ignore[arg-type]
    assert caught.value.field == named


def test_the_report_is_json_even_of_nothing() -> None:
    report = json.loads(json.dumps(Measurement(Load()).report(), allow_nan=False))
    assert (report["frames"], report["frames_per_s"], report["latency_ms"]["p99"]) == (0, 0.0, None)
