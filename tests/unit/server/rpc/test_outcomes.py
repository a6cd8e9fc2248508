"""Outcomes in controls: the λ found, what replaces what, and every refusal with its field and a remedy that works."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.v1 import classification_pb2 as pb
from offramp_model.bundle import Control
from offramp_model.outcomes import lambda_for_drop
from offramp_model.routing import Policy
from offramp_server.errors import InvalidRequestError
from offramp_server.rpc import outcomes
from offramp_server.rpc.control import ModelControls, ResolvedControl
from offramp_server.rpc.convert import write_model
from offramp_server.rpc.models import ServedModel
from tests.unit.server.rpc.manifests import EXITS, FRONTIER, tiny_manifest
from tests.unit.server.rpc.test_control import control

MANIFEST = tiny_manifest(frontier=FRONTIER)
CONTROLS = ModelControls(MANIFEST)
COSTS = MANIFEST.costs.ratios
ROUTER, ENTROPY, FIXED = pb.POLICY_ROUTER, pb.POLICY_ENTROPY, pb.POLICY_FIXED

Fields = dict[str, Any]


def apply(*layers: Fields, controls: ModelControls = CONTROLS) -> ResolvedControl:
    """The last layer is a frame's, those before it are a stream's."""
    resolved = controls.default
    for index, layer in enumerate(layers, 1):
        resolved = controls.apply(resolved, control(**layer), "frame.control" if index == len(layers) else "config.control")
    return resolved


def refusal(*layers: Fields, controls: ModelControls = CONTROLS) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        apply(*layers, controls=controls)
    return caught.value


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "lambda_"),
    [
        ({"max_mean_cost": 5.0}, 0.0),
        ({"max_mean_cost": 0.6}, 0.25),
        ({"max_mean_cost": 0.59}, 1.0),
        ({"max_mean_cost": 0.3}, 4.0),
        ({"max_accuracy_drop": 0.012}, 0.0),
        ({"max_accuracy_drop": 0.03}, 0.25),
        ({"max_accuracy_drop": 0.03, "confidence": 0.999}, 0.0),
        ({"max_accuracy_drop": 0.24}, 4.0),
        ({"max_accuracy_drop": 0.22}, 1.0),
        ({"max_accuracy_drop": 0.22, "confidence": 0.5}, 4.0),
    ],
)
def test_an_outcome_becomes_the_lambda_that_the_engine_runs_at(fields: Fields, lambda_: float) -> None:
    resolved = apply(fields)
    assert (resolved.lambda_, resolved.frame_control.lambda_, resolved.policy) == (lambda_, lambda_, Policy.ROUTER)


def test_the_answer_shows_the_lambda_and_what_it_was_for() -> None:
    echoed = apply({"max_mean_cost": 0.6}).message
    assert (getattr(echoed, "lambda"), echoed.max_mean_cost) == (0.25, 0.6)
    assert not echoed.HasField("max_accuracy_drop")
    assert not echoed.HasField("confidence")
    echoed = apply({"max_accuracy_drop": 0.03}).message
    assert (getattr(echoed, "lambda"), echoed.max_accuracy_drop, echoed.confidence) == (0.25, 0.03, 0.95)
    assert not echoed.HasField("max_mean_cost")
    assert not apply({"lambda_": 1.0}).message.HasField("max_mean_cost")


def test_a_certificate_is_worked_out_once_even_where_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []

    def counting(frontier: Any, drop: float, confidence: float) -> float:
        asked.append((drop, confidence))
        return lambda_for_drop(frontier, drop, confidence)

    monkeypatch.setattr(outcomes, "lambda_for_drop", counting)
    fresh = ModelControls(MANIFEST)
    for _ in range(3):
        apply({"max_accuracy_drop": 0.03}, controls=fresh)
        apply({"max_accuracy_drop": 0.03, "confidence": 0.5}, controls=fresh)
        refusal({"max_accuracy_drop": 0.001}, controls=fresh)
    assert asked == [(0.03, 0.95), (0.03, 0.5), (0.001, 0.95)]


# --- what replaces what -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "lambda_", "outcome"),
    [
        ([{"lambda_": 3.0}, {"max_mean_cost": 0.6}], 0.25, ("max_mean_cost", 0.6)),
        ([{"max_mean_cost": 0.6}, {"lambda_": 3.0}], 3.0, None),
        ([{"max_mean_cost": 0.6}, {"max_accuracy_drop": 0.012}], 0.0, ("max_accuracy_drop", 0.012)),
        ([{"max_accuracy_drop": 0.012}, {"max_mean_cost": 0.4}], 1.0, ("max_mean_cost", 0.4)),
        ([{"max_mean_cost": 0.6}, {"max_mean_cost": 0.4}], 1.0, ("max_mean_cost", 0.4)),
        ([{"max_mean_cost": 0.6}, {"max_exit": 3}], 0.25, ("max_mean_cost", 0.6)),
        ([{"max_mean_cost": 0.6}, {}], 0.25, ("max_mean_cost", 0.6)),
        ([{"max_accuracy_drop": 0.03, "confidence": 0.999}, {"max_accuracy_drop": 0.03}], 0.25, ("max_accuracy_drop", 0.03)),
        ([{"policy": ENTROPY}, {"policy": ROUTER, "max_mean_cost": 0.6}], 0.25, ("max_mean_cost", 0.6)),
        ([{"max_mean_cost": 0.6}, {"policy": FIXED, "lambda_": 0.0}], 0.0, None),
        ([{"threshold": 0.9}, {"max_mean_cost": 0.6, "threshold": 0.5}], 0.25, ("max_mean_cost", 0.6)),
        ([{"max_accuracy_drop": 0.03}, {"lambda_": 3.0, "min_exit": 2}], 3.0, None),
    ],
)
def test_the_upper_layer_replaces_the_whole_choice_of_lambda(
    layers: list[Fields], lambda_: float, outcome: tuple[str, float] | None
) -> None:
    resolved = apply(*layers)
    asked = resolved.outcome and (resolved.outcome.field, resolved.outcome.value)
    assert (resolved.lambda_, asked) == (lambda_, outcome)


def test_bounds_that_only_save_compute_go_with_a_mean_cost() -> None:
    resolved = apply({"max_mean_cost": 0.6, "max_exit": 3, "max_cost": COSTS[1]})
    assert (resolved.lambda_, resolved.frame_control.max_exit) == (0.25, 2)


def test_bounds_that_bind_nothing_go_with_an_accuracy_drop() -> None:
    fields = {"max_accuracy_drop": 0.03, "policy": ROUTER, "min_exit": 1, "max_exit": EXITS, "max_cost": 7.0}
    assert apply(fields | {"exit_thresholds": [0.5] * (EXITS - 1)}).lambda_ == 0.25


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_mean_cost": 0.0}, "max_mean_cost"),
        ({"max_mean_cost": -1.0}, "max_mean_cost"),
        ({"max_mean_cost": math.nan}, "max_mean_cost"),
        ({"max_mean_cost": math.inf}, "max_mean_cost"),
        ({"max_accuracy_drop": 0.0}, "max_accuracy_drop"),
        ({"max_accuracy_drop": 1.0}, "max_accuracy_drop"),
        ({"max_accuracy_drop": math.nan}, "max_accuracy_drop"),
        ({"max_accuracy_drop": 0.03, "confidence": 0.0}, "confidence"),
        ({"max_accuracy_drop": 0.03, "confidence": 1.0}, "confidence"),
        ({"max_accuracy_drop": 0.03, "confidence": math.nan}, "confidence"),
        ({"confidence": 0.9}, "confidence"),
        ({"max_mean_cost": 0.6, "confidence": 0.9}, "confidence"),
        ({"lambda_": 0.5, "max_mean_cost": 0.6}, "max_mean_cost"),
        ({"lambda_": 0.5, "max_accuracy_drop": 0.03}, "max_accuracy_drop"),
        ({"max_mean_cost": 0.6, "max_accuracy_drop": 0.03}, "max_accuracy_drop"),
        ({"policy": ENTROPY, "max_mean_cost": 0.6}, "policy"),
        ({"policy": FIXED, "max_accuracy_drop": 0.03}, "policy"),
        ({"threshold": 0.6, "max_mean_cost": 0.6}, "threshold"),
        ({"threshold": 0.6, "max_accuracy_drop": 0.03}, "threshold"),
        ({"exit_thresholds": [0.5, 0.5, 0.6], "max_mean_cost": 0.6}, "exit_thresholds"),
        ({"min_exit": 2, "max_mean_cost": 0.6}, "min_exit"),
        ({"min_exit": 2, "max_accuracy_drop": 0.03}, "min_exit"),
        ({"max_exit": 3, "max_accuracy_drop": 0.03}, "max_exit"),
        ({"max_cost": 0.9, "max_accuracy_drop": 0.03}, "max_cost"),
        ({"max_cost": 0.9, "max_exit": EXITS, "max_accuracy_drop": 0.03}, "max_cost"),
        ({"allow_early_answer": True, "max_accuracy_drop": 0.03}, "allow_early_answer"),
        ({"allow_degrade": True, "max_accuracy_drop": 0.03}, "allow_degrade"),
    ],
)
def test_a_contradiction_is_refused_by_field(fields: Fields, field: str) -> None:
    assert refusal(fields).field == f"frame.control.{field}"


def test_two_at_once_are_told_to_be_one() -> None:
    assert refusal({"lambda_": 0.5, "max_mean_cost": 0.6}).reason == (
        "is given beside lambda: give only one of lambda, max_mean_cost"
    )
    both = refusal({"lambda_": 0.5, "max_mean_cost": 0.6, "max_accuracy_drop": 0.03})
    assert "give only one of lambda, max_mean_cost, max_accuracy_drop" in both.reason


@pytest.mark.parametrize(
    ("layers", "field", "remedy"),
    [
        ([{"policy": ENTROPY}, {"max_mean_cost": 0.6}], "max_mean_cost", "policy `router`"),
        ([{"max_mean_cost": 0.6}, {"policy": ENTROPY}], "policy", "give lambda"),
        ([{"threshold": 0.6}, {"max_mean_cost": 0.6}], "max_mean_cost", "measured at, 0.5"),
        ([{"max_mean_cost": 0.6}, {"threshold": 0.6}], "threshold", "measured at, 0.5"),
        ([{"min_exit": 2}, {"max_mean_cost": 0.6}], "max_mean_cost", "min_exit 1"),
        ([{"max_mean_cost": 0.6}, {"min_exit": 2}], "min_exit", "give lambda"),
        ([{"max_exit": 2}, {"max_accuracy_drop": 0.03}], "max_accuracy_drop", "every exit"),
        ([{"max_cost": 0.9}, {"max_accuracy_drop": 0.03}], "max_accuracy_drop", "every exit"),
        ([{"max_accuracy_drop": 0.03}, {"max_cost": 0.9}], "max_cost", "give lambda"),
        ([{"max_mean_cost": 0.6, "max_exit": 2}, {"max_accuracy_drop": 0.03}], "max_accuracy_drop", "every exit"),
        ([{"max_accuracy_drop": 0.03}, {"confidence": 0.9}], "confidence", "in the same control"),
        ([{"allow_degrade": True}, {"max_accuracy_drop": 0.03}], "max_accuracy_drop", "no degraded"),
        ([{"max_accuracy_drop": 0.03}, {"allow_early_answer": True}], "allow_early_answer", "give lambda"),
    ],
)
def test_a_layer_can_not_void_what_another_was_promised(layers: list[Fields], field: str, remedy: str) -> None:
    error = refusal(*layers)
    assert error.field == f"frame.control.{field}"
    assert remedy in error.reason


def nearest(error: InvalidRequestError) -> float:
    found = re.search(r"is (\d+\.\d{4}), allow at least that", error.reason)
    assert found, error.reason
    return float(found[1])


def test_out_of_reach_names_the_nearest_value_which_then_works() -> None:
    error = refusal({"max_mean_cost": 0.1})
    assert error.field == "frame.control.max_mean_cost"
    assert nearest(error) == 0.3
    assert apply({"max_mean_cost": 0.3}).lambda_ == 4.0
    error = refusal({"max_accuracy_drop": 0.005})
    assert error.field == "frame.control.max_accuracy_drop"
    assert "at confidence 0.95" in error.reason
    assert apply({"max_accuracy_drop": nearest(error)}).lambda_ == 0.0
    refusal({"max_accuracy_drop": nearest(error) - 0.0001})


@given(st.floats(0.0001, 0.01), st.floats(0.01, 0.999))
def test_the_drop_that_a_refusal_names_is_granted(drop: float, confidence: float) -> None:
    fields = {"max_accuracy_drop": drop, "confidence": confidence}
    try:
        granted = apply(fields)
    except InvalidRequestError as error:
        granted = apply(fields | {"max_accuracy_drop": nearest(error)})
    assert granted.outcome is not None


@pytest.mark.parametrize("fields", [{"max_mean_cost": 0.6}, {"max_accuracy_drop": 0.03}])
def test_a_model_without_a_frontier_refuses_and_says_what_to_do(fields: Fields) -> None:
    error = refusal(fields, controls=ModelControls(tiny_manifest()))
    assert error.field == f"frame.control.{next(iter(fields))}"
    assert "no measured frontier: give lambda" in error.reason


def test_the_threshold_that_holds_is_the_frontiers_own() -> None:
    manifest = tiny_manifest(control=Control(policy="router", threshold=0.7), frontier=None)
    measured = manifest.model_copy(
        update={"frontier": FRONTIER, "default_thresholds": manifest.default_thresholds | {"router": 0.7}}
    )
    controls = ModelControls(measured)
    assert apply({"max_mean_cost": 0.6}, controls=controls).thresholds == (0.7,) * 3
    assert refusal({"max_mean_cost": 0.6, "threshold": 0.5}, controls=controls).field == "frame.control.threshold"


# --- all of it at once ------------------------------------------------------------------------------------------------

layers = st.fixed_dictionaries(
    {},
    optional={
        "policy": st.sampled_from([int(policy) for policy in Policy]),
        "lambda_": st.floats(0, 10),
        "threshold": st.sampled_from([0.3, 0.5]),
        "min_exit": st.integers(1, EXITS),
        "max_exit": st.integers(1, EXITS),
        "max_cost": st.floats(0.2, 2),
        "max_mean_cost": st.floats(0.1, 1.2),
        "max_accuracy_drop": st.floats(0.001, 0.5),
        "confidence": st.floats(0.5, 0.99),
        "allow_early_answer": st.booleans(),
        "allow_degrade": st.booleans(),
    },
)


@given(st.lists(layers, max_size=3))
def test_whatever_is_accepted_keeps_its_promise_and_says_so(given_layers: list[Fields]) -> None:
    try:
        resolved = apply(*given_layers)
    except InvalidRequestError:
        return
    echoed = resolved.message
    if resolved.outcome is None:
        assert not echoed.HasField("max_mean_cost")
        assert not echoed.HasField("max_accuracy_drop")
        return
    assert resolved.policy is Policy.ROUTER
    assert resolved.thresholds == CONTROLS.default.thresholds
    assert resolved.frame_control.min_exit == 1
    point = next(point for point in FRONTIER.points if point.lambda_ == resolved.lambda_)
    if resolved.outcome.field == "max_mean_cost":
        assert point.mean_cost <= resolved.outcome.value == echoed.max_mean_cost
    else:
        assert resolved.frame_control.max_exit == EXITS
        assert not resolved.frame_control.allow_early_answer
        assert not resolved.frame_control.allow_degrade
        assert point.losses / FRONTIER.frames < resolved.outcome.value == echoed.max_accuracy_drop
    echoed.ClearField("lambda")  # what a caller sends to get the same again
    assert CONTROLS.apply(CONTROLS.default, echoed, "frame.control") == resolved


# --- what GetModel says -----------------------------------------------------------------------------------------------


@dataclass
class Idle:
    """An engine and its metrics that nobody uses."""

    frames_answered: int = 0


@pytest.mark.parametrize("frontier", [None, FRONTIER])
def test_a_model_shows_its_frontier(frontier: Any) -> None:
    manifest = tiny_manifest(frontier=frontier)
    idle: Any = Idle()
    message = write_model(ServedModel(manifest, ModelControls(manifest), idle, idle, "torch", "cpu, float32"))
    assert message.HasField("frontier") == (frontier is not None)
    if frontier is not None:
        shown = [(getattr(point, "lambda"), point.mean_cost, point.losses) for point in message.frontier.points]
        assert shown == [(0.0, 0.9, 5), (0.25, 0.6, 20), (1.0, 0.4, 60), (4.0, 0.3, 210)]
        assert list(message.frontier.points[1].exit_fractions) == [0.2, 0.3, 0.2, 0.3]
        assert (message.frontier.frames, message.frontier.points[2].accuracy) == (1000, 0.85)
