"""The halting rule: scores, and what exits decide about frames, as pure functions, shared by training and serving.

It takes NumPy's arrays and torch's tensors alike: a server decides on the former, since each operation of torch lets go of the
interpreter's lock (docs/scheduling.md), and an attack on the routers needs gradients. Imports no torch (ADR 15).
N frames, K exits, L grid values of λ; exits count from 1 outside tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from array_api_compat import array_namespace, device

from offramp_model.config import NetworkConfig

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")


class Policy(IntEnum):
    """How exits are chosen; the numbers are the wire's."""

    ROUTER = 1
    ENTROPY = 2
    CONFIDENCE = 3
    FIXED = 4


class ExitReason(IntEnum):
    """Why a frame left where it did; the numbers are the wire's."""

    POLICY = 1
    LAST_EXIT = 2
    MAX_EXIT = 3
    MAX_COST = 4
    DEADLINE = 5


def interpolate_router_logits(router_logits_NL: Array, grid: Sequence[float], lambda_N: Array, cost_step: float) -> Array:
    """Halting logit of each frame at its own λ ≥ 0, from the logits of the two neighbouring routers of the grid.

    Linear in λ between neighbours; below the grid the first router holds. Above it the logit rises from the last router's
    with slope `cost_step` = c_{k+1} − c_k, which is the least slope of the E-step's own logit there, so that a very
    large λ sends every frame out at exit 1 (paper, section 5.5). Returns shape (N,).
    """
    xp: Any = _namespace(router_logits_NL)
    grid_L = _like(grid, router_logits_NL)
    lambda_N = xp.astype(lambda_N, router_logits_NL.dtype)
    inside_N = xp.clip(lambda_N, grid[0], grid[-1])
    if len(grid) == 1:
        logit_N = router_logits_NL[:, 0]
    else:
        upper_N = xp.clip(xp.searchsorted(grid_L, inside_N), 1, len(grid) - 1)
        low_N, high_N = grid_L[upper_N - 1], grid_L[upper_N]
        weight_N = (inside_N - low_N) / (high_N - low_N)
        pair_N2 = xp.take_along_axis(router_logits_NL, xp.stack([upper_N - 1, upper_N], axis=1), axis=1)
        logit_N = pair_N2[:, 0] + weight_N * (pair_N2[:, 1] - pair_N2[:, 0])
    above_N: Array = logit_N + xp.where(lambda_N > grid[-1], lambda_N - grid[-1], 0.0) * cost_step
    return above_N


def forecast_halting_logit(utility_NJ: Array, lambda_N: Array, costs: Sequence[float], temperature: float) -> Array:
    """The E-step's halting logit with each exit's likelihood replaced by its forecast utility, and a uniform prior.

    s_k(λ) = (m_kk − λ c_k)/τ_s − log Σ_{j>k} exp((m_kj − λ c_j)/τ_s), shape (N,), from utilities m_kj and costs c_j of the
    exits j = k…K. It never falls as λ rises, since ds_k/dλ = (Σ_{j>k} w_j c_j − c_k)/τ_s with weights w that sum to one.
    """
    xp: Any = _namespace(utility_NJ)
    dearer_J = _like([cost - costs[0] for cost in costs[1:]], utility_NJ)
    beyond_NJ = utility_NJ[:, 1:] - xp.astype(lambda_N, utility_NJ.dtype)[:, None] * dearer_J
    logit_N: Array = utility_NJ[:, 0] / temperature - _log_sum_exp(beyond_NJ / temperature)
    return logit_N


class HaltingRule(Protocol):
    """How an exit's router output and a frame's λ give its halting logit."""

    @property
    def costs(self) -> tuple[float, ...]:
        """Cost ratio of every exit."""
        ...

    def logit(self, exit: int, router_output: Array, lambda_N: Array) -> Array:
        """s_k of each frame, shape (N,)."""
        ...


@dataclass(frozen=True, slots=True)
class BankRule:
    """Interpolates between the two routers of the grid that are next to a frame's λ."""

    costs: tuple[float, ...]
    grid: tuple[float, ...]

    def logit(self, exit: int, router_output: Array, lambda_N: Array) -> Array:
        """s_k of each frame, shape (N,), from halting logits of shape (N, L)."""
        return interpolate_router_logits(router_output, self.grid, lambda_N, self.costs[exit] - self.costs[exit - 1])


@dataclass(frozen=True, slots=True)
class ForecastRule:
    """Puts each frame's λ into the closed form."""

    costs: tuple[float, ...]
    temperature: float

    def logit(self, exit: int, router_output: Array, lambda_N: Array) -> Array:
        """s_k of each frame, shape (N,), from utilities of shape (N, K − k + 1)."""
        return forecast_halting_logit(router_output, lambda_N, self.costs[exit - 1 :], self.temperature)


def halting_rule(config: NetworkConfig, costs: Sequence[float]) -> HaltingRule:
    """The rule of a network whose exits have these cost ratios."""
    if config.router_temperature is not None:
        return ForecastRule(tuple(costs), config.router_temperature)
    return BankRule(tuple(costs), tuple(config.router_lambdas))


