"""Controls on the wire: validated, merged field by field, resolved against a model, written back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from offramp.v1 import classification_pb2 as pb
from offramp_model.bundle import Control, Manifest
from offramp_model.routing import ExitReason, Policy
from offramp_server.engine.overload import PriceTable, price_table
from offramp_server.engine.types import FrameControl
from offramp_server.errors import InvalidRequestError
from offramp_server.rpc.outcomes import Outcome, OutcomeTable, read_outcome, write_outcome

_Latitude = tuple[float | None, bool, bool]
"""The last fields of a FrameControl: max_latency_s, allow_early_answer, allow_degrade."""


@dataclass(frozen=True)
class ResolvedControl:
    """A control whose every field has a value: what a frame without overrides runs under."""

    policy: Policy
    lambda_: float
    thresholds: tuple[float, ...]
    min_exit: int
    max_exit: int
    max_cost: float
    frame_control: FrameControl
    """The same for the engine, with what the caller allows under pressure."""
    outcome: Outcome | None = None
    """What λ was looked up for, where the caller named an outcome in its place."""

    @cached_property
    def message(self) -> pb.RoutingControl:
        """The same on the wire, to be copied, not changed.

        `threshold` is left out where the exits' thresholds differ, `max_latency_ms` where there is none.
        """
        control = self.frame_control
        message = pb.RoutingControl(
            policy=int(self.policy),  # type: ignore[arg-type]  # the numbers are the wire's
            exit_thresholds=self.thresholds,
            min_exit=self.min_exit,
            max_exit=self.max_exit,
            max_cost=self.max_cost,
            allow_early_answer=control.allow_early_answer,
            allow_degrade=control.allow_degrade,
        )
        setattr(message, "lambda", self.lambda_)  # a keyword of Python
        if self.outcome is not None:
            write_outcome(self.outcome, message)
        if len(set(self.thresholds)) == 1:
            message.threshold = self.thresholds[0]
        if control.max_latency_s is not None:
            message.max_latency_ms = round(control.max_latency_s * 1000)
        return message


class ModelControls:
    """Resolves controls against one model."""

    def __init__(self, manifest: Manifest) -> None:
        self._costs = manifest.costs.ratios
        self._exits = manifest.network.exits
        self._has_routers = manifest.network.has_routers
        self._default_thresholds = {Policy[name.upper()]: value for name, value in manifest.default_thresholds.items()}
        self._fallback_threshold = manifest.default_control.threshold
        self._outcomes = OutcomeTable(manifest.frontier)
        self.default = self.of_bundle(manifest.default_control)

    def of_bundle(self, control: Control) -> ResolvedControl:
        """A control of the bundle, such as its default or that of an operating point."""
        return self._resolve(
            policy=Policy[control.policy.upper()],
            lambda_=control.lambda_,
            thresholds=(control.threshold,) * (self._exits - 1),
            min_exit=1,
            max_exit=min(control.max_exit or self._exits, self._exits),
            max_cost=self._costs[-1],
        )

    def default_threshold(self, policy: Policy) -> float:
        """What holds where a caller chooses this policy and no threshold."""
        return self._default_thresholds.get(policy, self._fallback_threshold)

    def apply(self, base: ResolvedControl, control: pb.RoutingControl, path: str) -> ResolvedControl:
        """`base` with the fields that `control` gives. Raises InvalidRequestError with the field's path under `path`."""
        policy = self._read_policy(control, path) or base.policy
        if control.exit_thresholds:
            thresholds = self._read_exit_thresholds(control, path)
        elif control.HasField("threshold"):
            thresholds = (_read_threshold(control.threshold, f"{path}.threshold"),) * (self._exits - 1)
        elif policy is not base.policy:
            thresholds = (self.default_threshold(policy),) * (self._exits - 1)
        else:
            thresholds = base.thresholds
        lambda_, outcome = base.lambda_, base.outcome
        if (asked := read_outcome(control, path)) is not None:
            lambda_, outcome = self._outcomes.find_lambda(asked, path), asked
        elif control.HasField("lambda"):
            lambda_, outcome = _read_lambda(control, path), None
        merged = self._resolve(
            policy=policy,
            lambda_=lambda_,
            thresholds=thresholds,
            min_exit=self._read_exit(control.min_exit, f"{path}.min_exit") if control.HasField("min_exit") else base.min_exit,
            max_exit=self._read_exit(control.max_exit, f"{path}.max_exit") if control.HasField("max_exit") else base.max_exit,
            max_cost=_read_cost(control, path) if control.HasField("max_cost") else base.max_cost,
            outcome=outcome,
            latitude=_read_latitude(base.frame_control, control, path),
        )
        self._check_bounds(merged, control, path)
        if outcome is not None:
            self._check_outcome(outcome, merged, control, path)
        return merged

    def _resolve(
        self,
        *,
        policy: Policy,
        lambda_: float,
        thresholds: tuple[float, ...],
        min_exit: int,
        max_exit: int,
        max_cost: float,
        outcome: Outcome | None = None,
        latitude: _Latitude = (None, False, False),
    ) -> ResolvedControl:
        affordable = sum(cost <= max_cost for cost in self._costs)
        reason = ExitReason.MAX_COST if affordable < max_exit else ExitReason.MAX_EXIT
        frame_control = FrameControl(policy, lambda_, thresholds, min_exit, min(max_exit, affordable), reason, *latitude)
        return ResolvedControl(policy, lambda_, thresholds, min_exit, max_exit, max_cost, frame_control, outcome)

    def _check_bounds(self, merged: ResolvedControl, control: pb.RoutingControl, path: str) -> None:
        # `base` was consistent, so one of the fields given in `control` makes the conflict: name that one
        if merged.min_exit > merged.max_exit:
            field = "max_exit" if control.HasField("max_exit") else "min_exit"
            raise InvalidRequestError(
                f"{path}.{field}", f"min_exit {merged.min_exit} lies beyond max_exit {merged.max_exit}: give min_exit <= max_exit"
            )
        least = self._costs[merged.min_exit - 1]
        if merged.max_cost < least:
            field = "max_cost" if control.HasField("max_cost") else "min_exit"
            raise InvalidRequestError(
                f"{path}.{field}",
                f"exit {merged.min_exit} costs {least:.4f}, more than max_cost {merged.max_cost:g}: allow at least that",
            )

    def _check_outcome(self, outcome: Outcome, merged: ResolvedControl, control: pb.RoutingControl, path: str) -> None:
        # the frontier is the default control's at other λ: refuse what makes frames leave elsewhere than there
        measured = self.default.thresholds
        if merged.policy is not Policy.ROUTER:
            fields, remedy = ["policy"], "the policy `router`"
        elif merged.thresholds != measured:
            fields, remedy = ["exit_thresholds", "threshold"], f"the threshold that it was measured at, {measured[0]:g}"
        elif merged.min_exit > 1:
            fields, remedy = ["min_exit"], "min_exit 1"
        elif outcome.field == "max_accuracy_drop" and merged.frame_control.max_exit < self._exits:
            fields, remedy = ["max_exit" if merged.max_exit < self._exits else "max_cost"], "every exit within bounds"
        elif outcome.field == "max_accuracy_drop" and merged.frame_control.allow_early_answer:
            fields, remedy = ["allow_early_answer"], "no early answers"
        elif outcome.field == "max_accuracy_drop" and merged.frame_control.allow_degrade:
            fields, remedy = ["allow_degrade"], "no degraded ones"
        else:
            return
        given = [name for name in fields if name in _names(control)] or [outcome.field]
        message = (
            f"{outcome.field} {outcome.value:g} holds only with {remedy}: choose that, or give lambda in place of the outcome"
        )
        raise InvalidRequestError(f"{path}.{given[0]}", message)

    def _read_policy(self, control: pb.RoutingControl, path: str) -> Policy | None:
        if control.policy == pb.POLICY_UNSPECIFIED:
            return None
        try:
            policy = Policy(control.policy)
        except ValueError:
            known = ", ".join(f"{int(p)} ({p.name.lower()})" for p in Policy)
            raise InvalidRequestError(f"{path}.policy", f"{control.policy} is no policy: give one of {known}") from None
        if policy is Policy.ROUTER and not self._has_routers:
            raise InvalidRequestError(f"{path}.policy", "this model has no routers: choose entropy, confidence or fixed")
        return policy

    def _read_exit_thresholds(self, control: pb.RoutingControl, path: str) -> tuple[float, ...]:
        field, wanted = f"{path}.exit_thresholds", self._exits - 1
        if len(control.exit_thresholds) != wanted:
            raise InvalidRequestError(
                field, f"has {len(control.exit_thresholds)} values: give {wanted}, one for each exit but the last"
            )
        return tuple(_read_threshold(value, f"{field}[{index}]") for index, value in enumerate(control.exit_thresholds))

    def _read_exit(self, exit: int, field: str) -> int:
        if not 1 <= exit <= self._exits:
            raise InvalidRequestError(field, f"{exit} is no exit: give 1 to {self._exits}")
        return exit


