"""What the client takes and gives back: controls, frames, results and models as plain dataclasses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, TypedDict, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from offramp_client.errors import InvalidRequestError, OfframpClientError, error_for

Image = NDArray[np.uint8] | NDArray[np.float32] | bytes
"""uint8 (H, W, 3) RGB; or normalised float32 (3, H, W) at the model's own size; or a whole JPEG or PNG file."""


class Policy(StrEnum):
    """How exits are chosen."""

    ROUTER = "router"
    """The EM routers: leave at exit k when σ(s_k) ≥ threshold."""
    ENTROPY = "entropy"
    """BranchyNet: leave when the softmax entropy over ln(classes) is ≤ threshold."""
    CONFIDENCE = "confidence"
    """Leave when the largest class probability is ≥ threshold."""
    FIXED = "fixed"
    """Every frame leaves at max_exit, or at the last exit."""


class ExitReason(StrEnum):
    """Why a frame left where it did."""

    POLICY = "policy"
    LAST_EXIT = "last exit"
    MAX_EXIT = "max exit"
    MAX_COST = "max cost"
    DEADLINE = "deadline"
    UNKNOWN = "unknown"
    """The server gave a reason that this client does not know."""


class ControlFields(TypedDict, total=False):
    """The fields of `Control` as keyword arguments; see there."""

    policy: Policy | str | None
    lambda_: float | None
    threshold: float | None
    exit_thresholds: tuple[float, ...]
    min_exit: int | None
    max_exit: int | None
    max_cost: float | None
    max_mean_cost: float | None
    max_accuracy_drop: float | None
    confidence: float | None
    max_latency_ms: int | None
    allow_early_answer: bool | None
    allow_degrade: bool | None


_PRICES = ("lambda_", "max_mean_cost", "max_accuracy_drop")
"""The three ways to say what λ is; a control gives one."""


@dataclass(frozen=True, slots=True)
class Control:
    """The choice between accuracy and compute. What is None is the stream's choice, or else the model's default."""

    policy: Policy | None = None
    lambda_: float | None = None
    """Price of the full network's MACs, ≥ 0: in nats, or in probability of being right where one router serves every λ. Read by
    the router policy."""
    threshold: float | None = None
    """Score at which a frame leaves, in (0, 1]."""
    exit_thresholds: tuple[float, ...] = ()
    """One threshold for each exit but the last; wins over `threshold`."""
    min_exit: int | None = None
    """First exit at which a frame may leave, from 1."""
    max_exit: int | None = None
    """Last exit that a frame may reach."""
    max_cost: float | None = None
    """Largest cost that a frame may reach, as a fraction of the full network's MACs."""
    max_mean_cost: float | None = None
    """In place of `lambda_`: mean cost of frames like those of the model's frontier, as a fraction of the full network's MACs."""
    max_accuracy_drop: float | None = None
    """In place of `lambda_`: accuracy that early exits may lose against the full network, in (0, 1)."""
    confidence: float | None = None
    """Probability that `max_accuracy_drop` holds, in (0, 1); 0.95 where not given."""
    max_latency_ms: int | None = None
    """Milliseconds from its admission in which a frame must be answered; past it while it waits, it fails."""
    allow_early_answer: bool | None = None
    """Whether a frame leaves at the exit that it has reached when going on would miss `max_latency_ms` or the call's deadline."""
    allow_degrade: bool | None = None
    """Whether a frame may run at a larger λ under overload rather than be refused; of the router policy alone."""

    def with_fields(self, **fields: Unpack[ControlFields]) -> Control:
        """Return this control with the given fields in place of its own; None and () leave a field as it is.

        Thresholds belong to a policy, and `threshold` stands for all exits: a new policy drops the former thresholds, and
        a new `threshold` the former `exit_thresholds`, unless they are given too. Of `lambda_`, `max_mean_cost` and
        `max_accuracy_drop` with its confidence, a new one takes the place of the former.

        Raises:
            InvalidRequestError: the policy is none of `Policy`.
        """
        chosen: dict[str, Any] = {name: value for name, value in fields.items() if value not in (None, ())}
        if "policy" in chosen:
            try:
                chosen["policy"] = Policy(str(chosen["policy"]))
            except ValueError:
                known = ", ".join(Policy)
                raise InvalidRequestError(f"{chosen['policy']!r} is none of {known}", field="control.policy") from None
            if chosen["policy"] != self.policy:
                chosen = {"threshold": None, "exit_thresholds": ()} | chosen
        if chosen.get("threshold") is not None:
            chosen.setdefault("exit_thresholds", ())
        if not chosen.keys().isdisjoint(_PRICES):
            chosen = dict.fromkeys((*_PRICES, "confidence")) | chosen
        return replace(self, **chosen)

    def under(self, narrower: Control | None) -> Control:
        """Return this control with what a narrower one, such as a frame's, says in place of its own."""
        return self if narrower is None else self.with_fields(**cast(ControlFields, asdict(narrower)))


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture and what to do with it."""

    image: Image
    frame_id: int | None = None
    """The caller's number, echoed in the result; None numbers the frames of a stream from 0."""
    control: Control | None = None
    """Overrides for this frame alone, field by field."""
    timestamp_us: int = 0
    """When it was captured, in microseconds of the caller's own clock; echoed."""


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """A class and its calibrated probability in [0, 1]."""

    label: int
    """Index in the model's list of classes."""
    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Classification:
    """What a frame shows, where it left the network and what that cost."""

    top: tuple[ClassProbability, ...]
    """Largest first; never empty."""
    exit: int
    """From 1."""
    reason: ExitReason
    halting_probabilities: tuple[float, ...]
    """σ(s_k) of every router that the frame met, from exit 1 on."""
    cost_ratio: float
    """MACs spent over those of the plain full network."""
    cost_macs: int
    queue_ms: float
    """Spent waiting in the server's queues."""
    compute_ms: float
    """For which batches with this frame ran."""
    model: str
    version: str
    control: Control
    """Really used, every field resolved; an outcome that was asked for stands beside the λ found for it."""
    degraded: bool = False
    """Whether overload had raised `control.lambda_` above what was asked for."""

    @property
    def name(self) -> str:
        """Name of the most probable class."""
        return self.top[0].name

    @property
    def probability(self) -> float:
        """Probability of the most probable class."""
        return self.top[0].probability


