"""Parameters of a request and of its answer: the control, and the few of Triton's own that mean something here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from inference import grpc_service_pb2 as oip
from offramp.v1 import classification_pb2 as pb
from offramp_model.routing import Policy
from offramp_server.engine.types import Answer
from offramp_server.errors import InvalidRequestError
from offramp_server.rpc.control import ResolvedControl

PATH = "parameters"
NUMBERS = ("lambda", "threshold", "max_cost", "max_mean_cost", "max_accuracy_drop", "confidence")
INTEGERS = ("min_exit", "max_exit", "max_latency_ms")
FLAGS = ("allow_early_answer", "allow_degrade")
CONTROLS = (*NUMBERS, *INTEGERS, *FLAGS, "policy", "exit_thresholds")
IGNORED = ("priority", "sequence_id", "sequence_start", "sequence_end")
"""What Triton ignores too, for a model without priority levels and without sequences."""
FINAL = "triton_final_response"


@dataclass(slots=True)
class RequestParameters:
    """What a request's parameters say."""

    control: pb.RoutingControl = field(default_factory=pb.RoutingControl)
    timeout_us: int = 0
    """0 is none."""

    def tighten(self, deadline: float | None, clock: Callable[[], float]) -> float | None:
        """The call's deadline, or the request's own where that is sooner; on `clock`, in seconds."""
        if not self.timeout_us:
            return deadline
        own = clock() + self.timeout_us / 1e6
        return own if deadline is None else min(deadline, own)


def read_parameters(request: oip.ModelInferRequest) -> RequestParameters:
    """Numbers may come as double, integer or text. Raises InvalidRequestError naming the parameter."""
    read = RequestParameters()
    for name, value in request.parameters.items():
        if name in NUMBERS:
            setattr(read.control, name, read_number(name, value))
        elif name in INTEGERS:
            setattr(read.control, name, read_integer(name, value, 2**32))
        elif name in FLAGS:
            setattr(read.control, name, _read_flag(name, value))
        elif name == "policy":
            read.control.policy = _read_policy(value)
        elif name == "exit_thresholds":
            read.control.exit_thresholds.extend(_read_list(name, value))
        elif name == "timeout":
            read.timeout_us = read_integer(name, value, 2**63)
        elif name not in IGNORED and not name.startswith("triton_"):
            known = ", ".join((*CONTROLS, "timeout"))
            raise InvalidRequestError(f"{PATH}.{name}", f"is no parameter of this server: give one of {known}")
    return read


def write_parameters(control: ResolvedControl, answers: Sequence[Answer], response: oip.ModelInferResponse) -> None:
    """Put the control that was used beside the answers; where overload raised λ, the largest that one of them was given."""
    parameters = response.parameters
    parameters["policy"].string_param = control.policy.name.lower()
    parameters["lambda"].double_param = max(answer.lambda_ for answer in answers)
    if any(answer.degraded for answer in answers):
        parameters["degraded"].bool_param = True
    if len(set(control.thresholds)) == 1:
        parameters["threshold"].double_param = control.thresholds[0]
    else:
        parameters["exit_thresholds"].string_param = ",".join(map(repr, control.thresholds))
    if control.outcome is not None:
        parameters[control.outcome.field].double_param = control.outcome.value


def read_number(name: str, parameter: oip.InferParameter) -> float:
    """A number sent as double, integer or text. Raises InvalidRequestError."""
    value = _value(parameter)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    raise InvalidRequestError(f"{PATH}.{name}", f"{_shown(value)} is no number: send a double, an integer or a number as text")


def read_integer(name: str, parameter: oip.InferParameter, bound: int) -> int:
    """A whole number of 0 or more, below `bound`, sent as integer, double or text. Raises InvalidRequestError."""
    value = _value(parameter)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    number = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if not 0 <= number < bound:
        raise InvalidRequestError(f"{PATH}.{name}", f"{_shown(value)} is no whole number of 0 or more that could be meant")
    return number


def _read_policy(parameter: oip.InferParameter) -> pb.Policy:
    value = _value(parameter)
    if isinstance(value, str) and (name := value.strip().upper()) in Policy.__members__:
        return int(Policy[name])  # type: ignore[return-value]  # the numbers are the wire's
    if isinstance(value, int) and not isinstance(value, bool) and value in {int(policy) for policy in Policy}:
        return value  # type: ignore[return-value]
    known = ", ".join(policy.name.lower() for policy in Policy)
    raise InvalidRequestError(f"{PATH}.policy", f"{_shown(value)} is no policy: give one of {known}")


def _read_flag(name: str, parameter: oip.InferParameter) -> bool:
    value = _value(parameter)
    flag = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
    if flag is None:
        raise InvalidRequestError(f"{PATH}.{name}", f"{_shown(value)} is neither true nor false")
    return flag


def _read_list(name: str, parameter: oip.InferParameter) -> list[float]:
    value = _value(parameter)
    try:
        return [float(part) for part in str(value).split(",")]
    except ValueError:
        raise InvalidRequestError(
            f"{PATH}.{name}", f"{_shown(value)} is no list: send numbers as text, such as 0.9,0.5"
        ) from None


def _value(parameter: oip.InferParameter) -> bool | int | float | str | None:
    choice = parameter.WhichOneof("parameter_choice")
    if choice is None:
        return None
    value: bool | int | float | str = getattr(parameter, choice)
    return value


def _shown(value: object) -> str:
    return repr(value)[:80]
