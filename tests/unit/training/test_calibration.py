"""What is said about a classifier's probabilities; temperature and ECE are held in test_policies.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp_training.calibration import auroc, quality

# few distinct scores, so that ties are common
SCORED = st.lists(st.tuples(st.integers(-3, 3).map(lambda score: score / 3), st.booleans()), min_size=1, max_size=30)


@settings(max_examples=50)
@given(SCORED)
def test_auroc_is_the_share_of_pairs_in_order(scored: list[tuple[float, bool]]) -> None:
    right = [score for score, is_right in scored if is_right]
    wrong = [score for score, is_right in scored if not is_right]
    scores_N, right_N = torch.tensor([score for score, _ in scored]), torch.tensor([is_right for _, is_right in scored])
    found = auroc(scores_N, right_N)
    if not right or not wrong:
        assert found is None
        return
    ordered = sum((r > w) + (r == w) / 2 for r in right for w in wrong)
    assert found == pytest.approx(ordered / (len(right) * len(wrong)))


def test_quality_tells_whether_confidence_goes_with_being_right() -> None:
    # right with .73 and .95, wrong with .88: one pair of two in order
    logits = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]])
    assert quality(logits, torch.tensor([0, 0, 1])).auroc == pytest.approx(0.5)
    assert quality(logits, torch.tensor([1, 0, 1])).auroc == pytest.approx(1)
    all_right = quality(logits, torch.tensor([0, 0, 0]))
    assert all_right.auroc is None
    assert all_right.rounded()["auroc"] is None
