"""The parts of the images under one trained network: the one that was fitted on, the one that is chosen on, the test split."""

from __future__ import annotations

import torch

from offramp_model.network import MultiExitNetwork
from offramp_training.cache import Features
from offramp_training.config import JobConfig
from offramp_training.heads import fit_and_select
from offramp_training.policies import Frames, run_exits


def run_fit(job: JobConfig, network: MultiExitNetwork, held_out: Features) -> Frames:
    """The fit part of the held-out images, every view of an image a row, one after the other."""
    fit_N, _ = fit_and_select(job, held_out)
    return run_exits(network, held_out.all_views(fit_N), held_out.labels_N[fit_N].repeat_interleave(held_out.views))


def run_select_and_test(job: JobConfig, network: MultiExitNetwork, held_out: Features, test: Features) -> tuple[Frames, Frames]:
    """The select part of the held-out images and the test split, each image as it is."""
    _, select_N = fit_and_select(job, held_out)
    everything_N = torch.arange(len(test.labels_N))
    return (
        run_exits(network, held_out.plain(select_N), held_out.labels_N[select_N]),
        run_exits(network, test.plain(everything_N), test.labels_N),
    )
