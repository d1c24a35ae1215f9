"""Migrates a ledger's database to the schema of this release, while workers of the previous release use it.

A migration declares which releases work on the schema that it makes. Its attribute `oldest_compatible` is the
oldest schema whose releases do. Without this attribute, no older release works on it. The database keeps this
in a table, so that an older release can find out whether it works on a newer schema.

The import of Alembic takes a second, so it happens only when there is something to migrate.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tasquencer.core.errors import LedgerUnavailable, SchemaMismatch, WrongSetting
from tasquencer.sql.databases import Database, PostgresDatabase, SqliteDatabase, database_at
from tasquencer.sql.roles import SETTING, grant
from tasquencer.sql.schema import SCHEMA_VERSION, SCHEMA_VERSIONS, VERSION_TABLE, schema_compatibility

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext, MigrationInfo

__all__ = ["check_schema", "check_version", "declare", "schema_version", "upgrade", "version_in"]

_UPGRADE_COMMAND = "run `tasq db upgrade`"
_NEWER_RELEASE = "update tasquencer (a newer release made this schema)"
_LOCK_KEY = 0x7461_7371  # "tasq": PostgreSQL's advisory lock around an upgrade
_ALEMBIC_IS_FREE = threading.Lock()  # Alembic keeps the current migration in a module's globals


async def schema_version(database_url: str) -> str | None:
    """Return the version of the database's schema, or None if it has no schema.

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


async def check_version(database_url: str) -> None:
    """Raise `SchemaMismatch` unless this release works on the database's schema, which may be newer."""
    database = database_at(database_url)
    try:
        await check_schema(database)
    finally:
        await database.close()


async def upgrade(database_url: str, *, worker_role: str | None = None) -> tuple[str | None, str]:
    """Migrate the database to this release's schema. Return the versions before and after.

    It is safe to run this twice, and at the same time in several processes. Each migration happens completely
    or not at all (on SQLite, all of them together). If a migration that leaves its transaction is
    interrupted, the next upgrade repeats it. A newer schema that this release works on is left alone.

    Args:
        database_url: See `SqlLedger`.
        worker_role: On PostgreSQL, the role of the workers. It gets the rights that they need. None if
        workers connect as the owner of the tables.

    Raises:
        LedgerUnavailable: the database cannot be reached or used, for example if it is read-only or not in
        UTF-8.
        SchemaMismatch: the schema is too new for this release.
        WrongSetting: the role does not exist, or may act as the owner.
    """
    # In a thread with its own event loop, because a migration may wait for the lock.
    return await asyncio.to_thread(asyncio.run, _upgrade(database_url, worker_role))


async def _upgrade(database_url: str, worker_role: str | None) -> tuple[str | None, str]:
    database = database_at(database_url, command_seconds=None)
    try:
        return await upgrade_database(database, worker_role)
    except database.outages as error:
        raise database.unavailable(error) from error
    finally:
        await database.close()


async def upgrade_database(database: Database, worker_role: str | None = None) -> tuple[str | None, str]:
    """Do the same as `upgrade` for a database that is already open."""
    if isinstance(database, SqliteDatabase):
        if worker_role is not None:
            raise WrongSetting(SETTING, "SQLite has no roles")
        await database.prepare()
        found = await database.read(version_in)
        if found == SCHEMA_VERSION:  # nothing to write, so a read-only file is fine
            return found, found
        if _is_behind(found):
            importlib.import_module("alembic.command")  # slow, so not while others wait for the lock
        return await database.write(lambda connection: _upgrade_sqlite(connection, database.name))
    assert isinstance(database, PostgresDatabase)
    async with database.locked(_LOCK_KEY):
        # `read` opens no transaction, so Alembic begins one for each migration.
        versions = await database.read(lambda connection: _upgrade_postgresql(connection, database.name))
        if worker_role is not None:
            await database.write(lambda connection: grant(connection, worker_role))
        return versions


async def check_schema(database: Database) -> None:
    """Raise `SchemaMismatch` unless this release works on the database's schema."""

    def check(connection: sa.Connection) -> None:
        found = _usable_version(connection, database.name)
        if _is_behind(found):
            raise SchemaMismatch(database.name, found, SCHEMA_VERSION, _UPGRADE_COMMAND)

    await database.read(check)


def version_in(connection: sa.Connection) -> str | None:
    """Return the schema version that the database records."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.execute(
        sa.select(sa.column("version_num")).select_from(sa.table(VERSION_TABLE))
    ).scalar()
    return found


def declare(ctx: MigrationContext, step: MigrationInfo, heads: object, run_args: object) -> None:
    """Store which older releases work on a migration that has just run. Alembic calls this."""
    from alembic.script import Script

    connection, made = ctx.connection, step.up_revision
    assert connection is not None
    assert isinstance(made, Script)
    oldest: str = getattr(made.module, "oldest_compatible", made.revision)
    schema_compatibility.create(connection, checkfirst=True)
    connection.execute(schema_compatibility.insert().values(version=made.revision, oldest_compatible=oldest))


def _usable_version(connection: sa.Connection, name: str) -> str | None:
    """Return the schema version. Raises `SchemaMismatch` if it is too new for this release."""
    found = version_in(connection)
    if found is None or found in SCHEMA_VERSIONS:
        return found
    oldest: dict[str, str] = {}
    if sa.inspect(connection).has_table(schema_compatibility.name):
        version = schema_compatibility.c.version
        declared = sa.select(version, schema_compatibility.c.oldest_compatible)
        newer = connection.execute(declared.where(version > SCHEMA_VERSION))
        oldest = {row.version: row.oldest_compatible for row in newer}
    if found not in oldest or max(oldest.values()) > SCHEMA_VERSION:
        raise SchemaMismatch(name, found, SCHEMA_VERSION, _NEWER_RELEASE)
    return found


def _is_behind(found: str | None) -> bool:
    """Return whether there is something to migrate. An unknown version is a newer one."""
    return found is None or (found in SCHEMA_VERSIONS and found != SCHEMA_VERSION)


def _upgrade_sqlite(connection: sa.Connection, name: str) -> tuple[str | None, str]:
    return _migrate(connection, _usable_version(connection, name))  # its write transaction is already a lock


def _upgrade_postgresql(connection: sa.Connection, name: str) -> tuple[str | None, str]:
    connection = connection.execution_options(isolation_level="READ COMMITTED")
    encoding = connection.scalar(sa.text("SHOW server_encoding"))
    if encoding != "UTF8":
        problem = f"its encoding is {encoding}, which cannot hold every text"
        remedy = "create it with ENCODING 'UTF8' TEMPLATE template0"
        raise LedgerUnavailable(name, f"{problem} ({remedy})")
    found = _usable_version(connection, name)
    connection.rollback()
    return _migrate(connection, found)


def _migrate(connection: sa.Connection, found: str | None) -> tuple[str | None, str]:
    if found is not None and not _is_behind(found):
        return found, found
    from alembic import command
    from alembic.config import Config

    config = Config()
    migrations = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", migrations.replace("%", "%%"))
    config.attributes["connection"] = connection
    with _ALEMBIC_IS_FREE:
        command.upgrade(config, "head")
    return found, SCHEMA_VERSION
