"""The paired bootstrap."""

from __future__ import annotations

import pytest
import torch

from offramp_training.comparison.bootstrap import over_replicas, paired_bootstrap, paired_bootstraps, resampled_means


def random_right(chance: float, replicas: int, frames: int, seed: int) -> torch.Tensor:
    return (torch.rand(replicas, frames, generator=torch.Generator().manual_seed(seed)) < chance).double()


def test_what_both_methods_share_cancels() -> None:
    b_RN = random_right(0.7, 3, 500, seed=0)
    difference = paired_bootstrap(b_RN + 0.01, b_RN, seed=1, resamples=200)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.01, 0.01, 0.01))
    assert difference.deviation == pytest.approx(0)


def test_the_interval_is_as_wide_as_theory_says() -> None:
    a_RN, b_RN = random_right(0.8, 1, 4000, seed=0), random_right(0.7, 1, 4000, seed=1)
    difference = paired_bootstrap(a_RN, b_RN, seed=2)
    assert difference.low < 0.1 < difference.high
    standard_error = float((a_RN - b_RN).std()) / 4000**0.5
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    assert difference.mean == pytest.approx(float((a_RN - b_RN).mean()))
    assert difference.deviation is None


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    pairs = [(random_right(0.8, 1, 300, seed), random_right(0.75, 1, 300, seed + 1000)) for seed in range(200)]
    covered = sum(d.low <= 0.05 <= d.high for d in paired_bootstraps(pairs, seed=0, resamples=500))
    assert 182 <= covered <= 198  # 95 % of 200, give or take 2.6 standard errors


def test_replicas_are_resampled_together() -> None:
    """Replicas that agree on every frame add nothing: the interval is that of a single one."""
    a_1N, b_1N = random_right(0.8, 1, 600, seed=0), random_right(0.7, 1, 600, seed=1)
    one = paired_bootstrap(a_1N, b_1N, seed=3, resamples=300)
    three = paired_bootstrap(a_1N.expand(3, -1), b_1N.expand(3, -1), seed=3, resamples=300)
    assert (three.low, three.high) == pytest.approx((one.low, one.high))
    assert three.deviation == pytest.approx(0)


def test_a_seed_gives_the_same_interval_again_and_many_comparisons_the_same_as_one() -> None:
    a, b, c = (random_right(chance, 2, 300, seed) for seed, chance in enumerate((0.8, 0.7, 0.6)))
    both = paired_bootstraps([(a, b), (a, c)], seed=5, resamples=150)
    assert both == [paired_bootstrap(a, b, seed=5, resamples=150), paired_bootstrap(a, c, seed=5, resamples=150)]
    assert both != paired_bootstraps([(a, b), (a, c)], seed=6, resamples=150)


def test_resampled_means_draw_every_frame_alike() -> None:
    value_NM = torch.eye(50, dtype=torch.double)[:, :2]
    value_NM = torch.cat([value_NM, torch.ones(50, 1)], 1)
    mean_SM = resampled_means(value_NM, seed=0, resamples=1000)
    assert mean_SM.shape == (1000, 3)
    torch.testing.assert_close(mean_SM[:, 2], torch.ones(1000, dtype=torch.double))
    torch.testing.assert_close(mean_SM[:, :2].mean(0), torch.full((2,), 0.02, dtype=torch.double), rtol=0.2, atol=0)


def test_spread_over_replicas() -> None:
    summary = over_replicas(torch.tensor([0.8, 0.9, 1.0]))
    assert summary.mean == pytest.approx(0.9)
    assert summary.deviation == pytest.approx(0.1)
    assert over_replicas(torch.tensor([0.8])).deviation is None


def test_methods_on_different_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="same frames"):
        paired_bootstrap(torch.ones(2, 5), torch.ones(2, 4), seed=0)
    with pytest.raises(ValueError, match="same frames"):
        paired_bootstraps([(torch.ones(2, 5), torch.ones(2, 5)), (torch.ones(2, 4), torch.ones(2, 4))], seed=0)
