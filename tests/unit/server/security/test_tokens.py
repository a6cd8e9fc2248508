"""The tokens file: read, followed, and never told of."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from offramp_server.errors import OverloadedError, PermissionDeniedError, UnauthenticatedError
from offramp_server.security import tokens as module
from offramp_server.security.command import make_token
from offramp_server.security.tokens import LOOK_EVERY_S, Tokens, TokensError

SECRET, OTHER = "s3cret-of-gate-3", "s3cret-of-ops"


def entry(name: str, token: str, scopes: str = '"classify"', more: str = "") -> str:
    return f'[[clients]]\nname = "{name}"\ntoken_sha256 = ["{sha256(token.encode()).hexdigest()}"]\nscopes = [{scopes}]\n{more}\n'


def write(path: Path, *entries: str) -> Path:
    beside = path.with_suffix(".new")
    beside.write_text("\n".join(entries))
    os.replace(beside, path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "tokens.toml", entry("gate-3", SECRET), entry("ops", OTHER, '"classify", "admin"'))


@pytest.fixture
def tokens(file: Path) -> Tokens:
    return Tokens(file, lambda: 0.0)


def bearer(token: str) -> list[str]:
    return [f"Bearer {token}"]


def test_a_client_is_known_by_its_token_and_may_do_what_its_scopes_say(tokens: Tokens) -> None:
    gate, ops = tokens.identify(bearer(SECRET)), tokens.identify([f"bearer  {OTHER}"])
    assert (gate.name, ops.name) == ("gate-3", "ops")
    gate.require("classify")
    ops.require("admin")
    with pytest.raises(PermissionDeniedError, match="needs the scope admin, and client 'gate-3' has classify"):
        gate.require("admin")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Bearer"],
        [SECRET],
        [f"Basic {SECRET}"],
        bearer("wrong-token"),
        bearer(SECRET) * 2,
        bearer(f"{SECRET} x"),
        bearer("τ"),
    ],
)
def test_what_is_no_token_of_ours_is_refused_without_a_word_of_it(tokens: Tokens, headers: list[str]) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        tokens.identify(headers)
    for word in (SECRET, "wrong-token", "Basic", "τ"):
        assert word not in str(caught.value)


def test_every_digest_is_compared_in_constant_time_whichever_fits(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    real = module.hmac.compare_digest

    def count(known: str, given: str) -> bool:
        compared.append((known, given))
        return real(known, given)

    monkeypatch.setattr(module.hmac, "compare_digest", count)
    tokens.identify(bearer(SECRET))
    assert len(compared) == 2
    assert all(given == sha256(SECRET.encode()).hexdigest() for _, given in compared)


def test_a_changed_file_holds_for_callers_who_are_already_known(file: Path) -> None:
    now = 0.0
    tokens = Tokens(file, lambda: now)
    gate, ops = tokens.identify(bearer(SECRET)), tokens.identify(bearer(OTHER))
    gate.enter_frame()
    write(file, entry("gate-3", SECRET, more="max_in_flight = 1"), entry("ops", "a-new-one"))
    gate.enter_frame()  # the file is not looked at for every frame
    now = LOOK_EVERY_S
    with pytest.raises(OverloadedError, match="max_in_flight"):
        gate.enter_frame()
    with pytest.raises(UnauthenticatedError):
        ops.enter_frame()
    with pytest.raises(UnauthenticatedError):
        tokens.identify(bearer(OTHER))
    assert tokens.identify(bearer("a-new-one")).name == "ops"


def test_two_tokens_of_one_client_share_its_limits(tmp_path: Path) -> None:
    digests = [sha256(token.encode()).hexdigest() for token in ("old", "new")]
    text = f'[[clients]]\nname = "a"\ntoken_sha256 = {digests!r}\nscopes = ["classify"]\nmax_streams = 1\n'
    tokens = Tokens(write(tmp_path / "tokens.toml", text), lambda: 0.0)
    tokens.identify(bearer("old")).enter_stream()
    with pytest.raises(OverloadedError):
        tokens.identify(bearer("new")).enter_stream()


def test_a_change_that_cannot_be_read_leaves_the_former_in_force(
    file: Path, tokens: Tokens, caplog: pytest.LogCaptureFixture
) -> None:
    write(file, "[[clients]", SECRET)
    assert tokens.identify(bearer(SECRET)).name == "gate-3"
    assert "the tokens stay as they were: tokens_file" in caplog.text
    assert SECRET not in caplog.text
    file.unlink()
    assert tokens.identify(bearer(SECRET)).name == "gate-3"


DIGEST = sha256(b"x").hexdigest()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clients = 3", ["clients"]),
        ("", ["clients", "required"]),
        ("[[clients]]\nname = 3", ["clients.0.name"]),
        (entry("a b", "x"), ["clients.0.name"]),
        (entry("a", "x", '"root"'), ["clients.0.scopes", "'admin'"]),
        (entry("a", "x", ""), ["clients.0.scopes"]),
        (entry("a", "x").replace(DIGEST, SECRET), ["clients.0.token_sha256.0"]),
        (entry("a", "x", more="max_streams = 0"), ["clients.0.max_streams"]),
        (entry("a", "x", more="max_frames_per_s = inf"), ["clients.0.max_frames_per_s"]),
        (entry("a", "x", more="max_stream = 1"), ["clients.0.max_stream"]),
        (entry("a", "x") + entry("a", "y"), ["the name a", "twice"]),
        (entry("a", "x") + entry("b", "x"), ["token_sha256", "twice"]),
        (f"{SECRET} = [", ["not TOML (at end of document)"]),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_place_and_no_secret(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(TokensError) as caught:
        Tokens(write(tmp_path / "tokens.toml", text), lambda: 0.0)
    message = str(caught.value)
    assert message.startswith("tokens_file: ")
    assert "\n" not in message
    assert SECRET not in message
    for word in words:
        assert word in message


def test_the_command_makes_an_entry_that_takes_its_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_token(["gate-3", "--scopes", "classify,admin"]) == 0
    printed = capsys.readouterr()
    token = printed.err.strip()
    assert token not in printed.out
    assert len(token) >= 43
    caller = Tokens(write(tmp_path / "tokens.toml", printed.out), lambda: 0.0).identify(bearer(token))
    caller.require("admin")
    for arguments in (['a"b'], ["a", "--scopes", "root"], ["a", "--scopes", ""]):
        assert make_token(arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
