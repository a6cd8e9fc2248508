"""The server's command as a process of its own: signals, exit codes, the log."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import grpc.aio

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from tests.integration.conftest import PATIENCE_S, publish_tiny, until
from tests.integration.messages import config, frame, send

Stub = classification_pb2_grpc.ClassificationServiceStub


def command(store: Path, *arguments: str) -> list[str]:
    flags = [
        "--store",
        str(store),
        "--grpc-port",
        "0",
        "--http-port",
        "0",
        "--device",
        "cpu",
        "--torch-threads",
        "1",
        "--log-format",
        "json",
    ]
    return [sys.executable, "-m", "offramp_server", *flags, *arguments]


async def test_sigterm_answers_what_was_taken_and_exits_with_0(tiny_store: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    process = await asyncio.create_subprocess_exec(
        *command(tiny_store, "--ready-file", str(ready)), stderr=asyncio.subprocess.PIPE
    )
    try:
        await until(ready.exists)
        addresses = json.loads(ready.read_text())
        async with grpc.aio.insecure_channel(addresses["grpc"]) as channel:
            call = Stub(channel).StreamClassify()
            await call.write(config())

            draining = asyncio.Event()

            async def write() -> None:
                for n in itertools.count():
                    if draining.is_set():
                        break
                    await call.write(send(frame(n)))
                await call.done_writing()

            writer = asyncio.create_task(write())
            responses = []
            async for response in call:
                responses.append(response)
                if len(responses) == 10:
                    process.send_signal(signal.SIGTERM)
                if response.status.state == pb.StreamStatus.STATE_DRAINING:
                    draining.set()
            await writer
            assert await call.code() is grpc.StatusCode.OK
        async with asyncio.timeout(PATIENCE_S):
            _, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert responses[-1].status.state == pb.StreamStatus.STATE_DRAINING
    answers = responses[1:-1]
    assert [answer.result.frame_id for answer in answers] == list(range(len(answers)))
    assert all(answer.result.HasField("classification") for answer in answers)
    lines = [json.loads(line) for line in log.splitlines()]
    serving = next(line for line in lines if line["message"] == "serving")
    assert {"grpc": serving["grpc"], "http": serving["http"]} == addresses
    assert [line["message"] for line in lines][-3:] == ["draining", "call ended", "stopped"]
    assert lines[-2]["frames"] == len(answers)
    assert not ready.exists()


async def test_a_second_signal_ends_a_drain_at_once() -> None:
    script = """
import asyncio
from offramp_server import app
from offramp_server.config import Settings

async def start(self):
    print("up", flush=True)

async def drain_for_ever(self):
    print("draining", flush=True)
    await asyncio.Event().wait()

app.Server.startup, app.Server.shutdown = start, drain_for_ever
app.run(Settings())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        for word in (b"up\n", b"draining\n"):
            assert await process.stdout.readline() == word
            process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 128 + signal.SIGTERM


def test_a_damaged_bundle_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    bundle = publish_tiny(tmp_path)
    weights = bundle.path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x00")
    result = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=PATIENCE_S * 2, env=os.environ)
    assert result.returncode == 1
    errors = [line for line in map(json.loads, result.stderr.splitlines()) if line["level"] == "error"]
    assert len(errors) == 1
    assert "weights.safetensors" in errors[0]["message"]
    assert "exception" not in errors[0]
