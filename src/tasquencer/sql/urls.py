"""Database URLs: which database is meant, and how to show it without its password."""

from __future__ import annotations

import sqlalchemy as sa

__all__ = ["parse", "shown", "without_secrets"]

_SQLITE = ("sqlite", "sqlite+aiosqlite", "sqlite+pysqlite")
_POSTGRESQL = ("postgres", "postgresql", "postgresql+asyncpg")


def parse(database_url: str) -> sa.URL:
    """The URL with the driver that the ledger uses.

    Takes `sqlite:///file.db`, `sqlite://` (in memory), `postgresql://user@host/database` and
    `postgres://…`, with or without a driver; libpq's `sslmode` is understood.

    Raises:
        ValueError: it is not such a URL. The message does not repeat it: it may hold a password.
    """
    try:
        url = sa.make_url(database_url)
    except (sa.exc.ArgumentError, ValueError):
        raise ValueError(
            "the database URL cannot be read: expected sqlite:///file.db or postgresql://user@host/database"
        ) from None
    if url.drivername in _SQLITE:
        return url.set(drivername="sqlite+pysqlite")
    if url.drivername in _POSTGRESQL:
        query = dict(url.query)
        if "sslmode" in query:
            query["ssl"] = query.pop("sslmode")
        return url.set(drivername="postgresql+asyncpg", query=query)
    raise ValueError(
        f"the ledger knows SQLite and PostgreSQL, not {url.drivername!r}: "
        "expected sqlite:///file.db or postgresql://user@host/database"
    )


def shown(url: sa.URL) -> str:
    """The URL for people: no driver, no options, `***` for the password."""
    plain = url.set(drivername=url.get_backend_name(), query={})
    return plain.render_as_string(hide_password=True)


def without_secrets(text: str, url: sa.URL) -> str:
    """The text without the URL's password, should a driver have repeated it."""
    return text.replace(url.password, "***") if url.password else text