def normalised_entropy(probabilities_NC: Array) -> Array:
    """Shannon entropy over ln(classes), in [0, 1], shape (N,); BranchyNet's score."""
    xp: Any = _namespace(probabilities_NC)
    logs_NC = xp.log(xp.where(probabilities_NC > 0, probabilities_NC, 1.0))
    entropy_N: Array = -xp.sum(probabilities_NC * logs_NC, axis=-1) / math.log(max(probabilities_NC.shape[-1], 2))
    return entropy_N


def confidence(probabilities_NC: Array) -> Array:
    """The largest class probability, shape (N,)."""
    largest_N: Array = _namespace(probabilities_NC).max(probabilities_NC, axis=-1)
    return largest_N


def halts(policy_N: Array, threshold_N: Array, halting_N: Array, probabilities_NC: Array) -> Array:
    """Which frames their own policy lets go here: σ(s_k) ≥ τ, entropy ≤ τ, or confidence ≥ τ; `fixed` never. Bool, (N,)."""
    let_go_N: Array = (policy_N == Policy.ROUTER.value) & (halting_N >= threshold_N)
    # a score that no frame goes by would cost as much as the softmax
    if (by_entropy_N := policy_N == Policy.ENTROPY.value).any():
        let_go_N = let_go_N | (by_entropy_N & (normalised_entropy(probabilities_NC) <= threshold_N))
    if (by_confidence_N := policy_N == Policy.CONFIDENCE.value).any():
        let_go_N = let_go_N | (by_confidence_N & (confidence(probabilities_NC) >= threshold_N))
    return let_go_N


@dataclass(frozen=True, slots=True)
class Controls(Generic[Array]):
    """The resolved controls of N frames, one row a frame."""

    policy_N: Array
    lambda_N: Array
    threshold_NE: Array
    """One threshold for each exit but the last, shape (N, K−1)."""
    min_exit_N: Array
    max_exit_N: Array


@dataclass(frozen=True, slots=True)
class Decision(Generic[Array]):
    """What exit k decides about N frames: who leaves, class probabilities, and σ(s_k) (1 at the last exit)."""

    leaves_N: Array
    by_policy_N: Array
    probabilities_NC: Array
    halting_N: Array


def decide(
    exit: int, logits_NC: Array, router_output: Array | None, controls: Controls[Array], rule: HaltingRule
) -> Decision[Array]:
    """Decide row by row at exit k, in the logits' own precision; nothing in a row depends on any other row.

    A frame leaves where its policy says so at or after its min_exit, at its max_exit, and at the last exit.
    """
    xp: Any = _namespace(logits_NC)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite logits and λ have their meaning, and NaN is looked for later
        probabilities_NC = _softmax(logits_NC)
        everyone_N = xp.ones(len(logits_NC), dtype=xp.bool, device=device(logits_NC))
        if exit == len(rule.costs):
            return Decision(everyone_N, ~everyone_N, probabilities_NC, xp.astype(everyone_N, logits_NC.dtype))
        if router_output is None:
            halting_N = xp.zeros_like(probabilities_NC[:, 0])
        else:
            halting_N = sigmoid(rule.logit(exit, router_output, controls.lambda_N))
        threshold_N = controls.threshold_NE[:, exit - 1]
        by_policy_N = (exit >= controls.min_exit_N) & halts(controls.policy_N, threshold_N, halting_N, probabilities_NC)
        return Decision(by_policy_N | (exit >= controls.max_exit_N), by_policy_N, probabilities_NC, halting_N)


def sigmoid(logit_N: Array) -> Array:
    """σ(s) of halting logits, infinite ones among them."""
    with np.errstate(over="ignore"):
        halting_N: Array = 1 / (1 + _namespace(logit_N).exp(-logit_N))
    return halting_N


def _softmax(logits_NC: Array) -> Array:
    xp: Any = _namespace(logits_NC)
    weights_NC = xp.exp(logits_NC - xp.max(logits_NC, axis=-1, keepdims=True))
    probabilities_NC: Array = weights_NC / xp.sum(weights_NC, axis=-1, keepdims=True)
    return probabilities_NC


def _log_sum_exp(values_NJ: Array) -> Array:
    """Of values that may be −∞, all of a row too."""
    xp: Any = _namespace(values_NJ)
    largest_N1 = xp.max(values_NJ, axis=-1, keepdims=True)
    shift_N1 = xp.where(xp.isfinite(largest_N1), largest_N1, 0.0)
    with np.errstate(divide="ignore"):
        sum_N: Array = xp.log(xp.sum(xp.exp(values_NJ - shift_N1), axis=-1)) + shift_N1[:, 0]
    return sum_N


def _like(values: Sequence[float], other: Array) -> Array:
    """Numbers as an array of the other's kind, precision and device."""
    array: Array = _namespace(other).asarray(values, dtype=other.dtype, device=device(other))
    return array


_namespaces = dict[type, Any]()


def _namespace(array: Array) -> Any:
    """The array API of the array's library, looked up once: a look-up takes as long as an operation on a small batch."""
    kind = type(array)
    if kind not in _namespaces:
        _namespaces[kind] = array_namespace(array)
    return _namespaces[kind]
