"""A slowdown attack: images changed by a few grey levels so that no router lets them go, and what bounds on a frame make of it.

Projected gradient descent (Madry et al. 2018) on the probability of reaching the last exit, through the network as it is served;
slowdown attacks on early exits: Hong et al. 2021. See docs/shift.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from offramp_model.bundle import Control
from offramp_model.costs import cost_table
from offramp_model.latent import log_exit_distribution
from offramp_model.network import MultiExitNetwork
from offramp_model.routing import HaltingRule, halting_rule
from offramp_training.attack_report import draw_figures, write_report
from offramp_training.config import JobConfig, JobError
from offramp_training.data import derive_seed
from offramp_training.run_directory import RunDirectory, progress_bar, say
from offramp_training.subject import Subject, load_subject

STEP = "attack"
HIGHER_LAMBDAS = 3
"""So many λ above the default are tried as a remedy."""


def attack(
    job: JobConfig, run: RunDirectory, images: int | None, steps: int, epsilon: int, aim_lambda: float | None = None
) -> None:
    """Write <run>/attack/result.json, attack.md and the figures.

    `epsilon` is the most that a pixel may change, in grey levels of 255; the attack aims at the default control, with its λ
    replaced by `aim_lambda` where given. Raises JobError where the run has not been evaluated, or its default policy has no
    router to attack.
    """
    started = time.time()
    subject = load_subject(job, run, images)
    if subject.control.policy != "router":
        raise JobError(f"the default policy is `{subject.control.policy}`: the attack is on routers")
    aim = subject.control if aim_lambda is None else subject.control.model_copy(update={"lambda_": aim_lambda})
    result = measure(subject, aim, remedies(subject, aim.lambda_, job.routers.lambdas), steps, epsilon, job.seed)
    folder = run.folder(STEP)
    draw_figures(folder, result)
    (folder / "attack.md").write_text(write_report(result))
    run.finish(STEP, job, started, **result)
    say(STEP, f"figures and attack.md in {folder}")


def remedies(subject: Subject, aim_lambda: float, lambdas: Sequence[float]) -> dict[str, Control]:
    """By name, the default control, that at the λ aimed at and at larger ones, as a server in need would use them, and with
    bounds on a frame's own cost."""
    default = subject.control
    controls = {"default": default}
    larger = [value for value in lambdas if value > default.lambda_][:HIGHER_LAMBDAS]
    for lambda_ in sorted({aim_lambda, *larger} - {default.lambda_}):
        controls[f"λ = {lambda_:g}"] = default.model_copy(update={"lambda_": lambda_})
    for exit, ratio in enumerate(cost_table(subject.network.config).ratios[:-1], start=1):
        # max_cost lets a frame reach the deepest exit within it: here this one
        controls[f"max_cost = {math.ceil(100 * ratio) / 100:.2f}"] = default.model_copy(update={"max_exit": exit})
    return controls


def measure(subject: Subject, aim: Control, controls: dict[str, Control], steps: int, epsilon: int, seed: int) -> dict[str, Any]:
    """Every control on the images as they are, under random noise of the same size, and attacked."""
    rule = halting_rule(subject.network.config, cost_table(subject.network.config).ratios)

    def slowed(images_NCHW: Tensor, first: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, STEP, "start", first))
        halting = _halting(subject, rule, aim)
        with torch.enable_grad():
            return slow_down(images_NCHW, halting, epsilon, steps, generator, lambda: advance(len(images_NCHW)))

    def noisy(images_NCHW: Tensor, first: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, STEP, "noise", first))
        signs_NCHW = 2 * torch.randint(0, 2, images_NCHW.shape, generator=generator) - 1
        return (images_NCHW + epsilon * signs_NCHW).clamp(0, 255).to(torch.uint8)

    changes = {"clean": lambda images, _: images, "noise": noisy, "attacked": slowed}
    with progress_bar("attack, images × steps", len(subject.data) * (steps + len(changes))) as advance:
        frames = {name: subject.run(change, advance) for name, change in changes.items()}
    return {
        "images": len(subject.data),
        "steps": steps,
        "epsilon": epsilon,
        "aim": aim.model_dump(mode="json"),
        "cost_ratios": cost_table(subject.network.config).ratios,
        "conditions": {
            name: {label: subject.measure(each, control) for label, control in controls.items()} for name, each in frames.items()
        },
    }


