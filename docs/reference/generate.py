"""Write cli.md and wire.md from the commands and the protos themselves; with --check, fail where they are not current."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import commands
import wire

PAGES: dict[str, Callable[[], str]] = {"cli.md": commands.render, "wire.md": wire.render}


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is not current")
    check = parser.parse_args().check
    stale = []
    for name, render in PAGES.items():
        page, text = Path(__file__).with_name(name), render()
        if check and (not page.exists() or page.read_text() != text):
            stale.append(name)
        elif not check:
            page.write_text(text)
    if stale:
        raise SystemExit(f"{', '.join(stale)}: not what the sources give: run make docs")


if __name__ == "__main__":
    main()
