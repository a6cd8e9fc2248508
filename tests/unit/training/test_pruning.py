"""Images that are known sit out, and the others stand for them: the sum over all is kept in expectation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp_training.pruning import prune


@given(st.lists(st.floats(0, 20, width=32), min_size=1, max_size=200), st.floats(0, 0.99), st.integers(0, 2**32))
def test_images_over_the_mean_stay_with_weight_one(losses: list[float], probability: float, seed: int) -> None:
    losses_N = torch.tensor(losses)
    stays_P, weight_N = prune(losses_N, probability, torch.Generator().manual_seed(seed))
    over_N = losses_N >= losses_N.mean()
    assert set(over_N.nonzero().flatten().tolist()) <= set(stays_P.tolist())
    assert (weight_N[over_N] == 1).all()
    assert stays_P.tolist() == sorted(stays_P.tolist())


def test_the_weighted_sum_is_that_of_all_images_in_expectation() -> None:
    losses_N = torch.rand(1_000, generator=torch.Generator().manual_seed(1)) ** 3
    generator = torch.Generator().manual_seed(2)
    sums = []
    for _ in range(400):
        stays_P, weight_N = prune(losses_N, 0.5, generator)
        assert len(stays_P) < 800
        sums.append((weight_N * losses_N)[stays_P].sum())
    assert float(torch.stack(sums).mean()) == pytest.approx(float(losses_N.sum()), rel=0.005)


def test_nobody_sits_out_before_there_are_losses() -> None:
    stays_P, weight_N = prune(torch.zeros(50), 0.9, torch.Generator().manual_seed(0))
    assert stays_P.tolist() == list(range(50))
    assert (weight_N == 1).all()
