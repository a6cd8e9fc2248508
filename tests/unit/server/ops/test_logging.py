"""Logs: one line a record, with the call's fields and the record's own."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from offramp_server.ops.logging import configure_logging

HOSTILE = "two\nlines\r\x1b[31m"


@pytest.fixture(autouse=True)
def _restore_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_record_is_one_line_whatever_it_holds(form: str) -> None:
    out = io.StringIO()
    configure_logging("info", form, lambda: {"client": HOSTILE}, out)  # type: ignore[arg-type]
    try:
        raise ValueError("three\nlines")
    except ValueError:
        logging.getLogger("offramp.test").exception("a fault: %s", HOSTILE, extra={"detail": HOSTILE})
    line, rest = out.getvalue().split("\n", 1)
    assert rest == ""
    assert "\r" not in line
    assert "\x1b" not in line
    assert "three" in line
    assert "Traceback" in line


def test_text_has_the_message_and_the_records_own_fields() -> None:
    out = io.StringIO()
    configure_logging("info", "text", dict, out)
    logging.getLogger("offramp.test").warning("serving", extra={"grpc": "localhost:1", "models": "m:1"})
    line = out.getvalue()
    for word in ("[warning]", "serving", "[offramp.test]", "grpc=localhost:1", "models=m:1"):
        assert word in line


def test_json_holds_the_records_own_fields() -> None:
    out = io.StringIO()
    configure_logging("info", "json", dict, out)
    logging.getLogger("offramp.test").warning("serving at λ = %d", 2, extra={"in_flight": 3, "exits": {"1": 2}})
    entry = json.loads(out.getvalue())
    assert (entry["level"], entry["logger"], entry["message"]) == ("warning", "offramp.test", "serving at λ = 2")
    assert (entry["in_flight"], entry["exits"]) == (3, {"1": 2})


def test_the_calls_fields_and_the_level_hold_for_every_logger(capsys: pytest.CaptureFixture[str]) -> None:
    fields = iter([{"request_id": "abc"}, {}, {"request_id": "abc"}])
    configure_logging("info", "json", lambda: next(fields))
    logging.getLogger("anything").debug("too quiet")
    logging.getLogger("anything").info("within a call")
    logging.getLogger("anything").info("outside")
    logging.getLogger("anything").info("of another", extra={"request_id": "own"})
    within, outside, own = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert within["request_id"] == "abc"
    assert "request_id" not in outside
    assert own["request_id"] == "own"
