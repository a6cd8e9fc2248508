"""The convolutions of a `conv` head."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp_model.config import MAP, NetworkConfig
from offramp_model.conv_trunk import ConvTrunk, by_channel
from offramp_model.costs import head_macs

CELLS = MAP * MAP


def row(channels: int, others: int, seed: int, count: int = 6) -> Tensor:
    return torch.randn(count, channels * CELLS + others, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 2**31))
def test_folding_the_standardisation_changes_nothing(channels: int, others: int, seed: int) -> None:
    torch.manual_seed(seed)
    trunk, inputs_NI = ConvTrunk(channels, others, 7), 3 * row(channels, others, seed) + 1
    mean_I = by_channel(inputs_NI.mean(0), channels * CELLS)
    deviation_I = by_channel(inputs_NI.std(0), channels * CELLS)
    with torch.no_grad():
        before = trunk((inputs_NI - mean_I) / deviation_I)
        trunk.fold(mean_I, deviation_I)
        torch.testing.assert_close(trunk(inputs_NI), before, rtol=1e-3, atol=1e-3)


def test_frames_in_views_are_frames() -> None:
    trunk, inputs_NI = ConvTrunk(3, 2, 5), row(3, 2, 0)
    torch.testing.assert_close(trunk(inputs_NI.view(2, 3, -1)), trunk(inputs_NI).view(2, 3, 5))


def test_where_a_thing_lies_on_the_map_matters_to_convolutions_and_not_to_the_average() -> None:
    trunk = ConvTrunk(2, 0, 5)
    inputs_NI = row(2, 0, 0, count=1)
    shuffled_NI = inputs_NI.view(2, CELLS)[:, torch.randperm(CELLS, generator=torch.Generator().manual_seed(1))].view(1, -1)
    assert not torch.allclose(trunk(inputs_NI), trunk(shuffled_NI), atol=1e-4)


def test_means_by_channel_leave_other_columns_alone() -> None:
    values_I = torch.cat([torch.arange(2 * CELLS, dtype=torch.float32), torch.tensor([5.0, 6.0])])
    shared_I = by_channel(values_I, 2 * CELLS)
    assert shared_I.unique().tolist() == pytest.approx([5, 6, (CELLS - 1) / 2, CELLS + (CELLS - 1) / 2])
    assert shared_I[-2:].tolist() == [5, 6]
    assert by_channel(values_I, 0).equal(values_I)


def test_heads_of_resnet18_are_small() -> None:
    """Under a quarter of a percent of the network each."""
    config = NetworkConfig(head_kind="conv")
    for exit in (1, 2, 3):
        assert head_macs(config, exit) < 0.0025 * 555_422_720
