"""How a command reaches a server that asks who is there: TLS and a token, as options of every command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from offramp_client.client import Client
from offramp_client.tls import Tls


@dataclass(frozen=True, slots=True)
class Access:
    """What to show and whom to trust."""

    tls: Tls | None = None
    token: str = ""

    def client(self, address: str) -> Client:
        """Return a client of the server at `host:port`."""
        return Client(address, tls=self.tls, token=self.token)


def read_access(
    tls: Annotated[bool, typer.Option("--tls", envvar="OFFRAMP_TLS", help="Speak TLS; any of the next four does too.")] = False,
    ca: Annotated[
        Path | None,
        typer.Option(envvar="OFFRAMP_TLS_CA", metavar="PEM", help="Authorities to trust; the public ones where not given."),
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(envvar="OFFRAMP_TLS_CERT", metavar="PEM", help="Your own certificate, for mutual TLS.")
    ] = None,
    key: Annotated[Path | None, typer.Option(envvar="OFFRAMP_TLS_KEY", metavar="PEM", help="Its private key.")] = None,
    authority: Annotated[
        str,
        typer.Option(envvar="OFFRAMP_TLS_AUTHORITY", metavar="NAME", help="Name in the server's certificate, if not the host."),
    ] = "",
    token: Annotated[
        str,
        typer.Option(envvar="OFFRAMP_TOKEN", help="Your token; better by the environment, since others can see command lines."),
    ] = "",
) -> Access:
    """Return what the options say."""
    if tls or ca is not None or cert is not None or key is not None or authority:
        return Access(Tls(ca, cert, key, authority), token)
    return Access(None, token)
