"""Servers that several test folders share: real ones, on free loopback ports, one set for each run."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import pytest

from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.temporal import bookkeeping
from tests.support.postgres import EmbeddedPostgres, embedded_postgres, skipping_without_postgres


@pytest.fixture(scope="session")
async def dev_server() -> AsyncIterator[EmbeddedTemporal]:
    """A real Temporal dev server."""
    async with embedded_temporal(ui=False) as server:
        yield server


@pytest.fixture
def no_write_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No task in this process looks for news after a write, however busy the machine is."""
    monkeypatch.setattr(bookkeeping, "_SLOW_SECONDS", math.inf)


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A real PostgreSQL server; each test makes a database of its own."""
    with skipping_without_postgres():
        async with embedded_postgres() as server:
            yield server
