"""TLS towards a server: whom to trust, and what to show."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from offramp_client.errors import CredentialsError


@dataclass(frozen=True, slots=True)
class Tls:
    """A connection under TLS. All files are PEM."""

    ca: Path | None = None
    """Authorities that may have signed the server's certificate; None for those that gRPC carries."""
    cert: Path | None = None
    """A certificate of one's own, with those between it and its authority, for a server that asks for one."""
    key: Path | None = None
    """Its private key, without a passphrase."""
    authority: str = ""
    """The name that the server's certificate must have, where that is not the host dialled."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Read and check the files.

        Raises:
            CredentialsError: one cannot be read or is not what it should be; or a certificate has no key, or a key none.
        """
        if (self.cert is None) != (self.key is None):
            raise CredentialsError("a client certificate and its key belong together: give both")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        roots = chain = key = None
        if self.ca is not None:
            roots = _read(self.ca)
            try:
                context.load_verify_locations(cadata=roots.decode("ascii"))
            except (ssl.SSLError, ValueError):
                raise CredentialsError(f"{self.ca} holds no certificate in PEM") from None
        if self.cert is not None and self.key is not None:
            chain, key = _read(self.cert), _read(self.key)
            try:
                context.load_cert_chain(self.cert, self.key, password=lambda: "")  # else OpenSSL would ask at the terminal
            except (ssl.SSLError, OSError):
                raise CredentialsError(
                    f"{self.cert} and {self.key} are no certificate and its private key in PEM without a passphrase"
                ) from None
        return grpc.ssl_channel_credentials(roots, key, chain)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"can't read {path}: {error.strerror}") from None
