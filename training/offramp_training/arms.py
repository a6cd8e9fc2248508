"""Step 5: further systems on the same frozen backbone, trained to be compared with the one that is published.

The published system is trained again from other seeds. Beside each of these go a bank of the paper's routers on the very same
heads, and the paper's whole system: heads on the average alone, with a bank of routers. Each lies in a run directory of its
own under `arms/`, which borrows the backbone, the cache and perhaps the heads of another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from offramp_training.config import JobConfig
from offramp_training.heads import train_heads
from offramp_training.routers import train_routers
from offramp_training.run_directory import RunDirectory, say

STEP = "arms"


@dataclass(frozen=True, slots=True)
class Arm:
    """A system to compare: `own`, `bank` or `paper`, the seed's number, its configuration and where its files are."""

    kind: str
    replica: int
    job: JobConfig
    run: RunDirectory


def list_arms(job: JobConfig, run: RunDirectory) -> list[Arm]:
    """Every system of the comparison; the first is the one that is published."""
    arms = []
    for replica in range(job.proof.replicas):
        own_job = job.model_copy(update={"replica": replica})
        own = Arm("own", replica, own_job, run if replica == 0 else _borrowing(run, f"own-{replica}"))
        arms.append(own)
        if "bank" in job.proof.beside:
            bank_job = _with_bank(own_job)
            arms.append(Arm("bank", replica, bank_job, _borrowing(run, f"bank-{replica}")))
        if "paper" in job.proof.beside:
            heads = {"head_kind": "gap_mlp", "head_cascade": False, "head_hidden": job.proof.paper_head_hidden}
            paper_job = _with_bank(own_job, **heads)
            arms.append(Arm("paper", replica, paper_job, _borrowing(run, f"paper-{replica}")))
    return arms


def train_arms(job: JobConfig, run: RunDirectory) -> None:
    """Train what is not trained yet; a cut-off arm goes on where it stopped."""
    started = time.time()
    for arm in list_arms(job, run)[1:]:
        _borrow(run, arm.run, ("backbone", "cache"))
        if arm.kind == "bank":
            _borrow(run if arm.replica == 0 else _borrowing(run, f"own-{arm.replica}"), arm.run, ("heads",))
        say(STEP, f"{arm.kind}, seed {arm.replica}")
        for name, train in (("heads", train_heads), ("routers", train_routers)):
            if not arm.run.is_done(name):
                train(arm.job, arm.run)
    run.finish(STEP, job, started)


def _with_bank(job: JobConfig, **fields: object) -> JobConfig:
    """The job with the paper's routers, whatever grid and width the published ones have."""
    routers = job.routers.model_copy(update={"lambdas": job.proof.bank_lambdas})
    fields |= {"router_kind": "bank", "router_hidden": job.proof.bank_router_hidden}
    return job.model_copy(update={"network": job.network.model_copy(update=fields), "routers": routers})


def _borrowing(run: RunDirectory, name: str) -> RunDirectory:
    return RunDirectory(run.root / STEP / name)


def _borrow(lender: RunDirectory, borrower: RunDirectory, steps: Sequence[str]) -> None:
    borrower.root.mkdir(parents=True, exist_ok=True)
    for step in steps:
        link = borrower.root / step
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(lender.root / step, borrower.root))
