"""Bringing a ledger's database to the schema of this release.

Alembic takes a second to import, so it is imported only when there is something to migrate.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import sqlalchemy as sa

from tasquencer.errors import SchemaMismatch
from tasquencer.sql.databases import Database, SqliteDatabase, database_at
from tasquencer.sql.schema import SCHEMA_VERSION, SCHEMA_VERSIONS, VERSION_TABLE

__all__ = ["check_schema", "schema_version", "upgrade", "version_in"]

_UPGRADE_COMMAND = "run `tasq db upgrade`"
_NEWER_RELEASE = "update tasquencer (a newer release made this schema)"
_LOCK_KEY = 0x7461_7371  # "tasq": PostgreSQL's advisory lock around a migration
_ALEMBIC_IS_FREE = threading.Lock()  # Alembic keeps the migration under way in a module's globals


async def schema_version(database_url: str) -> str | None:
    """The version of the database's schema; None if it has none.

    Raises:
        LedgerUnavailable: the database cannot be reached or used.
    """
    database = database_at(database_url)
    try:
        if isinstance(database, SqliteDatabase):
            await database.prepare()
        return await database.read(version_in)
    except database.outages as error:
        raise database.unavailable(error) from error
    finally:
        await database.close()


async def upgrade(database_url: str) -> tuple[str | None, str]:
    """Bring the database to this release's schema; return the versions before and after.

    Safe to run twice and at the same time in several processes. Either all of it happens or nothing.

    Raises:
        LedgerUnavailable: the database cannot be reached or used.
        SchemaMismatch: the schema is newer than this release.
    """
    # In a thread with a loop of its own: a migration may wait for the lock, which must not stop the caller's.
    return await asyncio.to_thread(asyncio.run, _upgrade(database_url))


async def _upgrade(database_url: str) -> tuple[str | None, str]:
    database = database_at(database_url, command_seconds=None)
    try:
        return await upgrade_database(database)
    except database.outages as error:
        raise database.unavailable(error) from error
    finally:
        await database.close()


async def upgrade_database(database: Database) -> tuple[str | None, str]:
    """`upgrade`, for a database that is open already."""
    if isinstance(database, SqliteDatabase):
        await database.prepare()
        found = await database.read(version_in)
        if found == SCHEMA_VERSION:  # nothing to write: a read-only file will do
            return found, found
    return await database.write(lambda connection: _upgrade_in(connection, database.name))


async def check_schema(database: Database) -> None:
    """Raise `SchemaMismatch` unless the database has this release's schema."""
    found = await database.read(version_in)
    if found == SCHEMA_VERSION:
        return
    newer = found is not None and found not in SCHEMA_VERSIONS
    raise SchemaMismatch(database.name, found, SCHEMA_VERSION, _NEWER_RELEASE if newer else _UPGRADE_COMMAND)


def version_in(connection: sa.Connection) -> str | None:
    """The schema version that the database says it has."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.execute(
        sa.select(sa.column("version_num")).select_from(sa.table(VERSION_TABLE))
    ).scalar()
    return found


def _upgrade_in(connection: sa.Connection, name: str) -> tuple[str | None, str]:
    if connection.dialect.name == "postgresql":  # SQLite's write transaction is a lock already
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_KEY)))
    found = version_in(connection)
    if found is not None and found not in SCHEMA_VERSIONS:
        raise SchemaMismatch(name, found, SCHEMA_VERSION, _NEWER_RELEASE)
    if found != SCHEMA_VERSION:
        from alembic import command
        from alembic.config import Config

        config = Config()
        migrations = str(Path(__file__).parent / "migrations")
        config.set_main_option("script_location", migrations.replace("%", "%%"))
        config.attributes["connection"] = connection
        with _ALEMBIC_IS_FREE:
            command.upgrade(config, "head")
    return found, SCHEMA_VERSION
