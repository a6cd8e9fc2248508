"""The server's certificate, its key, and the authority whose clients it takes: checked, and read again when they change."""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path

import grpc

from offramp_server.security.watch import FileWatch

logger = logging.getLogger(__name__)


class CertificateError(Exception):
    """A file can't be used; the message is one line and names the setting."""


class ServerCertificates:
    """What a server shows to its clients, and asks of them.

    gRPC asks before every handshake whether there is something newer (`grpc.dynamic_ssl_server_credentials`), so a connection
    made after the files changed gets the new ones, and older connections live on. Files that can't be used leave the former ones
    in place, with an error in the log: a renewal that writes the certificate before its key passes through such a moment.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """PEM files; with `client_ca` every client must show a certificate that it has signed. Raises CertificateError."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._watch = FileWatch(certificate, key, *((client_ca,) if client_ca else ()))
        self._turn = threading.Lock()  # handshakes run in threads of gRPC's
        self._first = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """For a secure port."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._fetch,  # type: ignore[arg-type]  # the stubs don't know that None means no change
            require_client_authentication=self._client_ca is not None,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        with self._turn:
            if not self._watch.changed():
                return None
            try:
                config = self._read()
            except CertificateError as error:
                logger.error("the certificates stay as they were: %s", error)
                return None
            logger.info("certificates read again", extra={"file": str(self._certificate)})
            return config

    def _read(self) -> grpc.ServerCertificateConfiguration:
        before = self._watch.look()
        certificate = _read_file("tls_cert_file", self._certificate)
        key = _read_file("tls_key_file", self._key)
        _check_certificates("tls_cert_file", self._certificate, certificate)
        self._check_key()
        roots = None
        if self._client_ca is not None:
            roots = _read_file("tls_client_ca_file", self._client_ca)
            _check_certificates("tls_client_ca_file", self._client_ca, roots)
        if self._watch.look() != before:
            raise CertificateError("tls_cert_file: it, its key or the client CA changed while they were read")
        return grpc.ssl_server_certificate_configuration([(key, certificate)], roots)

    def _check_key(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._certificate, self._key, password=lambda: "")  # else OpenSSL would ask at the terminal
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise CertificateError(f"tls_key_file: {self._key} is not the key of {self._certificate}") from None
            raise CertificateError(f"tls_key_file: {self._key} holds no private key in PEM without a passphrase") from None
        except OSError as error:
            raise CertificateError(f"tls_key_file: can't read {self._key}: {error.strerror}") from None


def _read_file(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{setting}: can't read {path}: {error.strerror}") from None


def _check_certificates(setting: str, path: Path, data: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise CertificateError(f"{setting}: {path} holds no certificate in PEM") from None
