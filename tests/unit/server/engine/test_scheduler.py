"""The choice of the next stage, as a pure function."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from offramp_server.engine.scheduler import QueueState, choose_stage

queue_states = st.lists(
    st.tuples(st.integers(0, 50), st.floats(0, 1)).map(lambda t: QueueState(t[0], t[1] if t[0] else 0.0)), min_size=1, max_size=6
)


def of(*lengths: int) -> list[QueueState]:
    return [QueueState(length, 0.001 if length else 0.0) for length in lengths]


def test_nothing_waits_for_company() -> None:
    assert choose_stage(of(1, 0, 0), 32, 1.0) == 1
    assert choose_stage(of(0, 0, 1), 32, 1.0) == 3
    assert choose_stage(of(0, 0, 0), 32, 1.0) is None


def test_the_deepest_full_batch_goes_first() -> None:
    assert choose_stage(of(50, 32, 32), 32, 1.0) == 3
    assert choose_stage(of(50, 40, 31), 32, 1.0) == 2


def test_otherwise_the_fullest_and_the_deepest_among_equals() -> None:
    assert choose_stage(of(5, 9, 3), 32, 1.0) == 2
    assert choose_stage(of(5, 5, 3), 32, 1.0) == 2


def test_a_few_survivors_are_not_starved_by_full_batches() -> None:
    states = [QueueState(500, 0.01), QueueState(0, 0.0), QueueState(1, 0.06)]
    assert choose_stage(states, 32, max_wait=0.05) == 3
    assert choose_stage(states, 32, max_wait=0.07) == 1


@given(queue_states, st.integers(1, 64), st.floats(0, 2))
def test_some_stage_with_work_is_chosen_whenever_there_is_work(states: list[QueueState], max_batch: int, max_wait: float) -> None:
    chosen = choose_stage(states, max_batch, max_wait)
    if chosen is None:
        assert all(state.length == 0 for state in states)
    else:
        assert states[chosen - 1].length > 0
