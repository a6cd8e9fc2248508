"""Step 4: the routers, of the kind that the configuration names."""

from __future__ import annotations

from offramp_training.bank import train_bank
from offramp_training.config import JobConfig
from offramp_training.forecast import train_forecasts
from offramp_training.run_directory import RunDirectory


def train_routers(job: JobConfig, run: RunDirectory) -> None:
    """Write routers.safetensors."""
    train = train_forecasts if job.network.router_kind == "forecast" else train_bank
    train(job, run)
