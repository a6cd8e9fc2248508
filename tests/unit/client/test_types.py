"""How controls go on top of one another, and how results give up their errors."""

from __future__ import annotations

import pytest

from offramp_client import Control, FrameError, InvalidRequestError, OverloadedError, Policy, Result
from offramp_client.types import ControlFields


def test_none_leaves_a_field_as_it_is() -> None:
    control = Control(Policy.ROUTER, lambda_=1.0, max_exit=3)
    assert control.with_fields(lambda_=None, threshold=0.5, exit_thresholds=()) == Control(Policy.ROUTER, 1.0, 0.5, (), None, 3)
    assert control.with_fields(lambda_=0.0).lambda_ == 0.0


def test_a_new_policy_drops_the_thresholds_of_the_former() -> None:
    control = Control(Policy.ROUTER, threshold=0.5, exit_thresholds=(0.1,))
    assert control.with_fields(policy="entropy") == Control(Policy.ENTROPY)
    assert control.with_fields(policy="entropy", threshold=0.2) == Control(Policy.ENTROPY, threshold=0.2)
    assert control.with_fields(policy=Policy.ROUTER) == control


def test_one_threshold_stands_in_place_of_several() -> None:
    assert Control(exit_thresholds=(0.1, 0.2)).with_fields(threshold=0.5) == Control(threshold=0.5)
    both = Control().with_fields(threshold=0.5, exit_thresholds=(0.1, 0.2))
    assert both == Control(threshold=0.5, exit_thresholds=(0.1, 0.2))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"lambda_": 0.0}, Control(max_exit=3, lambda_=0.0)),
        ({"max_mean_cost": 0.4}, Control(max_exit=3, max_mean_cost=0.4)),
        ({"max_accuracy_drop": 0.02}, Control(max_exit=3, max_accuracy_drop=0.02)),
        ({"confidence": 0.9}, Control(max_exit=3, max_accuracy_drop=0.01, confidence=0.9)),
        ({"max_exit": 2}, Control(max_exit=2, max_accuracy_drop=0.01, confidence=0.99)),
    ],
)
def test_lambda_and_the_outcomes_take_each_others_place(fields: ControlFields, expected: Control) -> None:
    before = Control(max_exit=3, max_accuracy_drop=0.01, confidence=0.99)
    assert before.with_fields(**fields) == expected
    assert before.under(Control().with_fields(**fields)) == expected


def test_two_outcomes_at_once_are_left_for_the_server_to_refuse() -> None:
    both = Control(lambda_=1.0).with_fields(max_mean_cost=0.4, max_accuracy_drop=0.01)
    assert both == Control(max_mean_cost=0.4, max_accuracy_drop=0.01)


def test_a_narrower_control_wins_field_by_field() -> None:
    assert Control(lambda_=1.0, max_exit=3).under(Control(lambda_=2.0)) == Control(lambda_=2.0, max_exit=3)
    assert Control(lambda_=1.0).under(None) == Control(lambda_=1.0)


def test_an_unknown_policy_names_those_there_are() -> None:
    with pytest.raises(InvalidRequestError, match="'psychic' is none of router, entropy, confidence, fixed"):
        Control().with_fields(policy="psychic")


def test_a_frame_error_becomes_the_exception_that_fits() -> None:
    with pytest.raises(OverloadedError) as caught:
        Result(1, 0, 2.0, error=FrameError("RESOURCE_EXHAUSTED", "full", "", 30)).unwrap()
    assert (caught.value.retry_after_ms, caught.value.code) == (30, "RESOURCE_EXHAUSTED")
