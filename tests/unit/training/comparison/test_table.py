"""Tables of logits and what leaving at given exits gives."""

from __future__ import annotations

import pytest
import torch

from offramp_training.comparison.table import ExitTable
from tests.unit.training.comparison.tables import COST_K, random_table, table_of

RIGHT_NK = torch.tensor([[True, True, True], [False, True, False]])


def test_outcome_of_certain_and_of_mixed_exits() -> None:
    table = table_of(torch.full((2, 3), 0.7), RIGHT_NK, COST_K, seed=0)
    assert torch.equal(table.right, RIGHT_NK)
    torch.testing.assert_close(table.probabilities.amax(2), torch.full((2, 3), 0.7, dtype=torch.double))
    outcome = table.outcome(table.leaving(torch.tensor([1, 2])))
    assert (outcome.accuracy, outcome.mean_cost, outcome.nominal_cost) == pytest.approx((1, 0.375, 0.5))
    assert outcome.exit_fractions == (0.5, 0.5, 0)
    mixed_NK = torch.tensor([[0.5, 0.5, 0], [0.25, 0.25, 0.5]], dtype=torch.double)
    assert table.expected_right(mixed_NK).tolist() == [1, 0.25]
    assert table.outcome(mixed_NK).mean_cost == pytest.approx((0.375 + 0.6875) / 2)


def test_rows_go_together() -> None:
    table = random_table(6, 3, seed=0)
    part = table.rows(torch.tensor([4, 1]))
    assert torch.equal(part.right, table.right[[4, 1]])
    assert part.exits == 3


def test_tables_that_do_not_fit_together_are_refused() -> None:
    table = random_table(6, 3, seed=0)
    with pytest.raises(ValueError, match="5"):
        ExitTable(table.logits_NKC, table.labels_N[:5], table.cost_K)
    with pytest.raises(ValueError, match="ascend"):
        ExitTable(table.logits_NKC, table.labels_N, table.cost_K.flip(0))
    with pytest.raises(ValueError, match="single"):
        ExitTable(table.logits_NKC[:, :1], table.labels_N, table.cost_K[:1])
