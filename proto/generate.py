"""Regenerate the committed protobuf code: `python proto/generate.py`; with --check, fail when it is stale."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent
PROTOS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.proto"))


def generate(target: Path) -> None:
    """Write *_pb2.py, *_pb2.pyi and *_pb2_grpc.py under `target`."""
    arguments = ["protoc", f"-I{ROOT}", f"--python_out={target}", f"--pyi_out={target}", f"--grpc_python_out={target}", *PROTOS]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")


def check() -> None:
    """Exit with 1 and name the files when the committed code is not what the protos give."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.relative_to(folder): path.read_text() for path in Path(folder).rglob("*_pb2*") if path.is_file()}
    stale = [str(name) for name, text in fresh.items() if not (ROOT / name).is_file() or (ROOT / name).read_text() != text]
    if stale:
        raise SystemExit(f"stale, run `python proto/generate.py`: {', '.join(sorted(stale))}")


if __name__ == "__main__":
    check() if sys.argv[1:] == ["--check"] else generate(ROOT)
