from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from offramp_client import Client
from tests.unit.client.fake_server import FakeServer


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as running:
        yield running


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[Client]:
    async with Client(server.address) as connected:
        yield connected
