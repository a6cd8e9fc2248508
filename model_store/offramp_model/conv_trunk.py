"""What a `conv` head has in place of an MLP's first layer: a few small convolutions over a coarse map of the exit's features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp_model.config import MAP, TRUNK_CHANNELS


class ConvTrunk(nn.Module):
    """Pointwise convolution, depthwise-separable one at stride 2, then average and maximum over what is left of the map.

    Takes the map's columns and some others in one row, as `Head.inputs` gives them, and gives hidden units. Only the first
    convolution sees the inputs, and it has no padding: so their standardisation folds into it exactly.
    """

    def __init__(self, channels: int, others: int, hidden: int) -> None:
        super().__init__()
        self.map_columns = channels * MAP * MAP
        self.mix = nn.Conv2d(channels, TRUNK_CHANNELS, 1)
        self.depthwise = nn.Conv2d(TRUNK_CHANNELS, TRUNK_CHANNELS, 3, 2, 1, groups=TRUNK_CHANNELS, bias=False)
        self.pointwise = nn.Conv2d(TRUNK_CHANNELS, 2 * TRUNK_CHANNELS, 1)
        self.linear = nn.Linear(4 * TRUNK_CHANNELS + others, hidden)

    def forward(self, inputs_NI: Tensor) -> Tensor:
        """Hidden units before their activation, shape (…, hidden)."""
        map_NS, others_NO = inputs_NI[..., : self.map_columns], inputs_NI[..., self.map_columns :]
        map_NCHW = map_NS.reshape(-1, self.mix.in_channels, MAP, MAP)
        map_NCHW = F.relu(self.pointwise(self.depthwise(F.relu(self.mix(map_NCHW)))))
        pooled_NP = torch.cat([map_NCHW.mean((2, 3)), map_NCHW.amax((2, 3))], 1)
        hidden_NH: Tensor = self.linear(torch.cat([pooled_NP.view(*inputs_NI.shape[:-1], -1), others_NO], -1))
        return hidden_NH

    @torch.no_grad()
    def fold(self, mean_I: Tensor, deviation_I: Tensor) -> None:
        """Change it, made for (x − mean) / deviation, so that it gives the same from x; the cells of a channel share theirs."""
        cells = MAP * MAP
        mean_C, deviation_C = mean_I[: self.map_columns : cells], deviation_I[: self.map_columns : cells]
        self.mix.weight.div_(deviation_C[:, None, None])
        assert self.mix.bias is not None
        self.mix.bias.sub_(self.mix.weight.flatten(1) @ mean_C)
        others_HO = self.linear.weight[:, 4 * TRUNK_CHANNELS :]
        others_HO.div_(deviation_I[self.map_columns :])
        self.linear.bias.sub_(others_HO @ mean_I[self.map_columns :])


def by_channel(values_I: Tensor, columns: int) -> Tensor:
    """Means over the cells of each channel of the first `columns` values, in each of those cells; the others as they are."""
    cells = MAP * MAP
    shared_C = values_I[:columns].view(-1, cells).mean(1)
    return torch.cat([shared_C.repeat_interleave(cells), values_I[columns:]])
