"""What heads see of a feature map."""

from __future__ import annotations

import pytest
import torch

from offramp_model.config import GRID, PARTS, part_columns
from offramp_model.network import pool_parts, select_parts


@pytest.mark.parametrize("size", [4, 8, 13])
def test_each_cell_of_a_grid_gives_what_lies_in_it(size: int) -> None:
    features_NCHW = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
    edges = [
        (cell * size // GRID, -(-(cell + 1) * size // GRID)) for cell in range(GRID)
    ]  # cells may share a row where they don't fit
    for part, of_cell in (("grid", lambda cell: cell.mean((2, 3))), ("grid_max", lambda cell: cell.amax((2, 3)))):
        by_hand = [of_cell(features_NCHW[:, :, top:bottom, left:right]) for top, bottom in edges for left, right in edges]
        torch.testing.assert_close(pool_parts(features_NCHW, (part,)), torch.stack(by_hand, 2).flatten(1))


def test_each_part_is_found_again_among_all() -> None:
    features_NCHW = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    everything_NS = pool_parts(features_NCHW, (*PARTS, "map"))
    for part in (*PARTS, "map"):
        alone_NS = pool_parts(features_NCHW, (part,))
        assert alone_NS.shape == (2, part_columns(part, 5))
        torch.testing.assert_close(select_parts(everything_NS, 5, (part,)), alone_NS)
