"""What importing the client may bring in, and what it shows."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from google.protobuf.message import Message

import offramp_client


@pytest.mark.parametrize("module", ["offramp_client", "offramp_client.cli"])
def test_importing_the_client_brings_in_neither_torch_nor_the_server_nor_an_extra(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "offramp_client" in loaded
    assert not loaded & {"torch", "offramp_server", "offramp_model", "offramp_training", "cv2", "matplotlib", "scipy"}


def test_public_names_are_there_and_sorted() -> None:
    assert offramp_client.__all__ == sorted(offramp_client.__all__)
    for name in offramp_client.__all__:
        assert inspect.getdoc(getattr(offramp_client, name)), name


def test_no_public_name_is_a_protobuf_message() -> None:
    for name in offramp_client.__all__:
        shown = getattr(offramp_client, name)
        assert not (inspect.isclass(shown) and issubclass(shown, Message))


def test_the_package_says_that_it_is_typed() -> None:
    from importlib.resources import files

    assert (files("offramp_client") / "py.typed").is_file()
