"""Migrations make the schema that the code declares, exactly once, also if several processes start."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tasquencer.core.errors import SchemaMismatch
from tasquencer.sql import SCHEMA_VERSION, SqlLedger, metadata, migrate, schema_version, upgrade
from tasquencer.sql.databases import SqliteDatabase, database_at
from tasquencer.sql.schema import SCHEMA_VERSIONS, VERSION_TABLE
from tests.ledger.conftest import DatabaseMaker
from tests.ledger.test_immutability import run
from tests.support.patience import PATIENCE_SECONDS
from tests.support.postgres import EmbeddedPostgres


async def look(url: str, work: Callable[[sa.Connection], Any]) -> Any:
    database = database_at(url)
    try:
        return await database.read(work)
    finally:
        await database.close()


def described(connection: sa.Connection) -> object:
    """What a schema consists of, except for triggers."""
    if connection.dialect.name == "sqlite":
        rows = connection.execute(
            sa.text(
                "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'index') AND sql IS NOT NULL"
            )
        )
        return {
            name: sorted(" ".join(part.split()) for part in sql.split(",\n"))
            for name, sql in map(tuple, rows)
            if name != VERSION_TABLE
        }
    inspector = sa.inspect(connection)
    return {
        table: [
            inspector.get_check_constraints(table),
            inspector.get_indexes(table),
            inspector.get_unique_constraints(table),
            inspector.get_foreign_keys(table),
            inspector.get_pk_constraint(table),
            [{**column, "type": str(column["type"])} for column in inspector.get_columns(table)],
        ]
        for table in metadata.tables
    }


async def test_migrations_and_declared_tables_agree(database: str) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        options = {"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    assert await look(database, differences) == []


async def test_migrations_and_declared_tables_agree_on_constraints_too(
    new_empty_database: DatabaseMaker,
) -> None:
    migrated, declared = await new_empty_database(), await new_empty_database()
    await upgrade(migrated)
    database = database_at(declared)
    try:
        if isinstance(database, SqliteDatabase):
            await database.prepare()
        await database.write(metadata.create_all)
    finally:
        await database.close()
    assert await look(migrated, described) == await look(declared, described)


def test_the_newest_migration_is_the_version_of_this_release() -> None:
    script = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations"))
    newest_first = [revision.revision for revision in script.walk_revisions()]
    assert newest_first[::-1] == list(SCHEMA_VERSIONS)


async def test_upgrade_says_from_where_to_where(empty_database: str) -> None:
    assert await upgrade(empty_database) == (None, SCHEMA_VERSION)
    assert await upgrade(empty_database) == (SCHEMA_VERSION, SCHEMA_VERSION)
    assert await schema_version(empty_database) == SCHEMA_VERSION


async def test_several_may_upgrade_at_once(empty_database: str) -> None:
    results = await asyncio.gather(*(upgrade(empty_database) for _ in range(4)))
    assert sorted(results, key=str) == [(SCHEMA_VERSION, SCHEMA_VERSION)] * 3 + [(None, SCHEMA_VERSION)]


async def test_several_may_begin_a_sqlite_file_at_once(new_sqlite_database: DatabaseMaker) -> None:
    """Of those that turn the write-ahead log on SQLite refuses some at once, one file of twelve or so."""

    async def begin(url: str) -> None:
        database = database_at(url)
        assert isinstance(database, SqliteDatabase)
        try:
            await database.prepare()
        finally:
            await database.close()

    for _ in range(100):
        url = await new_sqlite_database()
        await asyncio.gather(*(begin(url) for _ in range(4)))


_UPGRADE = f"""
import asyncio, sys
from tasquencer.sql import sqlite, upgrade
sqlite._BUSY_SECONDS = {PATIENCE_SECONDS}
asyncio.run(upgrade(sys.argv[1]))
"""


async def test_several_processes_may_upgrade_at_once(empty_database: str) -> None:
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", _UPGRADE, empty_database) for _ in range(3)
    ]
    assert [await process.wait() for process in processes] == [0, 0, 0]
    assert await schema_version(empty_database) == SCHEMA_VERSION


async def test_another_alembic_can_live_in_the_same_database(empty_database: str) -> None:
    if empty_database.startswith("sqlite"):
        await upgrade(empty_database)
    await run(
        empty_database,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('theirs')",
    )
    await upgrade(empty_database)
    async with SqlLedger(empty_database):
        pass


async def test_a_sqlite_file_migrates_by_itself(new_sqlite_database: DatabaseMaker) -> None:
    url = await new_sqlite_database()
    async with SqlLedger(url):
        assert await schema_version(url) == SCHEMA_VERSION


async def test_a_ledger_in_memory_migrates_by_itself() -> None:
    async with SqlLedger("sqlite://") as ledger:
        assert await ledger.transitions("a") == []


@pytest.mark.postgresql
async def test_postgresql_never_migrates_by_itself(postgres: EmbeddedPostgres) -> None:
    url = await postgres.create_database("not_migrated")
    with pytest.raises(SchemaMismatch) as refusal:
        await SqlLedger(url).open()
    assert str(refusal.value) == (
        f"the ledger at {url.replace('+asyncpg', '')} has no schema, this release needs {SCHEMA_VERSION!r}: "
        "run `tasq db upgrade`"
    )
    assert await schema_version(url) is None


async def test_a_newer_schema_is_refused_and_left_alone(database: str) -> None:
    await run(database, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    remedy = r"has schema '9999', this release needs '\d+': update tasquencer"
    with pytest.raises(SchemaMismatch, match=remedy):
        await SqlLedger(database).open()
    with pytest.raises(SchemaMismatch, match=remedy):
        await upgrade(database)
    assert await schema_version(database) == "9999"


async def test_an_older_schema_names_the_command_that_helps(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "SCHEMA_VERSION", "9999")
    checked = database_at(database)
    remedy = rf"has schema '{SCHEMA_VERSION}', this release needs '9999': run `tasq db upgrade`"
    try:
        with pytest.raises(SchemaMismatch, match=remedy):
            await migrate.check_schema(checked)
    finally:
        await checked.close()


async def test_opening_a_ledger_that_is_up_to_date_does_not_import_alembic(database: str) -> None:
    code = (
        "import asyncio, sys; from tasquencer.sql import SqlLedger; ledger = SqlLedger(sys.argv[1]); "
        "asyncio.run(ledger.open()); assert 'alembic' not in sys.modules"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, database)
    assert await process.wait() == 0
