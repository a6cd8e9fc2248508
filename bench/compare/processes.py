"""Servers as processes: started, paused while others are measured, stopped; and the CPU time of all that one of them started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
STOP_TIMEOUT_S = 10.0
CHILDREN_TIMEOUT_S = 3.0


class StartError(Exception):
    """A server can't be installed, started or used; the message is one line."""


def tree(root: int) -> list[int]:
    """A process and all its descendants, as they are now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, pending = [], [root]
    while pending:
        found.append(pending.pop())
        pending += children.get(found[-1], [])
    return found


def cpu_seconds(root: int) -> float:
    """CPU time of a process and its descendants so far, user and system, those that have ended included."""
    ticks = 0
    for process in tree(root):
        if fields := _stat(process):
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / TICKS_A_SECOND


def machine_busy_seconds() -> float:
    """CPU time that the whole machine has been busy for, steal included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_A_SECOND


def _lives(process: int) -> bool:
    return _stat(process)[:1] not in ([], ["Z"])


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty where the process is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class ServerProcess:
    """A server that was started here."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], log: Path, folder: Path) -> None:
        """Start it in `folder`, with what it prints in `log`. Raises StartError where there is no such program."""
        self._log = log
        # what belongs to this process's own environment must not be seen by the peers'
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "OFFRAMP_"))}
        with log.open("wb") as output:
            try:
                self._process = subprocess.Popen(
                    list(map(str, command)),
                    env={**inherited, **environment},
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            except OSError as error:
                raise StartError(f"{command[0]}: {error.strerror}") from None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def cpu_s(self) -> float:
        """CPU time used so far, by it and what it started."""
        return cpu_seconds(self._process.pid)

    def check(self) -> None:
        """Raise StartError, with the end of its log, where it has ended."""
        if (code := self._process.poll()) is not None:
            raise StartError(f"ended with {code}: {self.last_words()}")

    def last_words(self) -> str:
        """The last line of its log that says something."""
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it printed nothing"

    def pause(self) -> None:
        """Let it use no CPU until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ask it to end, and end what is left of it after a while."""
        self.resume()
        members = tree(self._process.pid)
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for member in filter(_lives, members[1:]):
                _send(member, number)
            deadline = time.monotonic() + CHILDREN_TIMEOUT_S
            while any(map(_lives, members[1:])) and time.monotonic() < deadline:
                time.sleep(0.1)

    def _signal(self, number: int) -> None:
        for member in tree(self._process.pid):
            _send(member, number)


def _send(process: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has ended by itself
        os.kill(process, number)
