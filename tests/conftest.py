"""Servers that several test folders share: real ones, on free loopback ports, one set for each run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tests.support.postgres import EmbeddedPostgres, embedded_postgres, skipping_without_postgres


@pytest.fixture(scope="session")
async def dev_server() -> AsyncIterator[EmbeddedTemporal]:
    """A real Temporal dev server."""
    async with embedded_temporal(ui=False) as server:
        yield server


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A real PostgreSQL server; each test makes a database of its own."""
    with skipping_without_postgres():
        async with embedded_postgres() as server:
            yield server
