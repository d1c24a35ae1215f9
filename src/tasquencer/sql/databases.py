"""Choose the database for a URL."""

from __future__ import annotations

from tasquencer.sql.postgresql import COMMAND_SECONDS, PostgresDatabase
from tasquencer.sql.sqlite import SqliteDatabase
from tasquencer.sql.transactions import Database, Trouble
from tasquencer.sql.urls import parse

__all__ = ["Database", "PostgresDatabase", "SqliteDatabase", "Trouble", "database_at"]


def database_at(database_url: str, *, command_seconds: float | None = COMMAND_SECONDS) -> Database:
    """Return the database of the URL without opening it.

    Args:
        database_url: See `tasquencer.sql.urls.parse`.
        command_seconds: How long PostgreSQL may take for a statement. None: no limit.

    Raises:
        ValueError: the URL cannot be used.
    """
    url = parse(database_url)
    if url.get_backend_name() == "sqlite":
        return SqliteDatabase(url)
    return PostgresDatabase(url, command_seconds=command_seconds)
