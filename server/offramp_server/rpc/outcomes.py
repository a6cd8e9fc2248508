"""Outcomes on the wire: what a caller asks for in place of λ, and the λ that one model's frontier has for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

from offramp.v1 import classification_pb2 as pb
from offramp_model.outcomes import DEFAULT_CONFIDENCE, Frontier, UnreachableError, lambda_for_cost, lambda_for_drop
from offramp_server.errors import InvalidRequestError

CERTIFICATES = 256
"""Certificates that a model remembers: callers who choose a control for every frame repeat themselves."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was asked for in place of λ."""

    field: Literal["max_mean_cost", "max_accuracy_drop"]
    value: float
    confidence: float = 0.0
    """Of `max_accuracy_drop` alone."""


def read_outcome(control: pb.RoutingControl, path: str) -> Outcome | None:
    """The outcome that a control asks for, None where it asks for none. Raises InvalidRequestError with the field's path."""
    given = [name for name in ("lambda", "max_mean_cost", "max_accuracy_drop") if control.HasField(name)]
    if len(given) > 1:
        raise InvalidRequestError(f"{path}.{given[-1]}", f"is given beside {given[0]}: give only one of {', '.join(given)}")
    if control.HasField("confidence") and not control.HasField("max_accuracy_drop"):
        raise InvalidRequestError(f"{path}.confidence", "belongs to max_accuracy_drop: give that in the same control")
    if control.HasField("max_mean_cost"):
        cost = control.max_mean_cost
        if not (math.isfinite(cost) and cost > 0):
            remedy = "give a fraction of the full network's MACs, such as 0.5"
            raise InvalidRequestError(f"{path}.max_mean_cost", f"{cost:g} is no mean cost: {remedy}")
        return Outcome("max_mean_cost", cost)
    if control.HasField("max_accuracy_drop"):
        drop = control.max_accuracy_drop
        confidence = control.confidence if control.HasField("confidence") else DEFAULT_CONFIDENCE
        if not 0 < drop < 1:  # NaN fails too
            raise InvalidRequestError(
                f"{path}.max_accuracy_drop", f"{drop:g} is no drop: give a number between 0 and 1, such as 0.01 for one point"
            )
        if not 0 < confidence < 1:
            raise InvalidRequestError(
                f"{path}.confidence", f"{confidence:g} is no confidence: give a number between 0 and 1, such as 0.95"
            )
        return Outcome("max_accuracy_drop", drop, confidence)
    return None


def write_outcome(outcome: Outcome, message: pb.RoutingControl) -> None:
    """Put what was asked for beside the λ in use."""
    if outcome.field == "max_mean_cost":
        message.max_mean_cost = outcome.value
    else:
        message.max_accuracy_drop, message.confidence = outcome.value, outcome.confidence


class OutcomeTable:
    """Finds the λ of an outcome on one model's frontier."""

    def __init__(self, frontier: Frontier | None) -> None:
        self._frontier = frontier
        if frontier is not None:
            self._certify = lru_cache(CERTIFICATES)(partial(_certify, frontier))

    def find_lambda(self, outcome: Outcome, path: str) -> float:
        """Raises InvalidRequestError, with the nearest feasible value, where no λ gives the outcome."""
        field = f"{path}.{outcome.field}"
        if self._frontier is None:
            raise InvalidRequestError(
                field, "this version of the model has no measured frontier: give lambda, or choose a version that has one"
            )
        if outcome.field == "max_mean_cost":
            try:
                return lambda_for_cost(self._frontier, outcome.value)
            except UnreachableError as error:
                reason = f"{outcome.value:g} is out of reach: the router's least mean cost is {_rounded_up(error.nearest):.4f}"
                raise InvalidRequestError(field, f"{reason}, allow at least that") from None
        found = self._certify(outcome.value, outcome.confidence)
        if isinstance(found, UnreachableError):
            nearest = f"the least drop certified at confidence {outcome.confidence:g} is {_rounded_up(found.nearest):.4f}"
            raise InvalidRequestError(
                field, f"{outcome.value:g} is out of reach: {nearest}, allow at least that or lower the confidence"
            )
        return found


def _certify(frontier: Frontier, max_accuracy_drop: float, confidence: float) -> float | UnreachableError:
    try:
        return lambda_for_drop(frontier, max_accuracy_drop, confidence)
    except UnreachableError as error:  # returned, so that a refusal is remembered too
        return error


def _rounded_up(value: float) -> float:
    rounded = round(value, 4)
    return rounded if rounded >= value else rounded + 0.0001
