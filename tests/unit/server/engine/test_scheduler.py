"""The choice of the next lane, as a pure function."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from offramp_server.engine.scheduler import LaneState, choose_lane

EFFICIENT = 8

lane_states = st.lists(
    st.builds(
        lambda entry, length, wait, efficient: LaneState(entry, length, wait if length else 0.0, efficient),
        st.booleans(),
        st.integers(0, 50),
        st.floats(0, 1),
        st.integers(1, 32),
    ),
    min_size=1,
    max_size=6,
)


def of(entry: int, *between: int, wait: float = 0.001) -> list[LaneState]:
    """One entry, and the lanes between stages, with so many frames each."""
    lanes = [LaneState(True, entry, wait if entry else 0.0, EFFICIENT)]
    return lanes + [LaneState(False, length, wait if length else 0.0, EFFICIENT) for length in between]


def test_nothing_waits_for_company() -> None:
    assert choose_lane(of(1, 0, 0), 1.0) == 0
    assert choose_lane(of(0, 0, 1), 1.0) == 2
    assert choose_lane(of(0, 0, 0), 1.0) is None


def test_the_deepest_lane_with_an_efficient_batch_goes_first() -> None:
    assert choose_lane(of(50, 8, 8), 1.0) == 2
    assert choose_lane(of(50, 40, 7), 1.0) == 1


def test_otherwise_the_lane_nearest_to_an_efficient_batch_and_the_deepest_among_equals() -> None:
    assert choose_lane(of(3, 5, 2), 1.0) == 1
    assert choose_lane(of(5, 5, 3), 1.0) == 1
    halves = [LaneState(True, 4, 0.0, 8), LaneState(False, 3, 0.0, 16)]
    assert choose_lane(halves, 1.0) == 0


def test_a_few_survivors_are_not_starved_by_a_full_entry() -> None:
    lanes = [LaneState(True, 500, 3.0, EFFICIENT), LaneState(False, 0, 0.0, EFFICIENT), LaneState(False, 1, 0.06, EFFICIENT)]
    assert choose_lane(lanes, max_wait=0.05) == 2
    assert choose_lane(lanes, max_wait=0.07) == 0


def test_a_long_backlog_at_the_entry_does_not_hold_up_those_inside() -> None:
    """A backlog has always waited longer than what has just left a stage."""
    lanes = [LaneState(True, 500, 3.0, EFFICIENT), LaneState(False, 8, 0.0, EFFICIENT)]
    assert choose_lane(lanes, max_wait=0.05) == 1


def test_no_entry_starves_another() -> None:
    lanes = [LaneState(True, 1, 0.4, EFFICIENT), LaneState(True, 500, 0.3, EFFICIENT)]
    assert choose_lane(lanes, max_wait=1.0) == 0


def test_a_lone_frame_at_an_entry_is_not_starved_by_small_batches_inside() -> None:
    lanes = [LaneState(True, 1, 0.06, EFFICIENT), LaneState(False, 4, 0.01, EFFICIENT)]
    assert choose_lane(lanes, max_wait=0.05) == 0


@given(lane_states, st.floats(0, 2))
def test_some_lane_with_work_is_chosen_whenever_there_is_work(lanes: list[LaneState], max_wait: float) -> None:
    chosen = choose_lane(lanes, max_wait)
    if chosen is None:
        assert all(lane.length == 0 for lane in lanes)
    else:
        assert lanes[chosen].length > 0