@dataclass(frozen=True, slots=True)
class FrameError:
    """Why one frame of a stream was not classified."""

    code: str
    """Canonical gRPC status, such as INVALID_ARGUMENT."""
    message: str
    field: str = ""
    """The field that is wrong, such as `frame.control.lambda`; empty where no field is."""
    retry_after_ms: int = 0
    """How long to wait before trying again; 0 where that would not help."""

    def exception(self) -> OfframpClientError:
        """Return the same failure as an exception."""
        return error_for(self.code, self.message, field=self.field, retry_after_ms=self.retry_after_ms)


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one frame: exactly one of `classification` and `error` is not None."""

    frame_id: int
    timestamp_us: int
    latency_ms: float
    """From handing the frame to the connection to reading its answer, by this client's clock."""
    classification: Classification | None = None
    error: FrameError | None = None

    def unwrap(self) -> Classification:
        """Return the classification.

        Raises:
            OfframpClientError: the frame's error, as the class that fits its code.
        """
        if self.error is not None:
            raise self.error.exception()
        assert self.classification is not None
        return self.classification


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A loaded model version in short."""

    name: str
    version: str
    is_default: bool
    """Whether a request that names no model gets this one."""
    exits: int
    classes: int
    frames_classified: int
    """Since the server started."""


@dataclass(frozen=True, slots=True)
class Exit:
    """One exit of a network."""

    exit: int
    """From 1."""
    macs: int
    """On the real path up to this exit, heads and routers on the way counted."""
    cost_ratio: float
    """The same over the full network's MACs."""
    nominal_cost: float
    """The paper's: exit / exits."""
    accuracy: float
    """On held-out images if every image left here, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A choice with what it was measured to give on held-out images."""

    control: Control
    accuracy: float
    """In [0, 1]."""
    mean_cost: float
    """Over the full network's MACs."""
    exit_fractions: tuple[float, ...]
    """Share of images that left at each exit, from the first."""


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """What one λ gives on the calibration frames."""

    lambda_: float
    mean_cost: float
    """Over the full network's MACs."""
    accuracy: float
    """In [0, 1]."""
    exit_fractions: tuple[float, ...]
    """Share of frames that left at each exit, from the first."""
    losses: int
    """Frames on which the plain full network is right and the answer at this λ is wrong."""


@dataclass(frozen=True, slots=True)
class Frontier:
    """What a model's router gives over λ, behind `max_mean_cost` and `max_accuracy_drop`."""

    points: tuple[FrontierPoint, ...]
    """By λ, ascending from 0."""
    frames: int
    """Number of calibration frames."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model version with its costs and operating points."""

    name: str
    version: str
    labels: tuple[str, ...]
    input_height: int
    input_width: int
    exits: tuple[Exit, ...]
    full_macs: int
    router_lambdas: tuple[float, ...]
    """Lambdas that routers were trained for; others are interpolated. Empty where one router serves every λ."""
    default_control: Control
    default_thresholds: dict[Policy, float]
    operating_points: tuple[OperatingPoint, ...]
    """Cheapest first."""
    backend: str
    device: str
    full_accuracy: float
    data_note: str
    frontier: Frontier | None = None
    """None where outcomes can't be asked for."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a server, or one of its services, answers requests."""

    serving: bool
    status: str
    """SERVING, NOT_SERVING, SERVICE_UNKNOWN, UNKNOWN; or UNREACHABLE where nobody listens."""
