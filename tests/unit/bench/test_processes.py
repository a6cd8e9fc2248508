"""Servers as processes: their CPU time with that of their children, pausing, and stopping all of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compare.processes import ServerProcess, StartError, cpu_seconds, tree

# a parent that burns CPU time, whose child does too, and who both wait then
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
exec(sys.argv[1])
"""
BURN = """
import time
while time.process_time() < 0.3: pass
print("burnt", flush=True)
time.sleep(600)
"""


def start(folder: Path, *command: str) -> ServerProcess:
    return ServerProcess([sys.executable, "-c", *command], {}, folder / "log.txt", folder)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline


def states(processes: list[int]) -> list[str]:
    return [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] for process in processes]


def test_cpu_time_counts_what_a_server_started_and_stopping_ends_it(tmp_path: Path) -> None:
    server = start(tmp_path, PARENT, BURN)
    try:
        until(lambda: (tmp_path / "log.txt").read_text().count("burnt") == 2)
        members = tree(server.pid)
        assert len(members) == 2
        assert server.cpu_s() >= 0.5  # 0.6 less what the kernel's ticks round away
        assert cpu_seconds(members[1]) < server.cpu_s()
        server.pause()
        until(lambda: states(members) == ["T", "T"])
        server.resume()
        until(lambda: "T" not in states(members))
    finally:
        server.stop()
    assert not any(Path(f"/proc/{member}").exists() and states([member]) != ["Z"] for member in members)


def test_a_server_that_ended_is_named_with_its_last_words(tmp_path: Path) -> None:
    server = start(tmp_path, "print('no licence'); raise SystemExit(3)")
    until(lambda: states([server.pid]) == ["Z"])
    with pytest.raises(StartError, match="ended with 3: no licence"):
        server.check()
    server.stop()


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="nowhere"):
        ServerProcess(["/nowhere/server"], {}, tmp_path / "log.txt", tmp_path)
