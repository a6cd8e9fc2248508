"""Lets `python -m offramp_client` be the command `offramp`."""

from offramp_client.cli import main

main()
