"""Our own client, library and command line, at a server that asks who is there."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import trustme

from offramp_client import Client, CredentialsError, PermissionDeniedError, Tls, UnauthenticatedError, UnavailableError
from offramp_server.app import Server
from offramp_server.config import Settings
from tests.integration.conftest import PATIENCE_S
from tests.unit.server.security.test_tokens import entry, write

TOKEN = "t0ken-of-camera"
NAME = "offramp.example"
PICTURE = np.zeros((8, 8, 3), np.uint8)


class Guarded:
    """A server under mutual TLS, for a name that is not its address, which knows one token."""

    def __init__(self, folder: Path) -> None:
        ca, clients = trustme.CA(), trustme.CA()
        self.ca, self.clients, self.tokens = folder / "ca.pem", folder / "clients.pem", folder / "tokens.toml"
        self.cert, self.key, self.own_cert, self.own_key = (folder / name for name in ("s.pem", "s.key", "c.pem", "c.key"))
        ca.cert_pem.write_to_path(self.ca)
        clients.cert_pem.write_to_path(self.clients)
        for issued, cert, key in (
            (ca.issue_cert(NAME), self.cert, self.key),
            (clients.issue_cert(common_name="camera-7"), self.own_cert, self.own_key),
        ):
            cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
            issued.private_key_pem.write_to_path(key)
        write(self.tokens, entry("camera", TOKEN, '"admin"'), entry("other", "0ther"))

    @property
    def tls(self) -> Tls:
        return Tls(self.ca, self.own_cert, self.own_key, NAME)


@pytest.fixture
def guarded(tmp_path: Path) -> Guarded:
    return Guarded(tmp_path)


@pytest.fixture
async def server(settings: Settings, guarded: Guarded) -> AsyncIterator[Server]:
    update = {
        "tls_cert_file": guarded.cert,
        "tls_key_file": guarded.key,
        "tls_client_ca_file": guarded.clients,
        "tokens_file": guarded.tokens,
    }
    async with Server(settings.model_copy(update=update)) as server:
        yield server


async def test_the_library_shows_its_certificate_and_its_token(server: Server, guarded: Guarded) -> None:
    address = server.grpc_address
    async with Client(address, tls=guarded.tls, token="0ther") as client:
        assert (await client.classify(PICTURE)).exit
        assert [result.unwrap().exit > 0 async for result in client.stream([PICTURE] * 2)] == [True, True]
        assert (await client.models())[0].name == "tiny"
        assert (await client.health()).serving
    async with Client(address, tls=guarded.tls) as client:
        assert (await client.health()).serving  # probes carry no token
        with pytest.raises(UnauthenticatedError, match="authorization: Bearer"):
            await client.classify(PICTURE)
    async with Client(address, tls=guarded.tls, token=TOKEN) as client:
        with pytest.raises(PermissionDeniedError, match="needs the scope classify, and client 'camera' has admin"):
            await client.classify(PICTURE)
    for tls in (Tls(guarded.ca, authority=NAME), Tls(guarded.ca, guarded.own_cert, guarded.own_key), None):
        async with Client(address, tls=tls, token="0ther") as client:
            with pytest.raises(UnavailableError):
                await client.classify(PICTURE)


async def test_a_certificate_names_its_client(settings: Settings, guarded: Guarded) -> None:
    update = {"tls_cert_file": guarded.cert, "tls_key_file": guarded.key, "tls_client_ca_file": guarded.clients}
    clients: list[str] = []

    class Listening:
        trace_id = ""

        def begin(self, method: str, metadata: object, request_id: str, client: str) -> None:
            clients.append(client)

        def close(self) -> None:
            pass

    async with (
        Server(settings.model_copy(update=update), tracing=Listening()) as server,
        Client(server.grpc_address, tls=guarded.tls) as client,
    ):
        assert (await client.models())[0].name == "tiny"
    assert clients == ["camera-7"]


async def test_the_command_takes_it_by_options_and_by_the_environment(server: Server, guarded: Guarded) -> None:
    async def offramp(*arguments: str, **environment: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "offramp_client", *arguments),
            env={**os.environ, "OFFRAMP_ADDRESS": server.grpc_address, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(PATIENCE_S):
            printed, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, printed.decode()

    options = ["--ca", str(guarded.ca), "--cert", str(guarded.own_cert), "--key", str(guarded.own_key), "--authority", NAME]
    code, printed = await offramp("stream", "demo", "--frames", "2", "--plain", *options, "--token", "0ther")
    assert (code, "2 classified" in printed) == (0, True), printed
    environment = {
        "OFFRAMP_TLS_CA": str(guarded.ca),
        "OFFRAMP_TLS_CERT": str(guarded.own_cert),
        "OFFRAMP_TLS_KEY": str(guarded.own_key),
        "OFFRAMP_TLS_AUTHORITY": NAME,
    }
    assert await offramp("health", **environment) == (0, "SERVING\n")
    code, printed = await offramp("models", OFFRAMP_TOKEN="wr0ng", **environment)
    assert code == 1
    assert printed.startswith("offramp: the token is not one of this server's")
    assert "wr0ng" not in printed


@pytest.mark.parametrize(
    ("tls", "words"),
    [
        (lambda guarded: Tls(ca=Path("/no/such/ca.pem")), ["can't read /no/such/ca.pem"]),
        (lambda guarded: Tls(ca=guarded.key), ["s.key holds no certificate"]),
        (lambda guarded: Tls(cert=guarded.own_cert), ["give both"]),
        (
            lambda guarded: Tls(cert=guarded.own_cert, key=guarded.key),
            ["c.pem and", "s.key are no certificate"],
        ),
    ],
)
def test_a_file_of_no_use_is_told_when_the_client_is_made(guarded: Guarded, tls: object, words: list[str]) -> None:
    with pytest.raises(CredentialsError) as caught:
        Client("localhost:1", tls=tls(guarded))  # type: ignore[operator]
    for word in words:
        assert word in str(caught.value)


def test_a_token_that_no_header_can_carry_is_refused_and_not_shown() -> None:
    with pytest.raises(CredentialsError) as caught:
        Client("localhost:1", token="s3cret\n")
    assert "s3cret" not in str(caught.value)
