"""`offramp-server token NAME`: a new token, and what the tokens file says of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from offramp_server.config import PROGRAM
from offramp_server.security import tokens


def make_token(arguments: Sequence[str]) -> int:
    """Print the entry for the tokens file on stdout and the token on stderr, so that `>> tokens.toml` keeps them apart."""
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} token",
        description="Make a token for a client. The entry for the tokens file goes to stdout, the token itself to stderr: it is "
        "shown this once, and kept nowhere.",
    )
    parser.add_argument("name", metavar="NAME", help="the client's name, as it stands in logs and traces")
    parser.add_argument(
        "--scopes", default="classify", metavar="SCOPE,...", help=f"of {', '.join(get_args(tokens.Scope))} (default: classify)"
    )
    given = parser.parse_args(arguments)
    try:
        token, entry = tokens.make_token(given.name, given.scopes.split(","))
    except tokens.TokensError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    print(entry)
    print(token, file=sys.stderr)
    return 0
