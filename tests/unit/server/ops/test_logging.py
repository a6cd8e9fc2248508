"""Logs: one line a record, with the request id and the record's own fields."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from offramp_server.ops.logging import JsonFormatter, TextFormatter, configure_logging


@pytest.fixture(autouse=True)
def _restore_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def record(message: str, error: Exception | None = None, **fields: object) -> logging.LogRecord:
    exc_info = (type(error), error, None) if error else None
    made = logging.LogRecord("offramp.test", logging.WARNING, __file__, 1, message, (), exc_info)
    vars(made).update(fields)
    return made


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_record_is_one_line_whatever_it_holds(formatter: logging.Formatter) -> None:
    line = formatter.format(record("two\nlines\r", ValueError("three\nlines"), detail="a\nb"))
    assert "\n" not in line
    assert "\r" not in line
    assert "three" in line


def test_text_ends_with_the_records_own_fields() -> None:
    line = TextFormatter().format(record("serving", grpc="localhost:1", models="m:1"))
    assert line.endswith("WARNING offramp.test: serving grpc=localhost:1 models=m:1")


def test_json_holds_the_records_own_fields() -> None:
    entry = json.loads(JsonFormatter().format(record("serving", in_flight=3)))
    assert (entry["level"], entry["logger"], entry["message"], entry["in_flight"]) == ("warning", "offramp.test", "serving", 3)


def test_the_request_id_and_the_level_hold_for_every_logger(capsys: pytest.CaptureFixture[str]) -> None:
    ids = iter(["abc", ""])
    configure_logging("info", "json", lambda: next(ids))
    logging.getLogger("anything").debug("too quiet")
    logging.getLogger("anything").info("within a call")
    logging.getLogger("anything").info("outside")
    within, outside = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert within["request_id"] == "abc"
    assert "request_id" not in outside
