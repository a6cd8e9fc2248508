"""What is trained to be compared with the published system."""

from __future__ import annotations

from pathlib import Path

from offramp_training.arms import list_arms
from offramp_training.config import load_config
from offramp_training.run_directory import RunDirectory


def test_the_papers_routers_are_the_papers_whatever_is_published(tmp_path: Path) -> None:
    job = load_config("cifar10", ["network.head_cascade=true"])
    arms = list_arms(job, RunDirectory(tmp_path))
    assert [(arm.kind, arm.replica) for arm in arms[:4]] == [("own", 0), ("bank", 0), ("paper", 0), ("own", 1)]
    assert (arms[0].job, arms[0].run.root) == (job, tmp_path)
    paper = load_config("cifar10-paper").network
    for arm in arms:
        network = arm.job.network
        if arm.kind == "own":
            assert network == job.network
        else:
            assert (network.router_kind, network.router_hidden) == (paper.router_kind, paper.router_hidden)
            assert arm.job.routers.lambdas == job.proof.bank_lambdas
        if arm.kind == "bank":
            assert (network.head_kind, network.head_cascade) == ("pooled_stats", True)
        if arm.kind == "paper":
            assert (network.head_kind, network.head_hidden, network.head_cascade) == ("gap_mlp", paper.head_hidden, False)
    assert len({arm.run.root for arm in arms}) == len(arms)
