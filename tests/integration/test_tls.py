"""TLS and mutual TLS on live servers, with certificates that are replaced while they run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest
import trustme

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from offramp_server.app import Server, StartupError
from offramp_server.config import Settings
from tests.integration.messages import config, frame, send

Stub = classification_pb2_grpc.ClassificationServiceStub


class Files:
    """A server's certificate, key and client CA on disk, replaced as a renewal would."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key, self.client_ca = (folder / name for name in ("server.pem", "server.key", "clients.pem"))

    def issue(self, ca: trustme.CA) -> None:
        self.write_pair(ca.issue_cert("localhost", "127.0.0.1"))

    def write_pair(self, issued: trustme.LeafCert) -> None:
        replace(self.certificate, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        replace(self.key, issued.private_key_pem.bytes())

    def settings(self, base: Settings, *, mutual: bool = False) -> Settings:
        update = {"tls_cert_file": self.certificate, "tls_key_file": self.key}
        return base.model_copy(update=update | ({"tls_client_ca_file": self.client_ca} if mutual else {}))


def replace(path: Path, data: bytes) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(data)
    os.replace(beside, path)


@pytest.fixture(scope="module")
def authorities() -> tuple[trustme.CA, trustme.CA]:
    return trustme.CA(), trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authorities: tuple[trustme.CA, trustme.CA]) -> Files:
    found = Files(tmp_path)
    found.issue(authorities[0])
    return found


def channel(server: Server, ca: trustme.CA, client: trustme.LeafCert | None = None) -> grpc.aio.Channel:
    key = client.private_key_pem.bytes() if client else None
    chain = b"".join(blob.bytes() for blob in client.cert_chain_pems) if client else None
    credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes(), key, chain)
    # a pool of its own, so that no channel answers from the connection of another
    return grpc.aio.secure_channel(server.grpc_address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


async def answers(channel: grpc.aio.Channel) -> bool:
    code = await Stub(channel).Classify(pb.ClassifyRequest(frame=frame())).code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    return code is grpc.StatusCode.OK


async def test_frames_are_streamed_over_tls_and_plaintext_is_not_heard(
    settings: Settings, files: Files, authorities: tuple[trustme.CA, trustme.CA]
) -> None:
    async with Server(files.settings(settings)) as server:
        async with channel(server, authorities[0]) as secure:
            call = Stub(secure).StreamClassify(iter([config(), send(frame(0)), send(frame(1))]))
            assert [each.result.frame_id async for each in call][1:] == [0, 1]
        async with channel(server, authorities[1]) as deceived, grpc.aio.insecure_channel(server.grpc_address) as plain:
            assert not await answers(deceived)
            assert not await answers(plain)


async def test_a_renewed_certificate_is_shown_to_new_connections_and_old_ones_live_on(
    settings: Settings, files: Files, authorities: tuple[trustme.CA, trustme.CA], caplog: pytest.LogCaptureFixture
) -> None:
    former, renewed = authorities
    async with Server(files.settings(settings)) as server, channel(server, former) as early:
        call = Stub(early).StreamClassify()
        await call.write(config())
        assert (await call.read()).HasField("status")
        files.issue(renewed)
        async with channel(server, renewed) as late, channel(server, former) as outdated:
            assert await answers(late)
            assert not await answers(outdated)
        await call.write(send(frame(7)))
        assert (await call.read()).result.frame_id == 7
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        # a renewal that stops half-way: the certificate is there, its key is not yet
        replace(files.certificate, b"".join(blob.bytes() for blob in former.issue_cert("localhost", "127.0.0.1").cert_chain_pems))
        async with channel(server, renewed) as meanwhile:
            assert await answers(meanwhile)
        assert "tls_key_file" in caplog.text
        files.issue(former)
        async with channel(server, former) as after:
            assert await answers(after)


async def test_mutual_tls_takes_only_clients_of_the_authority_and_follows_it(
    settings: Settings, files: Files, authorities: tuple[trustme.CA, trustme.CA]
) -> None:
    ca, _ = authorities
    clients, strangers = trustme.CA(), trustme.CA()
    replace(files.client_ca, clients.cert_pem.bytes())
    known, stranger = clients.issue_cert("camera"), strangers.issue_cert("camera")
    async with Server(files.settings(settings, mutual=True)) as server:
        for client, expected in ((known, True), (stranger, False), (None, False)):
            async with channel(server, ca, client) as each:
                assert await answers(each) is expected
        replace(files.client_ca, strangers.cert_pem.bytes())
        for client, expected in ((known, False), (stranger, True)):
            async with channel(server, ca, client) as each:
                assert await answers(each) is expected


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda files: files.certificate.unlink(), ["tls_cert_file", "can't read", "server.pem"]),
        (lambda files: files.certificate.write_text("PEM?"), ["tls_cert_file", "no certificate"]),
        (lambda files: files.key.unlink(), ["tls_key_file", "can't read", "server.key"]),
        (lambda files: files.key.write_text("PEM?"), ["tls_key_file", "no private key"]),
        (
            lambda files: files.key.write_bytes(trustme.CA().issue_cert("x").private_key_pem.bytes()),
            ["tls_key_file", "is not the key of"],
        ),
        (lambda files: files.client_ca.write_text(""), ["tls_client_ca_file", "no certificate"]),
        (lambda files: files.client_ca.unlink(missing_ok=True), ["tls_client_ca_file", "can't read"]),
    ],
)
async def test_a_file_of_no_use_is_one_line_that_names_its_setting(
    settings: Settings, files: Files, spoil: Callable[[Files], object], words: list[str]
) -> None:
    files.client_ca.write_bytes(trustme.CA().cert_pem.bytes())
    spoil(files)
    with pytest.raises(StartupError) as caught:
        async with Server(files.settings(settings, mutual=True)):
            pass
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


async def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(settings: Settings, files: Files) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    key = load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(StartupError, match=r"tls_key_file: .* without a passphrase"):
        async with Server(files.settings(settings)):
            pass
