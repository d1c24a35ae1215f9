from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.outages.postgres import FallingPostgres, falling_postgres
from tests.support.postgres import skipping_without_postgres


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def falling() -> AsyncIterator[FallingPostgres]:
    """A PostgreSQL server that tests take down; each leaves it up. A machine without one skips, CI fails."""
    with skipping_without_postgres():
        async with falling_postgres() as server:
            yield server
