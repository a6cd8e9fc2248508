"""The small networks of the learned rules, and how they are fitted: large batches, AdamW, a cosine schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Fitting:
    """How a rule's networks are shaped and fitted."""

    hidden: int = 32
    batch: int = 2000
    steps: int = 400
    rate: float = 0.01
    weight_decay: float = 0.01


def small_network(inputs: int, outputs: int, config: Fitting, generator: torch.Generator) -> nn.Sequential:
    """A two-layer MLP that gives zeros at first."""
    hidden, output = nn.Linear(inputs, config.hidden), nn.Linear(config.hidden, outputs)
    nn.init.kaiming_uniform_(hidden.weight, nonlinearity="relu", generator=generator)
    for parameter in (hidden.bias, output.weight, output.bias):
        nn.init.zeros_(parameter)
    return nn.Sequential(hidden, nn.SiLU(), output)


def minimise(
    loss: Callable[[Tensor], Tensor], frames: int, networks: Sequence[nn.Module], config: Fitting, generator: torch.Generator
) -> None:
    """Take the configured steps down the loss, a function of the rows of a batch, then freeze the networks."""
    parameters = [parameter for network in networks for parameter in network.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in range(config.steps):
        rows_N = torch.randperm(frames, generator=generator)[: config.batch]
        optimizer.zero_grad()
        loss(rows_N).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    for parameter in parameters:
        parameter.requires_grad_(False)


def lambda_grid(cost_K: Tensor, count: int = 25) -> Tensor:
    """Zero and `count` − 1 prices of compute in accuracy for one full network, evenly spaced in their logarithm.

    The largest is the inverse of the smallest step in cost: there no gain in accuracy pays for going on. Shape (count,).
    """
    largest = 1 / float(cost_K.diff().min())
    return torch.cat([torch.zeros(1), torch.logspace(-3, 0, count - 1) * largest])


def draw_prices(lambda_L: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """λ from the range of an ascending grid above zero, evenly in its logarithm, shape (count, 1)."""
    low, high = float(lambda_L[0].log()), float(lambda_L[-1].log())
    return torch.empty(count, 1).uniform_(low, high, generator=generator).exp()


def price_position(lambda_L: Tensor, lambda_N1: Tensor) -> Tensor:
    """Where λ lies in the range of the grid, from −1 to 1 in its logarithm, shape (N, 1): how networks are told it."""
    low, high = lambda_L[0].log(), lambda_L[-1].log()
    return 2 * (lambda_N1.log() - low) / (high - low) - 1
