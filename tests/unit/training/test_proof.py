"""The comparison at equal costs on a run whose backbone is untrained: who takes part, and from which settings."""

from __future__ import annotations

import pytest

from offramp_training.arms import train_arms
from offramp_training.config import JobConfig
from offramp_training.heads import train_heads
from offramp_training.proof import prove
from offramp_training.routers import train_routers
from offramp_training.run_directory import RunDirectory
from tests.unit.training.fakes import make_features, make_run, tiny_job

JOB = (
    "heads.epochs=2",
    "network.router_kind=forecast",
    "forecast={steps: 3, weight_decays: [0.1], folds: 2, temperatures: [0.1]}",
    "routers.lambdas=[0, 1]",
    "routers.iterations=1",
    "routers.training_iterations=1",
    "proof={beside: [bank, paper], bank_lambdas: [0, 1], bank_router_hidden: 5, costs: [0.7, 1.5], rule_steps: 2}",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobConfig, RunDirectory]:
    """A run that has come as far as its arms; read-only for tests."""
    job = tiny_job(*JOB)
    train, held_out = make_features(40, 1, (1, 2, 3), seed=1), make_features(60, 2, (1, 2, 3), seed=2)
    run = make_run(tmp_path_factory.mktemp("run"), job, train, held_out)
    for step in (train_heads, train_routers, train_arms):
        step(job, run)
    return job, run


FITTED = {
    "Learned scores (EENet)",
    "Halting network (PonderNet)",
    "FiLM router (YOTO)",
    "Backward induction",
    "Forecast, cross-fitted",
    "Forecast of log-likelihood",
}


@pytest.mark.parametrize("steps", [2, 0])
def test_everybody_takes_part_and_what_is_fitted_only_where_asked_for(
    trained: tuple[JobConfig, RunDirectory], steps: int
) -> None:
    job, run = trained
    job = job.model_copy(update={"proof": job.proof.model_copy(update={"rule_steps": steps})})
    proof = prove(job, run, make_features(60, 2, (1, 2, 3), seed=2), make_features(30, 1, (1, 2, 3), seed=3))
    unfitted = {"Fixed mixtures", "Entropy", "Max-softmax", "Patience", "Forecast routing"}
    others = {"EM bank", "EM bank, paper's heads", "Entropy, paper's heads"}
    assert set(proof["methods"]) == unfitted | others | (FITTED if steps else set())
    for row in proof["methods"].values():
        assert len(row) == 2
        assert row[1] is None  # nothing costs so much


def test_banks_have_routers_of_their_own_width(trained: tuple[JobConfig, RunDirectory]) -> None:
    _, run = trained
    widths = {
        kind: RunDirectory(run.root / "arms" / f"{kind}-0").result("routers")["config"]["network"]["router_hidden"]
        for kind in ("bank", "paper")
    }
    assert widths == {"bank": 5, "paper": 5}
