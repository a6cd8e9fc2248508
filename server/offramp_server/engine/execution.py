"""One batch on the backend, and what the exits decide about it: the arithmetic of the engine, in the executor's thread.

It decides in NumPy, which keeps the interpreter's lock through small operations; torch lets go of it in each, and then waits
behind the event loop (docs/scheduling.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from offramp_model.routing import Controls, decide, sigmoid
from offramp_server.engine.types import Backend, Features, FrameControl


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """What frames that went on from one batch take along: the stage's features, one row a frame, and the class logits so far."""

    features: Features
    logits_NEC: np.ndarray


@dataclass(slots=True, eq=False)
class Place:
    """Where a frame that goes on finds its next input: a row of a cohort."""

    cohort: Cohort
    index: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch came to, one element a frame."""

    by_policy: list[bool]
    halting: list[tuple[float, ...]]
    """σ(s_k) of the routers met in this batch: of the stage's, or of all in a run of the whole network."""
    probabilities_NC: np.ndarray
    sound: list[bool]
    """Whether the class probabilities are finite."""
    places: list[Place | None]
    """The next stage's input, of frames that go on; None of those that leave."""


def run_stage(backend: Backend, stage: int, inputs: Sequence[np.ndarray | Place], controls: Sequence[FrameControl]) -> Outcome:
    """Run one stage and decide row by row. Stage 1 takes images of one type, later stages the places given by the one before."""
    if stage == 1:
        features = backend.prepare([image for image in inputs if isinstance(image, np.ndarray)])
        earlier_NEC = no_logits(len(inputs), backend.classes)
    else:
        features, earlier_NEC = _gather(backend, [place for place in inputs if isinstance(place, Place)])
    result = backend.run_stage(stage, features, earlier_NEC)
    decision = decide(stage, result.logits_NEC[:, -1], result.router_output, _stack(controls), backend.rule)
    places: list[Place | None] = [None] * len(inputs)
    staying_S = np.flatnonzero(~decision.leaves_N)
    if stage < backend.exits and len(staying_S):
        # a copy: of the survivors alone, and out of memory that the backend may write over
        cohort = Cohort(backend.take(result.features, staying_S), result.logits_NEC[staying_S])
        for index, row in enumerate(staying_S.tolist()):
            places[row] = Place(cohort, index)
    halting: list[tuple[float, ...]] = [()] * len(inputs)
    if result.router_output is not None:
        halting = [(value,) for value in decision.halting_N.tolist()]
    probabilities_NC = decision.probabilities_NC
    return Outcome(decision.by_policy_N.tolist(), halting, probabilities_NC, _sound(probabilities_NC), places)


def run_whole(backend: Backend, images: Sequence[np.ndarray], controls: Sequence[FrameControl]) -> Outcome:
    """Run the whole network on uint8 images of frames that can leave at the last exit alone."""
    count, controls_N = len(images), _stack(controls)
    logits_NEC, router_outputs = backend.run_whole(backend.prepare(images))
    probabilities_NC = decide(backend.exits, logits_NEC[:, -1], None, controls_N, backend.rule).probabilities_NC
    met = [
        sigmoid(backend.rule.logit(exit, output, controls_N.lambda_N)).tolist() for exit, output in enumerate(router_outputs, 1)
    ]
    halting: list[tuple[float, ...]] = list(zip(*met, strict=True)) if met else [()] * count
    return Outcome([False] * count, halting, probabilities_NC, _sound(probabilities_NC), [None] * count)


def no_logits(count: int, classes: int) -> np.ndarray:
    """The class logits of no exits, shape (N, 0, classes): what stage 1 takes."""
    return np.empty((count, 0, classes), np.float32)


def warm_up(
    backends: Sequence[Backend], max_batch: int, clock: Callable[[], float], ran: Callable[[str, int, float], None]
) -> None:
    """Run everything on blank frames at batch 1 and at the full batch, so that no caller pays for first-time work.

    The second run of each is reported to `ran` as (stage or `whole`, frames, seconds). Several backends run at the same time, as
    they will when they serve.
    """
    if len(backends) > 1:
        with ThreadPoolExecutor(len(backends)) as threads:
            list(threads.map(lambda backend: _warm_up(backend, max_batch, clock, ran), backends))
    elif backends:
        _warm_up(backends[0], max_batch, clock, ran)


def _warm_up(backend: Backend, max_batch: int, clock: Callable[[], float], ran: Callable[[str, int, float], None]) -> None:
    blank = np.zeros((backend.input_size, backend.input_size, 3), np.uint8)
    for size in dict.fromkeys((1, max_batch)):
        pixels = backend.prepare([blank] * size)
        for _ in range(2):
            features, logits_NEC = pixels, no_logits(size, backend.classes)
            times = [clock()]
            for stage in range(1, backend.exits + 1):
                result = backend.run_stage(stage, features, logits_NEC)
                features, logits_NEC = result.features, result.logits_NEC
                times.append(clock())
            backend.run_whole(pixels)
            times.append(clock())
        names = [*map(str, range(1, backend.exits + 1)), "whole"]
        for name, (began, ended) in zip(names, pairwise(times), strict=True):
            ran(name, size, ended - began)


def _gather(backend: Backend, places: Sequence[Place]) -> tuple[Features, np.ndarray]:
    """Rows of several cohorts as one batch; a cohort that is taken whole is not copied."""
    features, logits = [], []
    for _, group in groupby(places, key=lambda place: id(place.cohort)):
        rows = list(group)
        cohort, first, last = rows[0].cohort, rows[0].index, rows[-1].index
        if last - first + 1 == len(rows):  # all in a row, as they are unless a frame between was dropped
            features.append(cohort.features[first : last + 1])
            logits.append(cohort.logits_NEC[first : last + 1])
        else:
            index_S = np.array([row.index for row in rows])
            features.append(backend.take(cohort.features, index_S))
            logits.append(cohort.logits_NEC[index_S])
    if len(features) == 1:
        return features[0], logits[0]
    return backend.join(features), np.concatenate(logits)


def _sound(probabilities_NC: np.ndarray) -> list[bool]:
    sound: list[bool] = np.isfinite(probabilities_NC).all(-1).tolist()
    return sound


def _stack(controls: Sequence[FrameControl]) -> Controls[np.ndarray]:
    """One row a frame; frames of a stream share their control, so each is read once."""
    rows = {key: row for row, key in enumerate(dict.fromkeys(map(id, controls)))}
    distinct = {id(control): control for control in controls}.values()
    numbers = [(c.policy, c.lambda_, c.min_exit, c.max_exit, *c.thresholds) for c in distinct]
    with np.errstate(over="ignore"):  # a λ beyond float32 is infinite
        table = np.array(numbers, np.float64).T.astype(np.float32)
    columns_N = table[:, [rows[id(control)] for control in controls]]
    policy_N, lambda_N, min_exit_N, max_exit_N = columns_N[:4]
    return Controls(policy_N, lambda_N, columns_N[4:].T, min_exit_N, max_exit_N)
