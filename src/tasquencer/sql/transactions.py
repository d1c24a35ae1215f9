"""Runs synchronous SQLAlchemy code in a transaction, on SQLite and on PostgreSQL.

Both databases run the same functions of a `sqlalchemy.Connection`. PostgreSQL runs them on asyncpg. SQLite
runs each function in a thread, as one job. An async driver would pass each statement to its thread
separately, and hold the only write lock while the event loop does other work. Measured with five statements
in a transaction, one job gives 1,750 instead of 540 transactions per second on an idle loop, and 760 instead
of 21 beside busy workflows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

import sqlalchemy as sa
from pydantic_core import to_json

from tasquencer.core.errors import LedgerUnavailable
from tasquencer.sql.urls import shown, without_secrets

__all__ = ["Database", "Trouble", "Work", "json_text"]

T = TypeVar("T")
Work = Callable[[sa.Connection], T]


class Trouble(Enum):
    """The meaning of a database error."""

    REFUSED = "refused"
    """The database does not take these rows: a constraint, a trigger, a value out of range."""
    PASSING = "passing"
    """The same transaction may work at the next try: a deadlock, a stale connection."""
    OUTAGE = "outage"
    """The database cannot be reached or used."""


def json_text(value: object) -> str:
    """JSON, with null for numbers that JSON does not have."""
    return to_json(value, inf_nan_mode="null").decode()


class Database(ABC):
    """A database, its connections, and the meaning of its errors."""

    outages: tuple[type[Exception], ...] = (
        sa.exc.StatementError,
        sa.exc.TimeoutError,
        OSError,
        OverflowError,
    )
    """The errors of `read` and `write` that the database causes. See `trouble`."""

    def __init__(self, url: sa.URL) -> None:
        self._url = url
        self.name = shown(url)

    @property
    @abstractmethod
    def migrates_itself(self) -> bool:
        """Return whether opening a ledger brings the schema up to date."""

    @abstractmethod
    async def read(self, work: Work[T]) -> T:
        """Run a function that only reads."""

    @abstractmethod
    async def write(self, work: Work[T]) -> T:
        """Run a function in a transaction, and commit it."""

    @abstractmethod
    async def close(self) -> None:
        """Close all connections."""

    def trouble(self, error: Exception) -> Trouble:
        """Return the meaning of the error, which is one of `outages`."""
        if isinstance(error, (sa.exc.IntegrityError, sa.exc.DataError, OverflowError)):
            return Trouble.REFUSED
        if isinstance(error, sa.exc.DBAPIError):
            if error.connection_invalidated:
                return Trouble.PASSING
            # The driver could not bind a value, so the statement never reached the database.
            return Trouble.REFUSED if "Error binding parameter" in str(error.orig) else Trouble.OUTAGE
        return Trouble.REFUSED if isinstance(error, sa.exc.StatementError) else Trouble.OUTAGE

    def problem(self, error: Exception) -> str:
        """Return the error in one line, without secrets and without the rows it is about."""
        cause: BaseException = error
        if isinstance(error, sa.exc.StatementError) and error.orig is not None:
            cause = error.orig.__cause__ or error.orig
        if isinstance(cause, TimeoutError) and not str(cause):
            return "no answer in time"
        lines = str(cause).strip().splitlines()
        return without_secrets(lines[0] if lines else type(cause).__name__, self._url)

    def unavailable(self, error: Exception) -> LedgerUnavailable:
        """Return the error that the ledger raises for it."""
        return LedgerUnavailable(self.name, self.problem(error))
