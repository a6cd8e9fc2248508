"""Logs: the standard library's records, formatted by structlog, one line each, for people or as JSON."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal, TextIO

from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.processors import EventRenamer, JSONRenderer, TimeStamper, format_exc_info
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name

Entry = MutableMapping[str, Any]


def configure_logging(
    level: str, form: Literal["text", "json"], find_fields: Callable[[], Mapping[str, str]], stream: TextIO | None = None
) -> None:
    """Send every record of the process to `stream`, standard error where none is given.

    A line has the record's own fields (`extra`), and those that `find_fields` gives where it is written: a call's request id,
    client and trace.
    """
    stream = stream or sys.stderr

    def add_fields(_: object, __: str, entry: Entry) -> Entry:
        for name, value in find_fields().items():
            entry.setdefault(name, value)
        return entry

    collect: list[Any] = [TimeStamper(fmt="iso", utc=True, key="time"), add_log_level, add_logger_name, ExtraAdder(), add_fields]
    render: list[Any]
    if form == "json":
        render = [format_exc_info, EventRenamer("message"), JSONRenderer(ensure_ascii=False)]
    else:
        # pads nothing, and no record makes two lines: what callers send can't pretend to be a record of its own
        console = ConsoleRenderer(
            colors=stream.isatty(),
            pad_event_to=0,
            pad_level=False,
            sort_keys=False,
            timestamp_key="time",
            exception_formatter=plain_traceback,
        )
        render = [_escape_fields, console, _join_lines]
    formatter = ProcessorFormatter(
        foreign_pre_chain=collect, processors=[ProcessorFormatter.remove_processors_meta, *render], logger=None
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _escape_fields(_: object, __: str, entry: Entry) -> Entry:
    """What a terminal would act on, escaped; JSON has escapes of its own."""
    for name, value in entry.items():
        if isinstance(value, str) and not value.isprintable():
            entry[name] = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in value)
    return entry


def _join_lines(_: object, __: str, line: str) -> str:
    return line.replace("\r", "\\r").replace("\n", "\\n")
