"""One batch on the backend, and what the exits decide about it: the arithmetic of the engine, in the executor's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from offramp_model.routing import Controls, decide
from offramp_server.engine.types import Backend, FrameControl


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """What frames that went on from one batch take along: the stage's features, one row a frame, and the class logits so far."""

    features: Tensor
    logits_NEC: Tensor


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
    with torch.inference_mode():
        if stage == 1:
            features = backend.prepare([image for image in inputs if isinstance(image, np.ndarray)])
            earlier_NEC = features.new_zeros(len(inputs), 0, backend.classes, dtype=torch.float32)
        else:
            features, earlier_NEC = _gather([place for place in inputs if isinstance(place, Place)])
        result = backend.run_stage(stage, features, earlier_NEC)
        controls_N = _as_tensors(controls, features.device)
        decision = decide(stage, result.logits_NEC[:, -1], result.router_output, controls_N, backend.rule)
        leaves = decision.leaves_N.tolist()
        places: list[Place | None] = [None] * len(leaves)
        if stage < backend.exits and not all(leaves):
            staying = [row for row, left in enumerate(leaves) if not left]
            # a copy: of the survivors alone, and out of memory that the backend may write over
            rows_S = torch.tensor(staying, device=features.device)
            cohort = Cohort(result.features.index_select(0, rows_S), result.logits_NEC.index_select(0, rows_S))
            for index, row in enumerate(staying):
                places[row] = Place(cohort, index)
        halting: list[tuple[float, ...]] = [()] * len(leaves)
        if result.router_output is not None:
            halting = [(value,) for value in decision.halting_N.tolist()]
        return Outcome(decision.by_policy_N.tolist(), halting, *_readable(decision.probabilities_NC), places)


def run_whole(backend: Backend, images: Sequence[np.ndarray], controls: Sequence[FrameControl]) -> Outcome:
    """Run the whole network on uint8 images of frames that can leave at the last exit alone."""
    count = len(images)
    with torch.inference_mode():
        pixels = backend.prepare(images)
        logits_NEC, router_outputs = backend.run_whole(pixels)
        controls_N = _as_tensors(controls, logits_NEC.device)
        decision = decide(backend.exits, logits_NEC[:, -1], None, controls_N, backend.rule)
        met = [
            torch.sigmoid(backend.rule.logit(exit, output.float(), controls_N.lambda_N)).tolist()
            for exit, output in enumerate(router_outputs, 1)
        ]
        halting: list[tuple[float, ...]] = list(zip(*met, strict=True)) if met else [()] * count
        return Outcome([False] * count, halting, *_readable(decision.probabilities_NC), [None] * count)


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
    with torch.inference_mode():
        for size in dict.fromkeys((1, max_batch)):
            pixels = backend.prepare([blank] * size)
            for _ in range(2):
                features, logits_NEC = pixels, pixels.new_zeros(size, 0, backend.classes, dtype=torch.float32)
                times = [clock()]
                for stage in range(1, backend.exits + 1):
                    result = backend.run_stage(stage, features, logits_NEC)
                    features, logits_NEC = result.features, result.logits_NEC.cpu().to(pixels.device)  # waits for a GPU
                    times.append(clock())
                backend.run_whole(pixels)[0].cpu()
                times.append(clock())
            names = [*map(str, range(1, backend.exits + 1)), "whole"]
            for name, (began, ended) in zip(names, pairwise(times), strict=True):
                ran(name, size, ended - began)


def _gather(places: Sequence[Place]) -> tuple[Tensor, Tensor]:
    """Rows of several cohorts as one batch; a cohort that is taken whole is not copied."""
    features, logits = [], []
    for _, group in groupby(places, key=lambda place: id(place.cohort)):
        rows = list(group)
        cohort, first, last = rows[0].cohort, rows[0].index, rows[-1].index
        if last - first + 1 == len(rows):  # all in a row, as they are unless a frame between was dropped
            features.append(cohort.features[first : last + 1])
            logits.append(cohort.logits_NEC[first : last + 1])
        else:
            index_S = torch.tensor([row.index for row in rows], device=cohort.features.device)
            features.append(cohort.features.index_select(0, index_S))
            logits.append(cohort.logits_NEC.index_select(0, index_S))
    if len(features) == 1:
        return features[0], logits[0]
    return torch.cat(features), torch.cat(logits)


def _readable(probabilities_NC: Tensor) -> tuple[np.ndarray, list[bool]]:
    return probabilities_NC.cpu().numpy(), probabilities_NC.isfinite().all(-1).tolist()


def _as_tensors(controls: Sequence[FrameControl], device: torch.device) -> Controls:
    """One row a frame; frames of a stream share their control, so each is read once."""
    rows = {key: row for row, key in enumerate(dict.fromkeys(map(id, controls)))}
    distinct = {id(control): control for control in controls}.values()
    numbers = [(c.policy, c.lambda_, c.min_exit, c.max_exit, *c.thresholds) for c in distinct]
    columns_N = np.take(np.array(numbers, np.float64).T, [rows[id(control)] for control in controls], axis=1)
    policy_N, lambda_N, min_exit_N, max_exit_N, *thresholds = torch.from_numpy(columns_N).float().to(device)
    threshold_NE = torch.stack(thresholds, 1) if thresholds else lambda_N.new_empty(len(controls), 0)
    return Controls(policy_N, lambda_N, threshold_NE, min_exit_N, max_exit_N)
