"""The ledger's schema moves on while workers of the release before write to it, and start on it."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tasquencer.core.errors import LedgerUnavailable, SchemaMismatch
from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.sql import SCHEMA_VERSION, SqlLedger, schema_version, upgrade
from tests.end_to_end.stage import Stage
from tests.ledger.conftest import DatabaseMaker
from tests.ledger.stories import Life, ai_job
from tests.support.answers import ok
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.postgres import EmbeddedPostgres
from tests.support.provider import ScriptedProvider
from tests.upgrades.releases import Release, next_release

NEXT, NEXT_BUT_ONE = (f"{int(SCHEMA_VERSION) + more:04}" for more in (1, 2))

EXPAND = f"""
oldest_compatible = "{SCHEMA_VERSION}"

import sqlalchemy as sa
from alembic import op

def upgrade():
    if op.get_bind().dialect.name == "sqlite":
        op.add_column("work_items", sa.Column("priority", sa.Integer))
        op.create_index("work_items_by_priority", "work_items", ["priority"])
        return
    op.execute("SET LOCAL lock_timeout = '60s'")
    op.execute("ALTER TABLE work_items ADD COLUMN IF NOT EXISTS priority integer")
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS work_items_by_priority")
        op.execute("CREATE INDEX CONCURRENTLY work_items_by_priority ON work_items (priority)")
"""
"""As docs/guides/upgrading.md asks for it, with more patience for the lock."""

CONTRACT = f"""
oldest_compatible = "{NEXT}"

from alembic import op

def upgrade():
    op.execute("ALTER TABLE work_items DROP COLUMN worker")
"""

UNDECLARED = EXPAND.partition("\n\n")[2]

INDEX_IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('work_items_by_priority')"

UPGRADE_LOCK = 0x7461_7371
"""The key of the advisory lock around an upgrade."""

_numbers = itertools.count()


@pytest.fixture(scope="module")
def expanding(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release with one more migration, on whose schema this release works."""
    return next_release(tmp_path_factory.mktemp("expanding"), EXPAND)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseMaker:
    """Makes empty databases, on SQLite and on PostgreSQL."""

    async def sqlite() -> str:
        return f"sqlite:///{tmp_path / 'ledger.db'}"

    if request.param == "sqlite":
        return sqlite
    server: EmbeddedPostgres = request.getfixturevalue("postgres")
    return lambda: server.create_database(f"upgraded_{next(_numbers)}")


@pytest.fixture
async def database_url(new_database: DatabaseMaker) -> str:
    """A ledger of this release, on SQLite and on PostgreSQL."""
    url = await new_database()
    await upgrade(url)
    return url


@pytest.fixture
async def postgresql_url(postgres: EmbeddedPostgres) -> str:
    """A ledger of this release on PostgreSQL."""
    url = await postgres.create_database(f"upgraded_{next(_numbers)}")
    await upgrade(url)
    return url


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        yield connection
    finally:
        await connection.close()


class Writers:
    """Record one work item after the other, from beginning to end, until a signal stops them."""

    def __init__(self, ledger: SqlLedger) -> None:
        self._ledger = ledger
        self._stopping = False
        self.recorded: set[str] = set()

    @asynccontextmanager
    async def writing(self, writers: int = 4) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for number in range(writers):
                group.create_task(self._write(f"task-{number}"))
            await self.have_written(20)
            yield
            await self.have_written(20)
            self._stopping = True

    async def have_written(self, more: int) -> None:
        """Return when they have recorded this number of further work items."""
        wanted = len(self.recorded) + more

        async def probe() -> bool:
            return len(self.recorded) >= wanted

        await eventually(probe, f"{more} more work items")

    async def _write(self, task_id: str) -> None:
        for attempt in itertools.count():
            if self._stopping:
                return
            life = Life(id=f"{task_id}-{attempt}", task_id=task_id, run_id=task_id, attempt=attempt)
            await self._ledger.record([life.initialized(ai_job("pending")), life.started(ai_job("started"))])
            await self._ledger.record([life.completed(record=ai_job("completed", result="because"))])
            self.recorded.add(life.id)


async def all_there(url: str, ids: set[str]) -> None:
    async with SqlLedger(url) as ledger:
        found = await ledger.work_items(WorkItemFilter(limit=len(ids) + 1))
        records = await ledger.domain_records("ai_jobs", sorted(ids)[:1000])
    assert {item.id for item in found} == ids
    assert {item.state for item in found} == {WorkItemState.COMPLETED}
    assert {record["status"] for record in records.values()} == {"completed"}


@asynccontextmanager
async def held_snapshot(url: str) -> AsyncIterator[None]:
    """A transaction that has begun to read: an index beside live writers waits for its end."""
    async with connected(url) as reader, reader.transaction(isolation="repeatable_read"):
        await reader.fetchval("SELECT 1")
        yield


async def half_an_index(connection: Any) -> None:
    async def probe() -> bool:
        return await connection.fetchval(INDEX_IS_VALID) is False

    await eventually(probe, "half an index")


