"""Notices that files have changed."""

from __future__ import annotations

from pathlib import Path

Look = tuple[tuple[int, int, int] | None, ...]


class FileWatch:
    """Compares what `stat` says of some files with what it said before; looks when asked, never by itself.

    Links are followed, so a mounted secret that is swapped by its link counts as changed.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen = self.look()

    def look(self) -> Look:
        """Time, size and inode of each file; None for one that is not there."""
        return tuple(_stat(path) for path in self._paths)

    def changed(self) -> bool:
        """Whether any of them differs from when this was last asked; costs a `stat` each."""
        seen, self._seen = self._seen, self.look()
        return seen != self._seen


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
