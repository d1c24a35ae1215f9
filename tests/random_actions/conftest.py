"""A ledger in each database for the random actions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tasquencer.ledger.contract import Ledger
from tasquencer.sql import SqlLedger, upgrade
from tests.support.postgres import EmbeddedPostgres


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> str | EmbeddedPostgres:
    """The URL of a new file, or the server for a new database.

    Not async: an async fixture cannot ask for another one by its name, its event loop runs already.
    """
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    server: EmbeddedPostgres = request.getfixturevalue("postgres")
    return server


@pytest.fixture
async def ledger(empty_database: str | EmbeddedPostgres) -> AsyncIterator[Ledger]:
    """An empty ledger in a database of its own."""
    if isinstance(empty_database, str):
        url = empty_database
    else:
        url = await empty_database.create_database("random_actions")
    await upgrade(url)
    async with SqlLedger(url) as opened:
        yield opened