@asynccontextmanager
async def held_back(url: str) -> AsyncIterator[None]:
    """No upgrade gets beyond its lock."""
    async with connected(url) as other:
        await other.execute(f"SELECT pg_advisory_lock({UPGRADE_LOCK})")
        yield


async def connections_to(connection: Any) -> int:
    return await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND backend_type = 'client backend'"
    )


@pytest.mark.postgresql
async def test_live_workers_of_the_release_before_lose_nothing_while_the_schema_expands(
    postgresql_url: str, expanding: Release
) -> None:
    async with SqlLedger(postgresql_url) as ledger, connected(postgresql_url) as connection:
        writers = Writers(ledger)
        async with writers.writing():
            async with held_back(postgresql_url):
                before = await connections_to(connection)
                upgrades = [
                    await expanding.start_tasq("db", "upgrade", database_url=postgresql_url) for _ in range(2)
                ]

                async def both_wait() -> bool:
                    return await connections_to(connection) >= before + 2

                await eventually(both_wait, "two upgrades at once")
                await writers.have_written(20)
            said = await asyncio.gather(*(output_of(upgrade) for upgrade in upgrades))
        assert await connection.fetchval(INDEX_IS_VALID)
    assert sorted(said) == [
        f"The ledger already has schema {NEXT}.\n",
        f"The ledger went from schema {SCHEMA_VERSION} to schema {NEXT}.\n",
    ]
    assert await schema_version(postgresql_url) == NEXT
    await all_there(postgresql_url, writers.recorded)


async def output_of(process: asyncio.subprocess.Process) -> str:
    output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    return output.decode()


@pytest.mark.postgresql
async def test_an_upgrade_that_was_killed_beside_live_writers_is_done_again(
    postgresql_url: str, expanding: Release
) -> None:
    async with SqlLedger(postgresql_url) as ledger, connected(postgresql_url) as connection:
        writers = Writers(ledger)
        async with writers.writing():
            async with held_snapshot(postgresql_url):
                killed = await expanding.start_tasq("db", "upgrade", database_url=postgresql_url)
                await half_an_index(connection)
                killed.kill()
                await killed.communicate()
                await writers.have_written(20)
            assert await schema_version(postgresql_url) == SCHEMA_VERSION
            status, _ = await expanding.tasq("db", "upgrade", database_url=postgresql_url)
            assert status == 0
        assert await connection.fetchval(INDEX_IS_VALID)
    await all_there(postgresql_url, writers.recorded)


async def test_a_release_works_on_a_newer_schema_that_is_declared_compatible_and_leaves_it_alone(
    database_url: str, expanding: Release
) -> None:
    assert (await expanding.tasq("db", "upgrade", database_url=database_url))[0] == 0
    assert await upgrade(database_url) == (NEXT, NEXT)
    async with SqlLedger(database_url) as ledger:
        await ledger.record(Life().until(WorkItemState.FAILED))
        assert [item.id for item in await ledger.work_items(WorkItemFilter())] == ["a"]
    assert await schema_version(database_url) == NEXT


@pytest.mark.parametrize(
    ("migrations", "found"),
    [((UNDECLARED,), NEXT), ((EXPAND, CONTRACT), NEXT_BUT_ONE)],
    ids=["undeclared", "contracted"],
)
async def test_a_release_refuses_a_newer_schema_that_is_not(
    tmp_path: Path, database_url: str, migrations: tuple[str, ...], found: str
) -> None:
    release = next_release(tmp_path / "release", *migrations)
    assert (await release.tasq("db", "upgrade", database_url=database_url))[0] == 0
    remedy = re.escape(
        f"has schema '{found}', this release needs '{SCHEMA_VERSION}': "
        "update tasquencer (a newer release made this schema)"
    )
    with pytest.raises(SchemaMismatch, match=remedy):
        await SqlLedger(database_url).open()
    with pytest.raises(SchemaMismatch, match=remedy):
        await upgrade(database_url)


@pytest.mark.postgresql
async def test_a_worker_of_the_release_before_starts_and_works_until_the_schema_contracts(
    dev_server: EmbeddedTemporal, tmp_path: Path, postgresql_url: str, expanding: Release
) -> None:
    settings = {"TASQ_DATABASE_URL": postgresql_url}
    async with ScriptedProvider(then=ok()) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        assert (await expanding.tasq("db", "upgrade", database_url=postgresql_url))[0] == 0
        async with stage.worker(settings=settings):
            task = await stage.start()
            assert (await task.result())["text"] == "Hello!"
        contracting = next_release(tmp_path / "contracting", EXPAND, CONTRACT)
        async with SqlLedger(postgresql_url) as still_open:
            assert (await contracting.tasq("db", "upgrade", database_url=postgresql_url))[0] == 0
            with pytest.raises(LedgerUnavailable):  # for which a task waits
                await still_open.record([Life().initialized()])
        async with stage.process(settings=settings) as worker:
            assert await worker.wait(timeout_seconds=PATIENCE_SECONDS) == 3
            (line,) = worker.output().splitlines()
    assert line.startswith("error: the ledger at postgresql://")
    assert line.endswith("update tasquencer (a newer release made this schema)")
