"""What leaving at an exit is worth."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp_model.routing import forecast_halting_logit
from offramp_training.utilities import LAMBDA_UNITS, LEAST_LIKELIHOOD, SPAN, Utility, log_likelihoods, utilities


def test_by_hand() -> None:
    """One frame of class 0, three exits that give it ½, 0.9 and 0.01."""
    logits_NKC = torch.tensor([[[0.5, 0.25, 0.25], [0.9, 0.05, 0.05], [0.01, 0.98, 0.01]]]).log()
    label_N = torch.tensor([0])
    assert utilities("probability", logits_NKC, label_N).tolist() == [[1, 1, 0]]
    wanted = [1 + math.log(0.5) / math.log(20), 1 + math.log(0.9) / math.log(20), 0]
    assert utilities("log_likelihood", logits_NKC, label_N)[0].tolist() == pytest.approx(wanted, abs=1e-6)
    assert log_likelihoods(logits_NKC, label_N)[0].tolist() == pytest.approx([math.log(p) for p in (0.5, 0.9, 0.05)], abs=1e-6)


@given(st.sampled_from(["probability", "log_likelihood"]), st.floats(0.1, 1000), st.integers(0, 2**31))
def test_from_zero_to_one_whatever_the_logits(kind: Utility, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_NKC = scale * torch.randn(20, 3, 5, generator=generator)
    utility_NK = utilities(kind, logits_NKC, torch.randint(5, (20,), generator=generator))
    assert utility_NK.shape == (20, 3)
    assert 0 <= float(utility_NK.min()) <= float(utility_NK.max()) <= 1


@given(st.floats(0, 5), st.floats(0.01, 1), st.integers(0, 2**31))
def test_a_price_on_log_likelihoods_is_one_in_nats_over_their_span(lambda_: float, temperature: float, seed: int) -> None:
    """The scale from 0 to 1 leaves the E-step's halting logit as it is in nats, once λ and the temperature are scaled too."""
    logits_NKC = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(seed))
    label_N, costs = torch.arange(6) % 4, (0.25, 0.5, 1.0)
    scaled_NK, nats_NK = utilities("log_likelihood", logits_NKC, label_N), log_likelihoods(logits_NKC, label_N)
    lambda_N = torch.full((6,), lambda_)
    ours_N = forecast_halting_logit(scaled_NK, lambda_N, costs, temperature)
    theirs_N = forecast_halting_logit(nats_NK, lambda_N * SPAN, costs, temperature * SPAN)
    torch.testing.assert_close(ours_N, theirs_N, rtol=1e-3, atol=1e-3)


def test_units_say_what_a_price_is() -> None:
    assert pytest.approx(LEAST_LIKELIHOOD) == math.exp(-SPAN)
    assert LAMBDA_UNITS == {"probability": "accuracy", "log_likelihood": "3.0 nats"}
