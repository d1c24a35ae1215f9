"""Servers that several test folders share: real ones, on free loopback ports, one set for each run."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from hypothesis import settings

from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.temporal import bookkeeping, writing
from tests.support.postgres import EmbeddedPostgres, embedded_postgres, skipping_without_postgres

settings.register_profile("patient", settings.default, deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
async def dev_server() -> AsyncIterator[EmbeddedTemporal]:
    """A real Temporal dev server."""
    async with embedded_temporal(ui=False) as server:
        yield server


@pytest.fixture
def no_write_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No task in this process looks for news after a write, however busy the machine is."""
    monkeypatch.setattr(bookkeeping, "_SLOW_SECONDS", math.inf)
    monkeypatch.setattr(bookkeeping, "_PATIENCE", timedelta(minutes=1))  # one that is repeated counts as slow
    monkeypatch.setattr(writing, "RECORD_TIMEOUT", timedelta(minutes=2))


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A real PostgreSQL server; each test makes a database of its own."""
    with skipping_without_postgres():
        async with embedded_postgres() as server:
            yield server
