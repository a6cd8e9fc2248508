"""Settings: presets, files, overrides, and one-line errors that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from offramp_training.__main__ import app
from offramp_training.config import PRESETS, ConfigError, load_config


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_load(preset: str) -> None:
    job = load_config(preset)
    assert job.data.note
    assert list(job.routers.lambdas) == sorted(job.routers.lambdas)


def test_a_file_loads_and_overrides_win(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "data: {kind: synthetic}\nnetwork: {classes: 4}\nbackbone: {phases: [{size: 32, epochs: 2}]}\n"
        "routers: {lambdas: [0, 1]}\npublish: {name: own}\n"
    )
    job = load_config(str(path), ["seed=7", "heads.epochs=3", "backbone.phases=[{size: 8, epochs: 1}]", "publish.store=/tmp/x"])
    assert (job.seed, job.heads.epochs, job.backbone.phases[0].size) == (7, 3, 8)
    assert job.publish.store == Path("/tmp/x")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.peak_rate=-1", r"backbone\.peak_rate: Input should be greater than 0"),
        ("backbone.colour=red", r"backbone\.colour: Extra inputs are not permitted"),
        ("routers.lambdas=[1, 0]", "routers: lambdas must be strictly ascending"),
        ("routers.lambdas=[0, .nan]", r"routers\.lambdas\.1"),
        ("network.router_lambdas=[0, 1]", r"give routers\.lambdas instead"),
        ("network={widths: [8], blocks: [1]}", "at least two exits"),
        ("network.head_kind=conv", r"set cache\.feature_maps"),
        ("data.held_out_fraction=1.5", r"data\.held_out_fraction"),
        ("publish.name=Not A Name", r"publish\.name"),
        ("seed", "expected section.field=value"),
        ("seed.deeper=1", "seed is not a section"),
        ("seed=[", "not YAML"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_the_field(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("smoke", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1, 2]", "a: [", "hello"])
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--config", "absent"], "no configuration at 'absent'"),
        (["run", "--config", "smoke", "--set", "heads.epochs=0"], "heads.epochs"),
        (["heads", "--config", "smoke"], "step 'cache' has not finished"),
        (["publish", "--config", "smoke"], "step 'report' has not finished"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, [*arguments, "--run-dir", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_help_names_every_step() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for step in ("run", "backbone", "cache", "heads", "routers", "evaluate", "report", "publish"):
        assert step in result.stdout
