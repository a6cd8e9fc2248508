"""Forecast routers learn what is to be learned from the signals, and no more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from offramp_model.config import NetworkConfig
from offramp_model.routers import exit_signals
from offramp_training.forecast import cross_validate, fit_router
from offramp_training.sections import ForecastConfig
from tests.unit.training.fakes import tiny_job

NETWORK = NetworkConfig(widths=(4, 4, 4), blocks=(1, 1, 1), classes=4, router_kind="forecast", router_hidden=12)
CONFIG = ForecastConfig(steps=150, batch_size=512, rate=0.02)


def two_kinds_of_frames(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits (N, 3, 4) and whether each exit is right: easy frames are right everywhere, hard ones from exit 3 on, mostly.

    Exit 1 is sure of easy frames and in doubt about hard ones.
    """
    generator = torch.Generator().manual_seed(seed)
    easy_N = torch.rand(count, generator=generator) < 0.5
    logits_NKC = torch.randn(count, 3, 4, generator=generator)
    logits_NKC[..., 0] += torch.where(easy_N, 6.0, 0.5)[:, None]
    chance_NK = torch.where(easy_N[:, None], torch.tensor([0.98, 0.98, 0.98]), torch.tensor([0.2, 0.2, 0.9]))
    return logits_NKC, torch.rand(count, 3, generator=generator) < chance_NK


def test_a_router_forecasts_this_exit_and_the_deeper_ones() -> None:
    logits_NKC, right_NK = two_kinds_of_frames(4000, 0)
    router = fit_router(NETWORK, CONFIG, 1, exit_signals(logits_NKC[:, :1]), right_NK.float(), 0.01, seed=1)
    easy, hard = torch.tensor([[[9.0, 0, 0, 0]]]), torch.tensor([[[0.6, 0.1, 0, 0]]])
    torch.testing.assert_close(router(None, easy)[0], torch.tensor([0.98, 0.98, 0.98]), atol=0.06, rtol=0.0)
    torch.testing.assert_close(router(None, hard)[0], torch.tensor([0.2, 0.2, 0.9]), atol=0.12, rtol=0.0)


def test_a_later_router_looks_at_earlier_exits_too() -> None:
    # exit 2 looks the same for every frame; only its agreement with exit 1 tells which are right
    count, generator = 3000, torch.Generator().manual_seed(0)
    agrees_N = torch.rand(count, generator=generator) < 0.5
    logits_NKC = torch.zeros(count, 2, 4)
    logits_NKC[:, 1, 0] = 3.0
    logits_NKC[torch.arange(count), 0, torch.where(agrees_N, 0, 1)] = 3.0
    right_NJ = torch.stack([agrees_N, torch.ones(count, dtype=torch.bool)], 1).float()
    router = fit_router(NETWORK, CONFIG, 2, exit_signals(logits_NKC), right_NJ, 0.0, seed=1)
    utility_NJ = router(None, logits_NKC)
    assert float(utility_NJ[agrees_N, 0].min()) > 0.9
    assert float(utility_NJ[~agrees_N, 0].max()) < 0.1
    assert float(utility_NJ[:, 1].min()) > 0.9


def test_the_same_seed_gives_the_same_router() -> None:
    logits_NKC, right_NK = two_kinds_of_frames(300, 0)
    signals_NS = exit_signals(logits_NKC[:, :1])
    once, again = (fit_router(NETWORK, CONFIG, 1, signals_NS, right_NK.float(), 0.1, seed=7).state_dict() for _ in range(2))
    for name, tensor in once.items():
        assert torch.equal(tensor, again[name])


def test_cross_validation_judges_by_images_that_were_not_seen_in_any_view() -> None:
    """What is to be learned is noise, the same in both views of an image: who has seen one of them knows the other."""
    images, generator = 60, torch.Generator().manual_seed(0)
    signals_NS = torch.randn(images, 11, generator=generator).repeat_interleave(2, 0)
    utility_NJ = (torch.rand(images, 2, generator=generator) < 0.5).float().repeat_interleave(2, 0)
    config = ForecastConfig(steps=120, batch_size=120, rate=0.03, weight_decays=(0.0, 30.0), folds=3)
    job = tiny_job("network.classes=4", "network.router_kind=forecast", "network.router_hidden=48")
    job = job.model_copy(update={"forecast": config})
    image_N = torch.arange(images).repeat_interleave(2)
    tried = cross_validate(job, 2, signals_NS, utility_NJ, image_N)
    memory = fit_router(job.network, config, 2, signals_NS, utility_NJ, 0.0, seed=1)
    assert right(memory.forecast(signals_NS), utility_NJ) > 0.95
    assert right(tried.utility_NJ.logit(), utility_NJ) < 0.7
    # whoever learns noise the least is best at what it has not seen
    assert (tried.decay, list(tried.losses)) == (30.0, ["0", "30"])
    assert len(tried.routers) == 3


def test_a_router_learns_shares_between_zero_and_one_as_well() -> None:
    logits_NKC, right_NK = two_kinds_of_frames(4000, 0)
    worth_NK = 0.2 + 0.5 * right_NK.float()
    router = fit_router(NETWORK, CONFIG, 1, exit_signals(logits_NKC[:, :1]), worth_NK, 0.01, seed=1)
    easy = router(None, torch.tensor([[[9.0, 0, 0, 0]]]))[0]
    assert easy.tolist() == pytest.approx([0.69] * 3, abs=0.04)


def right(forecast_NJ: Tensor, utility_NJ: Tensor) -> float:
    return float(((forecast_NJ > 0) == utility_NJ.bool()).double().mean())
