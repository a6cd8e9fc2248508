"""What a client may have open and send."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp_server.errors import OverloadedError
from offramp_server.security.limits import ClientLimits, ClientUsage, TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    rate=st.floats(0.1, 1000),
    capacity=st.floats(1, 100),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 20)), max_size=30),
)
def test_a_bucket_gives_never_more_than_it_held_and_what_flowed_in(
    rate: float, capacity: float, steps: list[tuple[float, int]]
) -> None:
    clock = Clock()
    bucket, given_out = TokenBucket(rate, capacity, clock), 0
    started = clock.now
    for pause, wanted in steps:
        clock.now += pause
        given_out += sum(bucket.take() == 0 for _ in range(wanted))
        assert given_out <= capacity + rate * (clock.now - started) + 1e-6


@given(rate=st.floats(0.1, 1000), capacity=st.floats(1, 100))
def test_a_bucket_says_when_to_come_back(rate: float, capacity: float) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, capacity, clock)
    while (wait := bucket.take()) == 0:
        pass
    assert 0 < wait <= 1 / rate + 1e-9
    clock.now += wait * (1 + 1e-6) + 1e-6
    assert bucket.take() == 0


def test_the_limit_is_named_and_comes_with_a_time() -> None:
    clock = Clock()
    usage = ClientUsage("gate-3", ClientLimits(max_streams=1, max_in_flight=2, max_frames_per_s=4), clock)
    usage.enter_stream()
    with pytest.raises(OverloadedError, match=r"max_streams: client 'gate-3' has 1 streams open and may have 1"):
        usage.enter_stream()
    usage.leave_stream()
    usage.enter_stream()
    for _ in range(2):
        usage.enter_frame()
    with pytest.raises(OverloadedError, match=r"max_in_flight: client 'gate-3' has 2 frames in flight and may have 2"):
        usage.enter_frame()
    for _ in range(2):
        usage.leave_frame()
        usage.enter_frame()
    usage.leave_frame()
    with pytest.raises(OverloadedError, match=r"max_frames_per_s: client 'gate-3' may send 4 frames a second") as caught:
        usage.enter_frame()
    assert caught.value.retry_after_ms == 250
    assert usage.in_flight == 1, "a refused frame is not in flight"
    clock.now += 0.25
    usage.enter_frame()


def test_new_limits_hold_for_what_is_already_open() -> None:
    usage = ClientUsage("gate-3", ClientLimits(), Clock())
    for _ in range(3):
        usage.enter_frame()
    usage.set_limits(ClientLimits(max_in_flight=2))
    usage.leave_frame()
    with pytest.raises(OverloadedError):
        usage.enter_frame()
    usage.leave_frame()
    usage.enter_frame()
    assert usage.in_flight == 2


def test_a_slow_rate_still_lets_a_frame_in() -> None:
    clock = Clock()
    usage = ClientUsage("gate-3", ClientLimits(max_frames_per_s=0.5), clock)
    usage.enter_frame()
    with pytest.raises(OverloadedError) as caught:
        usage.enter_frame()
    assert caught.value.retry_after_ms == math.ceil(2000)
