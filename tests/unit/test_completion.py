"""What bash offers after Tab, asked of a real bash with the scripts that the commands themselves give."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from offramp_client import Policy
from offramp_training.presets import PRESETS

ROOT = Path(__file__).parents[2]
NOBODY = "127.0.0.1:1"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.unit.client.fake_server"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def offered(path: str, script: str, line: str, address: str = NOBODY) -> list[str]:
    """What Tab offers at the end of a line, after bash has read the script; silent on stderr, as a prompt needs it."""
    words = line.split(" ")
    asked = f"""
        source <({script})
        COMP_WORDS=({" ".join(shlex.quote(word) for word in words)}) COMP_CWORD={len(words) - 1}
        COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}
        entry=$(complete -p {words[0]}); function_name=${{entry#*-F }}
        "${{function_name%% *}}" {words[0]} {shlex.quote(words[-1])} {shlex.quote(words[-2])}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = os.environ | {"PATH": path, "OFFRAMP_ADDRESS": address}
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
    assert done.stderr == ""
    return done.stdout.split()


CLIENT = "_OFFRAMP_COMPLETE=source_bash offramp"
TRAIN = "_OFFRAMP_TRAIN_COMPLETE=source_bash offramp-train"
SERVER = f"{shlex.quote(sys.executable)} -m shtab --shell=bash --prog offramp-server offramp_server.config.build_parser"


def test_the_client_completes_commands_options_and_policies(installed_path: str) -> None:
    assert {"stream", "classify", "sweep"} <= set(offered(installed_path, CLIENT, "offramp "))
    assert offered(installed_path, CLIENT, "offramp stream --max-m") == ["--max-mean-cost"]
    assert offered(installed_path, CLIENT, "offramp stream --policy ") == list(Policy)


def test_the_client_completes_what_the_server_has_loaded(installed_path: str, address: str) -> None:
    assert offered(installed_path, CLIENT, "offramp stream --model ", address) == ["resnet18-cifar10"]
    assert offered(installed_path, CLIENT, "offramp points --version ", address) == ["1"]
    assert offered(installed_path, CLIENT, f"offramp points --model resnet18-cifar10 --address {address} --version ") == ["1"]


def test_a_server_that_does_not_answer_offers_no_model(installed_path: str) -> None:
    assert offered(installed_path, CLIENT, "offramp stream --model ") == []


def test_the_training_completes_steps_and_presets(installed_path: str) -> None:
    assert {"run", "heads", "publish", "attack"} <= set(offered(installed_path, TRAIN, "offramp-train "))
    assert offered(installed_path, TRAIN, "offramp-train run --config ") == list(PRESETS)


def test_the_server_completes_its_settings(installed_path: str) -> None:
    assert offered(installed_path, SERVER, "offramp-server --grpc-p") == ["--grpc-port"]


def test_neither_client_nor_training_waits_for_torch_to_complete() -> None:
    code = "import sys, offramp_client.cli, offramp_training.__main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
