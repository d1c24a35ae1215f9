from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.outages.postgres import FallingPostgres, falling_postgres
from tests.support.postgres import NoPostgres


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def falling() -> AsyncIterator[FallingPostgres]:
    """A PostgreSQL server that tests take down; each leaves it up. A machine without one skips, CI fails."""
    try:
        async with falling_postgres() as server:
            yield server
    except NoPostgres as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
