"""The ledgers that the conformance suite runs on, and fresh databases for the rest."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tasquencer.ledger.contract import Ledger
from tasquencer.sql import SCHEMA_VERSION, SqlLedger, sqlite, upgrade
from tasquencer.sql.schema import VERSION_TABLE
from tasquencer.testing import InMemoryLedger
from tests.support.patience import PATIENCE_SECONDS
from tests.support.postgres import EmbeddedPostgres, embedded_postgres, skipping_without_postgres

DatabaseMaker = Callable[[], Awaitable[str]]
"""Makes a database and returns its URL."""

LedgerMaker = Callable[[], Awaitable[Ledger]]

SQL_DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]

_numbers = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def _a_busy_machine_is_no_outage() -> Iterator[None]:
    """Wait longer for the lock of a SQLite file: on a busy machine its holder may need some seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite, "_BUSY_SECONDS", PATIENCE_SECONDS)
        yield


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A PostgreSQL server. A machine without one skips, CI fails."""
    with skipping_without_postgres():
        async with embedded_postgres() as server:
            await upgrade(await server.create_database(_SHARED))
            yield server


_SHARED = "ledger"


async def _emptied(server: EmbeddedPostgres) -> str:
    """One database for all tests, emptied: creating and removing one takes a second."""
    connection = await asyncpg.connect(server.url_of(_SHARED).replace("+asyncpg", ""))
    try:
        # As a replica PostgreSQL runs no triggers, which would refuse.
        await connection.execute(
            "SET session_replication_role = replica; "
            "TRUNCATE work_items, work_item_transitions, work_item_supersessions, ai_jobs, batches, "
            "batch_rows; "
            f"UPDATE {VERSION_TABLE} SET version_num = '{SCHEMA_VERSION}'"
        )
    finally:
        await connection.close()
    return server.url_of(_SHARED)


@pytest.fixture
def new_sqlite_database(tmp_path: Path) -> DatabaseMaker:
    """Files that do not exist yet."""

    async def new() -> str:
        return f"sqlite:///{tmp_path / f'ledger_{next(_numbers)}.db'}"

    return new


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the ledger's schema."""
    path = tmp_path_factory.mktemp("template") / "ledger.db"
    await upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(params=SQL_DATABASES)
def new_empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseMaker:
    """Makes empty databases, on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        maker: DatabaseMaker = request.getfixturevalue("new_sqlite_database")
        return maker
    server: EmbeddedPostgres = request.getfixturevalue("postgres")
    return lambda: server.create_database(f"empty_{next(_numbers)}")


@pytest.fixture
async def empty_database(new_empty_database: DatabaseMaker) -> str:
    """The URL of an empty database, on SQLite and on PostgreSQL."""
    return await new_empty_database()


def _database_maker(kind: str, request: pytest.FixtureRequest, folder: Path) -> DatabaseMaker:
    if kind == "postgresql":
        server: EmbeddedPostgres = request.getfixturevalue("postgres")
        return lambda: _emptied(server)
    template: Path = request.getfixturevalue("sqlite_template")

    async def new() -> str:
        path = folder / f"ledger_{next(_numbers)}.db"
        shutil.copyfile(template, path)
        return f"sqlite:///{path}"

    return new


@pytest.fixture(params=SQL_DATABASES)
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseMaker:
    """Makes databases with the ledger's schema, on SQLite and on PostgreSQL."""
    return _database_maker(request.param, request, tmp_path)


@pytest.fixture
async def database(new_database: DatabaseMaker) -> str:
    """The URL of a database with the ledger's schema, on SQLite and on PostgreSQL."""
    return await new_database()


@pytest.fixture
async def sql_ledger(database: str) -> AsyncIterator[SqlLedger]:
    """An empty ledger in that database."""
    async with SqlLedger(database) as ledger:
        yield ledger


@pytest.fixture(params=["memory", *SQL_DATABASES])
def new_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> LedgerMaker:
    """Makes empty ledgers, of each kind."""
    if request.param != "memory":
        new_url = _database_maker(request.param, request, tmp_path)

    async def new() -> Ledger:
        return InMemoryLedger() if request.param == "memory" else SqlLedger(await new_url())

    return new


@pytest.fixture
async def ledger(new_ledger: LedgerMaker) -> AsyncIterator[Ledger]:
    """Each kind of ledger, empty and open."""
    async with await new_ledger() as ledger:
        yield ledger
