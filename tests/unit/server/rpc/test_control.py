"""Controls: what is refused and under which field, what a layer inherits, what comes back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.v1 import classification_pb2 as pb
from offramp_model.bundle import Control
from offramp_model.routing import ExitReason, Policy
from offramp_server.errors import InvalidRequestError
from offramp_server.rpc.control import ModelControls, ResolvedControl, price_table_of
from tests.unit.server.rpc.manifests import EXITS, FRONTIER, tiny_manifest

MANIFEST = tiny_manifest()
CONTROLS = ModelControls(MANIFEST)
COSTS = MANIFEST.costs.ratios


def control(**fields: object) -> pb.RoutingControl:
    if "lambda_" in fields:
        fields["lambda"] = fields.pop("lambda_")
    return pb.RoutingControl(**fields)


def apply(*layers: pb.RoutingControl, controls: ModelControls = CONTROLS) -> ResolvedControl:
    resolved = controls.default
    for layer in layers:
        resolved = controls.apply(resolved, layer, "frame.control")
    return resolved


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"lambda_": -0.1}, "lambda"),
        ({"lambda_": math.nan}, "lambda"),
        ({"lambda_": math.inf}, "lambda"),
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 1.0001}, "threshold"),
        ({"threshold": math.nan}, "threshold"),
        ({"exit_thresholds": [0.5]}, "exit_thresholds"),
        ({"exit_thresholds": [0.5] * EXITS}, "exit_thresholds"),
        ({"exit_thresholds": [0.5, 0.0, 0.5]}, "exit_thresholds[1]"),
        ({"min_exit": 0}, "min_exit"),
        ({"min_exit": 5}, "min_exit"),
        ({"max_exit": 0}, "max_exit"),
        ({"max_exit": 5}, "max_exit"),
        ({"min_exit": 3, "max_exit": 2}, "max_exit"),
        ({"max_cost": 0.0}, "max_cost"),
        ({"max_cost": math.nan}, "max_cost"),
        ({"max_cost": COSTS[0] * 0.99}, "max_cost"),
        ({"min_exit": 3, "max_cost": COSTS[1]}, "max_cost"),
        ({"policy": 99}, "policy"),
        ({"max_latency_ms": 0}, "max_latency_ms"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        apply(control(**fields))
    assert caught.value.field == f"frame.control.{field}"


def test_a_conflict_with_the_layer_below_names_the_field_that_the_upper_layer_gave() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        apply(control(max_exit=2), control(min_exit=3))
    assert caught.value.field == "frame.control.min_exit"
    with pytest.raises(InvalidRequestError) as caught:
        apply(control(max_cost=COSTS[1]), control(min_exit=3))
    assert caught.value.field == "frame.control.min_exit"


def test_routers_are_refused_where_there_are_none() -> None:
    bare = ModelControls(tiny_manifest(lambdas=()))
    with pytest.raises(InvalidRequestError, match="no routers"):
        apply(control(policy=pb.POLICY_ROUTER), controls=bare)


def test_nothing_given_is_the_models_default() -> None:
    assert apply(control()) == CONTROLS.default
    assert CONTROLS.default.frame_control.max_exit == EXITS


def test_the_upper_layer_wins_field_by_field() -> None:
    resolved = apply(control(lambda_=1.0, threshold=0.7, max_exit=3), control(lambda_=2.0))
    assert (resolved.lambda_, resolved.thresholds, resolved.max_exit) == (2.0, (0.7, 0.7, 0.7), 3)


@pytest.mark.parametrize(
    ("layers", "thresholds"),
    [
        ([{"threshold": 0.7}, {"policy": pb.POLICY_ENTROPY}], (0.3,) * 3),
        ([{"threshold": 0.7}, {"policy": pb.POLICY_CONFIDENCE}], (0.9,) * 3),
        ([{"threshold": 0.7}, {"policy": pb.POLICY_ROUTER}], (0.7,) * 3),
        ([{"policy": pb.POLICY_ENTROPY, "threshold": 0.2}, {"lambda_": 1.0}], (0.2,) * 3),
        ([{"policy": pb.POLICY_ENTROPY, "threshold": 0.2}, {"policy": pb.POLICY_ROUTER}], (0.5,) * 3),
        ([{"threshold": 0.7, "exit_thresholds": [0.1, 0.2, 0.3]}], (0.1, 0.2, 0.3)),
        ([{"exit_thresholds": [0.1, 0.2, 0.3]}, {"threshold": 0.7}], (0.7,) * 3),
    ],
)
def test_thresholds_belong_to_a_policy(layers: list[dict[str, object]], thresholds: tuple[float, ...]) -> None:
    assert apply(*(control(**layer) for layer in layers)).thresholds == thresholds


@pytest.mark.parametrize(
    ("fields", "max_exit", "reason"),
    [
        ({}, EXITS, ExitReason.MAX_EXIT),
        ({"max_exit": 2}, 2, ExitReason.MAX_EXIT),
        ({"max_cost": COSTS[1]}, 2, ExitReason.MAX_COST),
        ({"max_cost": (COSTS[1] + COSTS[2]) / 2}, 2, ExitReason.MAX_COST),
        ({"max_cost": COSTS[1], "max_exit": 2}, 2, ExitReason.MAX_EXIT),
        ({"max_cost": COSTS[2], "max_exit": 2}, 2, ExitReason.MAX_EXIT),
        ({"max_cost": COSTS[0], "max_exit": 2}, 1, ExitReason.MAX_COST),
        ({"max_cost": 7.0}, EXITS, ExitReason.MAX_EXIT),
    ],
)
def test_the_tighter_bound_is_the_reason(fields: dict[str, object], max_exit: int, reason: ExitReason) -> None:
    frame_control = apply(control(**fields)).frame_control
    assert (frame_control.max_exit, frame_control.max_exit_reason) == (max_exit, reason)


def test_a_bundles_default_bound_holds() -> None:
    bounded = ModelControls(tiny_manifest(control=Control(policy="fixed", max_exit=2)))
    assert (bounded.default.policy, bounded.default.frame_control.max_exit) == (Policy.FIXED, 2)


thresholds = st.floats(0, 1, exclude_min=True)
layers = st.fixed_dictionaries(
    {},
    optional={
        "policy": st.sampled_from([int(policy) for policy in Policy]),
        "lambda_": st.floats(0, 1e300),
        "threshold": thresholds,
        "exit_thresholds": st.lists(thresholds, min_size=EXITS - 1, max_size=EXITS - 1),
        "min_exit": st.integers(0, EXITS + 1),
        "max_exit": st.integers(0, EXITS + 1),
        "max_cost": st.floats(-0.1, 2),
        "max_latency_ms": st.integers(0, 2**32 - 1),
        "allow_early_answer": st.booleans(),
        "allow_degrade": st.booleans(),
    },
)


@given(st.lists(layers, max_size=3))
def test_what_is_resolved_is_consistent_and_what_is_echoed_means_the_same(given_layers: list[dict[str, object]]) -> None:
    try:
        resolved = apply(*(control(**layer) for layer in given_layers))
    except InvalidRequestError:
        return
    frame_control = resolved.frame_control
    assert 1 <= frame_control.min_exit <= frame_control.max_exit <= EXITS
    assert COSTS[frame_control.max_exit - 1] <= resolved.max_cost
    echoed = resolved.message
    assert apply(echoed) == resolved
    for field in ("lambda", "min_exit", "max_exit", "max_cost"):
        assert echoed.HasField(field)


def test_a_frame_keeps_what_its_stream_allows_until_it_says_otherwise() -> None:
    stream = control(max_latency_ms=40, allow_early_answer=True, allow_degrade=True)
    kept = apply(stream, control(lambda_=1.0)).frame_control
    assert (kept.max_latency_s, kept.allow_early_answer, kept.allow_degrade) == (0.04, True, True)
    changed = apply(stream, control(max_latency_ms=90, allow_degrade=False)).frame_control
    assert (changed.max_latency_s, changed.allow_early_answer, changed.allow_degrade) == (0.09, True, False)
    assert CONTROLS.default.frame_control.max_latency_s is None
    assert not CONTROLS.default.message.HasField("max_latency_ms")


def test_the_price_of_overload_comes_from_the_frontier_or_else_the_operating_points_or_the_routers() -> None:
    assert price_table_of(tiny_manifest(frontier=FRONTIER)).lambdas == (0.0, 0.25, 1.0, 4.0)
    assert price_table_of(MANIFEST).lambdas == (0.0, 2.0)
    elsewhere = MANIFEST.model_copy(update={"operating_points": ()})
    assert price_table_of(elsewhere).lambdas == (0.0, 2.0)
    assert price_table_of(tiny_manifest(lambdas=()).model_copy(update={"operating_points": ()})).lambdas == ()
