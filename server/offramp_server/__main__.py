"""The `offramp-server` command."""

from __future__ import annotations

import sys

from offramp_server.config import PROGRAM, ConfigError, load_settings


def main() -> None:
    """Serve until SIGTERM or SIGINT. Exit codes: 0 stopped as told, 1 could not start, 2 a bad setting.

    `offramp-server token NAME` makes a token in place of serving.
    """
    if sys.argv[1:2] == ["token"]:
        from offramp_server.security.command import make_token

        sys.exit(make_token(sys.argv[2:]))
    try:
        settings = load_settings(sys.argv[1:])
    except ConfigError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        sys.exit(2)
    from offramp_server.app import run  # after the settings, so that --help and a bad setting need not wait for torch

    sys.exit(run(settings))


if __name__ == "__main__":
    main()
