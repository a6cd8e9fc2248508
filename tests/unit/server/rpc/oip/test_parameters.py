"""Parameters: every number in every form, the control as our own service has it, and refusals by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference import grpc_service_pb2 as oip
from offramp.v1 import classification_pb2 as pb
from offramp_model.routing import ExitReason
from offramp_server.engine.types import Answer
from offramp_server.errors import InvalidRequestError
from offramp_server.rpc.control import ModelControls
from offramp_server.rpc.oip.parameters import PATH, RequestParameters, read_parameters, write_parameters
from tests.unit.server.rpc.manifests import FRONTIER, tiny_manifest


def parameter(value: object) -> oip.InferParameter:
    """In the form that Triton's clients choose for a value of this type."""
    match value:
        case bool():
            return oip.InferParameter(bool_param=value)
        case int():
            return oip.InferParameter(int64_param=value)
        case float():
            return oip.InferParameter(double_param=value)
        case _:
            return oip.InferParameter(string_param=str(value))


def answer(lambda_: float, degraded: bool = False) -> Answer:
    return Answer(np.ones(1, np.float32), 1, ExitReason.POLICY, (), 0.0, 0.0, lambda_, degraded)


def read(**parameters: object) -> RequestParameters:
    request = oip.ModelInferRequest()
    for name, value in parameters.items():
        form = value if isinstance(value, oip.InferParameter) else parameter(value)
        request.parameters[name].CopyFrom(form)
    return read_parameters(request)


@given(st.floats(0, 1e6))
def test_lambda_is_the_same_as_double_and_as_text(value: float) -> None:
    for form in (value, repr(value)):
        assert getattr(read(**{"lambda": form}).control, "lambda") == value


@given(st.integers(0, 2**31))
def test_a_whole_number_may_come_in_every_form(value: int) -> None:
    for form in (value, float(value), str(value), oip.InferParameter(uint64_param=value)):
        assert read(min_exit=form).control.min_exit == value
        assert getattr(read(**{"lambda": form}).control, "lambda") == value


def test_every_field_of_a_control_can_be_given() -> None:
    control = read(
        policy="Confidence", exit_thresholds="0.9, 0.8,0.7", min_exit=2, max_exit="3", max_cost=0.9, threshold="0.4"
    ).control
    assert control == pb.RoutingControl(
        policy=pb.POLICY_CONFIDENCE, exit_thresholds=[0.9, 0.8, 0.7], min_exit=2, max_exit=3, max_cost=0.9, threshold=0.4
    )
    outcome = read(max_accuracy_drop="0.01", confidence=0.99).control
    assert (outcome.max_accuracy_drop, outcome.confidence) == (0.01, 0.99)
    assert read(max_mean_cost=1).control.max_mean_cost == 1
    assert read(policy=4).control.policy == pb.POLICY_FIXED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lambda", "much"),
        ("lambda", ""),
        ("lambda", True),
        ("lambda", oip.InferParameter()),
        ("min_exit", 1.5),
        ("min_exit", -1),
        ("min_exit", math.inf),
        ("max_exit", math.nan),
        ("max_exit", 2**32),
        ("max_exit", "9" * 30),
        ("max_exit", "²"),
        ("policy", "best"),
        ("policy", 0),
        ("policy", True),
        ("exit_thresholds", "0.1;0.2"),
        ("timeout", "soon"),
        ("timeout", -5),
        ("lamda", 0.5),
    ],
)
def test_what_is_not_meant_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(**{name: value})
    assert caught.value.field == f"{PATH}.{name}"


@pytest.mark.parametrize("yes", [True, "true", "True", "1", 1])
def test_what_a_caller_allows_may_come_as_a_flag_or_as_text(yes: bool | str | int) -> None:
    control = read(allow_degrade=yes, allow_early_answer="false", max_latency_ms=40).control
    assert (control.allow_degrade, control.allow_early_answer, control.max_latency_ms) == (True, False, 40)
    assert control.HasField("allow_early_answer")
    with pytest.raises(InvalidRequestError, match="neither true nor false"):
        read(allow_degrade="maybe")


def test_what_triton_ignores_is_ignored_here() -> None:
    form = oip.InferParameter(uint64_param=3)
    parameters = read(priority=form, sequence_id=7, sequence_start=True, triton_enable_empty_final_response=True)
    assert parameters == RequestParameters()


def test_the_sooner_of_the_two_deadlines_holds() -> None:
    half_a_second = read(timeout=500_000)
    assert half_a_second.tighten(None, lambda: 10.0) == 10.5
    assert half_a_second.tighten(10.2, lambda: 10.0) == 10.2
    assert half_a_second.tighten(12.0, lambda: 10.0) == 10.5
    assert read().tighten(None, lambda: 10.0) is None
    assert read(timeout=0).tighten(11.0, lambda: 10.0) == 11.0


def test_the_control_used_stands_in_the_answer() -> None:
    controls = ModelControls(tiny_manifest(frontier=FRONTIER))
    asked = pb.RoutingControl(max_mean_cost=0.6)
    response = oip.ModelInferResponse()
    write_parameters(controls.apply(controls.default, asked, PATH), [answer(0.25)], response)
    assert "degraded" not in response.parameters
    assert response.parameters["lambda"].double_param == 0.25
    assert response.parameters["threshold"].double_param == 0.5
    assert response.parameters["policy"].string_param == "router"
    assert response.parameters["max_mean_cost"].double_param == 0.6


def test_the_largest_lambda_that_overload_gave_stands_in_the_answer() -> None:
    controls = ModelControls(tiny_manifest())
    response = oip.ModelInferResponse()
    write_parameters(controls.default, [answer(0.5), answer(1.5, degraded=True), answer(1.0, degraded=True)], response)
    assert response.parameters["lambda"].double_param == 1.5
    assert response.parameters["degraded"].bool_param


def test_thresholds_that_differ_are_told_as_they_can_be_sent() -> None:
    controls = ModelControls(tiny_manifest())
    control = controls.apply(controls.default, read(exit_thresholds="0.9,0.1,0.25").control, PATH)
    response = oip.ModelInferResponse()
    write_parameters(control, [answer(0.5)], response)
    assert "threshold" not in response.parameters
    again = read(exit_thresholds=response.parameters["exit_thresholds"].string_param)
    assert controls.apply(controls.default, again.control, PATH) == control
