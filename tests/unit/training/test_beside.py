"""Another run's or bundle's figures beside this run's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offramp_training.beside import beside_markdown, load_reference
from offramp_training.config import JobError, load_config
from tests.unit.training.fakes import NETWORK


def test_a_run_and_the_bundle_that_it_published_give_the_same_table(forecast_run: Path, smoke_store: Path) -> None:
    metrics = json.loads((forecast_run / "evaluate" / "metrics.json").read_text())
    texts = [
        beside_markdown(metrics, load_reference(load_config("smoke", [f"proof.reference={path}"])))
        for path in (forecast_run, smoke_store / "smoke" / "2")
    ]
    assert texts[0] == texts[1]
    assert texts[0].startswith("## Beside smoke version 2\n")
    rows = [line.split(" | ") for line in texts[0].splitlines() if line.startswith(("| exit", "| full", "| routed"))]
    assert len(rows) > 6
    assert all(here == there.removesuffix(" |") for _, here, there in rows)


def test_figures_that_an_older_bundle_lacks_stay_empty(forecast_run: Path) -> None:
    metrics = json.loads((forecast_run / "evaluate" / "metrics.json").read_text())
    older = {name: value for name, value in metrics.items() if name != "proof"}
    reference = load_reference(load_config("smoke", [f"proof.reference={forecast_run}"]))
    assert reference is not None
    text = beside_markdown(metrics, type(reference)("older", older))
    assert "| full network | " in text
    assert all(line.endswith("| – |") for line in text.splitlines() if line.startswith("| routed"))


def test_without_a_reference_there_is_nothing() -> None:
    assert load_reference(load_config("smoke")) is None
    assert beside_markdown({}, None) == ""


def test_what_can_not_be_set_beside_is_refused(forecast_run: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"^proof\.reference: .* is no evaluated run and no bundle with figures"):
        load_reference(load_config("smoke", [f"proof.reference={tmp_path}"]))
    with pytest.raises(JobError, match=r"^proof\.reference: the full network of .* takes [\d,]+ MACs and this one's [\d,]+$"):
        load_reference(load_config("smoke", [NETWORK, f"proof.reference={forecast_run}"]))
