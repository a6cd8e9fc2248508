"""Settings: who wins over whom, and how a bad value is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from offramp_server.config import ConfigError, Settings, build_parser, load_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"OFFRAMP_{name.upper()}", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text('grpc_port = 1\nhttp_port = 1\nmax_batch = 1\nmodels = ["a", "b:2"]\n')
    return path


def test_flags_win_over_the_environment_over_the_file_over_the_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRAMP_GRPC_PORT", "2")
    monkeypatch.setenv("OFFRAMP_HTTP_PORT", "2")
    settings = load_settings(["--config", str(file), "--grpc-port", "3"])
    assert (settings.grpc_port, settings.http_port, settings.max_batch, settings.max_in_flight) == (3, 2, 1, 1024)


def test_the_environment_can_name_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRAMP_CONFIG", str(file))
    assert load_settings([]).max_batch == 1


@pytest.mark.parametrize("source", ["flag", "environment", "file"])
def test_models_are_a_list_wherever_they_come_from(source: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if source == "environment":
        monkeypatch.setenv("OFFRAMP_MODELS", "a, b:2")
    arguments = {"flag": ["--models", "a,b:2"], "environment": [], "file": ["--config", str(file)]}[source]
    assert load_settings(arguments).models == ("a", "b:2")


def test_factories_are_allowed_one_by_one() -> None:
    assert Settings().allow_factory == ()
    assert load_settings(["--allow-factory", "my.stages:make, other:make"]).allow_factory == ("my.stages:make", "other:make")


def test_the_default_store_lies_beside_the_model_store_package() -> None:
    import offramp_model

    assert offramp_model.__file__ is not None
    assert Settings().store == Path(offramp_model.__file__).parents[1] / "bundles"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grpc-port", "70000"], ["grpc_port", "--grpc-port", "OFFRAMP_GRPC_PORT", "'70000'"]),
        (["--max-batch", "many"], ["max_batch", "'many'"]),
        (["--max-batch", "0"], ["max_batch", "greater than 0"]),
        (["--drain-timeout-s", "nan"], ["drain_timeout_s"]),
        (["--log-format", "xml"], ["log_format", "'json'"]),
        (["--models", "a,B"], ["models", "'B' is neither NAME nor NAME:VERSION"]),
        (["--models", "a,a"], ["models", "twice"]),
        (["--allow-factory", "my.stages:make,my.stages"], ["allow_factory", "'my.stages' is not PACKAGE.MODULE:FUNCTION"]),
        (["--models", "../a"], ["models", "'../a' is neither NAME nor NAME:VERSION"]),
        (["--models", "a:../1"], ["models", "'a:../1'"]),
        (["--no-such-flag"], ["--no-such-flag"]),
        (["--host", "0.0.0.0"], ["0.0.0.0", "--tls-cert-file", "--insecure"]),
        (["--host", "::", "--insecure", "false"], ["::", "--insecure"]),
        (["--host", "server.example"], ["server.example", "--insecure"]),
        (["--host", "0.0.0.0", "--insecure", "--model-control", "explicit"], ["model_control", "--tokens-file"]),
        (["--insecure", "maybe"], ["insecure", "OFFRAMP_INSECURE", "'maybe'"]),
        (["--insecure", "--tls-cert-file", "a", "--tls-key-file", "b"], ["insecure", "tls_cert_file"]),
        (["--tls-cert-file", "a"], ["tls_cert_file", "tls_key_file"]),
        (["--tls-client-ca-file", "a"], ["tls_client_ca_file", "tls_cert_file"]),
        (["--grpc"], ["--grpc"]),
        (["--config", "/no/such/file"], ["config", "/no/such/file"]),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_setting(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(arguments)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"), [("max_bacth = 3", "max_bacth"), ("max_batch = [", "TOML"), ("max_batch = 0", "max_batch")]
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=word) as caught:
        load_settings(["--config", str(path)])
    assert "\n" not in str(caught.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().max_batch = 2  # type: ignore[misc]


def test_help_shows_every_setting_with_its_default() -> None:
    text = " ".join(build_parser().format_help().split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description
        assert " ".join(field.description.split()) in text
    assert "(default: 50051)" in text


def test_the_command_exits_with_2_and_one_line() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "offramp_server", "--max-batch", "x"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("offramp-server: max_batch")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_a_loopback_address_needs_no_leave(host: str) -> None:
    assert load_settings(["--host", host, "--model-control", "explicit"]).host == host


def test_plaintext_for_others_can_be_asked_for_wherever_settings_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings(["--host", "0.0.0.0", "--insecure"]).insecure
    assert load_settings(["--insecure", "--host", "0.0.0.0"]).insecure
    file = tmp_path / "server.toml"
    file.write_text('host = "0.0.0.0"\ninsecure = true\n')
    assert load_settings(["--config", str(file)]).insecure
    monkeypatch.setenv("OFFRAMP_INSECURE", "true")
    assert load_settings(["--host", "::"]).insecure
    assert not load_settings(["--insecure", "false"]).insecure


def test_tls_needs_no_leave() -> None:
    tls = ["--tls-cert-file", "a", "--tls-key-file", "b"]
    assert load_settings(["--host", "0.0.0.0", *tls]).tls_cert_file == Path("a")
    explicit = ["--model-control", "explicit", "--tokens-file", "c"]
    assert load_settings(["--host", "0.0.0.0", *tls, *explicit]).tokens_file == Path("c")