def slow_down(
    images_NCHW: Tensor,
    halting: Callable[[Tensor], Tensor],
    epsilon: int,
    steps: int,
    generator: torch.Generator,
    advance: Callable[[], None] = lambda: None,
) -> Tensor:
    """Images within `epsilon` grey levels of these, uint8, that are as likely as possible to pass every router.

    `halting` gives from pixels (N, C, H, W), floats from 0 to 255, how far each router's halting logit lies above its threshold,
    shape (N, K−1). The objective is log π_K, to reach the last exit: Σ_k log(1 − σ(s_k)), in which routers that are passed
    already have little weight. Of all the steps each image keeps the best, the image as it was among them.
    """

    def passing(pixels_NCHW: Tensor) -> Tensor:
        return log_exit_distribution(halting(pixels_NCHW))[:, -1]

    original_NCHW = images_NCHW.float()
    low, high = (original_NCHW - epsilon).clamp_min(0), (original_NCHW + epsilon).clamp_max(255)
    start_NCHW = original_NCHW + epsilon * (2 * torch.rand(original_NCHW.shape, generator=generator) - 1)
    changed_NCHW = torch.clamp(start_NCHW, low, high)
    with torch.no_grad():
        best_NCHW, best_N = original_NCHW, passing(original_NCHW)
    stride = 2.5 * epsilon / steps  # reaches any corner from anywhere, and has steps left to turn
    for _ in range(steps):
        changed_NCHW.requires_grad_()
        passing_N = passing(changed_NCHW)
        (gradient_NCHW,) = torch.autograd.grad(passing_N.sum(), changed_NCHW)
        changed_NCHW = changed_NCHW.detach()
        best_NCHW, best_N = _better(changed_NCHW, passing_N.detach(), best_NCHW, best_N)
        # entropies have an infinite slope at a probability of 0
        uphill_NCHW = gradient_NCHW.nan_to_num(0.0, 0.0, 0.0).sign()
        changed_NCHW = torch.clamp(changed_NCHW + stride * uphill_NCHW, low, high)
        advance()
    with torch.no_grad():
        best_NCHW, _ = _better(changed_NCHW, passing(changed_NCHW), best_NCHW, best_N)
    return best_NCHW.round().to(torch.uint8)


def _better(images_NCHW: Tensor, passing_N: Tensor, best_NCHW: Tensor, best_N: Tensor) -> tuple[Tensor, Tensor]:
    """Image by image that which is likelier to pass; nothing that is no number is."""
    better_N = passing_N > best_N
    return torch.where(better_N[:, None, None, None], images_NCHW, best_NCHW), torch.where(better_N, passing_N, best_N)


def margins(network: MultiExitNetwork, images_NCHW: Tensor, rule: HaltingRule, control: Control) -> Tensor:
    """How far each router's halting logit lies above the control's threshold, shape (N, K−1), from normalised images.

    A frame goes on where it is below 0.
    """
    lambda_N = images_NCHW.new_full((len(images_NCHW),), control.lambda_)
    threshold = torch.logit(torch.tensor(control.threshold), eps=1e-6)
    routed = islice(network.stages(images_NCHW), network.config.exits - 1)
    scores = []
    for exit, output in enumerate(routed, start=1):
        assert output.router_output is not None
        scores.append(rule.logit(exit, output.router_output, lambda_N) - threshold)
    return torch.stack(scores, 1)


def _halting(subject: Subject, rule: HaltingRule, control: Control) -> Callable[[Tensor], Tensor]:
    mean_C11, std_C11 = (torch.tensor(values).view(-1, 1, 1) for values in (subject.mean, subject.std))
    return lambda pixels_NCHW: margins(subject.network, (pixels_NCHW / 255 - mean_C11) / std_C11, rule, control)