def price_table_of(manifest: Manifest) -> PriceTable:
    """What λ costs, for frames that may be degraded.

    From the bundle's frontier, or else its operating points under the default threshold; where those don't tell, from λ = 0
    to the largest λ that its routers were made for.
    """
    default = manifest.default_control
    if manifest.frontier is not None:
        table = price_table((point.lambda_, point.mean_cost) for point in manifest.frontier.points)
    else:
        table = price_table(
            (point.control.lambda_, point.mean_cost)
            for point in manifest.operating_points
            if (point.control.policy, point.control.threshold, point.control.max_exit) == ("router", default.threshold, None)
        )
    if len(table.lambdas) < 2 and manifest.network.router_lambdas:
        return price_table([(0.0, manifest.costs.ratios[-1]), (manifest.network.router_lambdas[-1], manifest.costs.ratios[0])])
    return table


def _read_latitude(base: FrameControl, control: pb.RoutingControl, path: str) -> _Latitude:
    latency = base.max_latency_s
    if control.HasField("max_latency_ms"):
        if control.max_latency_ms == 0:
            raise InvalidRequestError(f"{path}.max_latency_ms", "is 0: give the milliseconds in which to answer, 1 or more")
        latency = control.max_latency_ms / 1000
    early = control.allow_early_answer if control.HasField("allow_early_answer") else base.allow_early_answer
    degrade = control.allow_degrade if control.HasField("allow_degrade") else base.allow_degrade
    return latency, early, degrade


def _names(control: pb.RoutingControl) -> set[str]:
    return {field.name for field, _ in control.ListFields()}


def _read_lambda(control: pb.RoutingControl, path: str) -> float:
    value: float = getattr(control, "lambda")
    if not (math.isfinite(value) and value >= 0):
        raise InvalidRequestError(f"{path}.lambda", f"{value:g} is no price of compute: give a finite number >= 0")
    return value


def _read_threshold(value: float, field: str) -> float:
    if not 0 < value <= 1:  # NaN fails too
        raise InvalidRequestError(field, f"{value:g} is no threshold: give a number above 0 and at most 1")
    return value


def _read_cost(control: pb.RoutingControl, path: str) -> float:
    if not control.max_cost > 0:
        raise InvalidRequestError(
            f"{path}.max_cost", f"{control.max_cost:g} is no cost: give a fraction of the full network's MACs, such as 0.5"
        )
    return control.max_cost
