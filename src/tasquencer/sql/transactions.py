"""How a piece of synchronous SQLAlchemy code runs in a transaction, on SQLite and on PostgreSQL.

Both databases run the same functions of a `sqlalchemy.Connection`. SQLite runs each in a thread, as one
job: an async driver would hand every statement to its thread on its own, and hold the one write lock while
the event loop turns (measured here, five statements a transaction: 1,750 instead of 540 transactions per
second on an idle loop, 760 instead of 21 beside busy workflows). PostgreSQL runs them on asyncpg.
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
    """What an error of the database means."""

    REFUSED = "refused"
    """The database does not take these rows: a constraint, a trigger, a value out of range."""
    PASSING = "passing"
    """The same transaction may work when it is tried again: a deadlock, a stale connection."""
    OUTAGE = "outage"
    """The database cannot be reached or used."""


def json_text(value: object) -> str:
    """JSON, with null in the place of numbers that JSON does not have."""
    return to_json(value, inf_nan_mode="null").decode()


class Database(ABC):
    """A database, its connections, and what its errors mean."""

    outages: tuple[type[Exception], ...] = (
        sa.exc.StatementError,
        sa.exc.TimeoutError,
        OSError,
        OverflowError,
    )
    """What `read` and `write` raise when the database is to blame; see `trouble`."""

    def __init__(self, url: sa.URL) -> None:
        self._url = url
        self.name = shown(url)

    @property
    @abstractmethod
    def migrates_itself(self) -> bool:
        """True if opening a ledger brings the schema up to date."""

    @abstractmethod
    async def read(self, work: Work[T]) -> T:
        """Run something that only reads."""

    @abstractmethod
    async def write(self, work: Work[T]) -> T:
        """Run something in a transaction, and commit it."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of all connections."""

    def trouble(self, error: Exception) -> Trouble:
        """What the error means; it is one of `outages`."""
        if isinstance(error, (sa.exc.IntegrityError, sa.exc.DataError, OverflowError)):
            return Trouble.REFUSED
        if isinstance(error, sa.exc.DBAPIError):
            if error.connection_invalidated:
                return Trouble.PASSING
            # A value that the driver cannot bind: it never reached the database.
            return Trouble.REFUSED if "Error binding parameter" in str(error.orig) else Trouble.OUTAGE
        return Trouble.REFUSED if isinstance(error, sa.exc.StatementError) else Trouble.OUTAGE

    def problem(self, error: Exception) -> str:
        """The error in one line, without secrets and without the rows it was about."""
        cause: BaseException = error
        if isinstance(error, sa.exc.StatementError) and error.orig is not None:
            cause = error.orig.__cause__ or error.orig
        if isinstance(cause, TimeoutError) and not str(cause):
            return "no answer in time"
        lines = str(cause).strip().splitlines()
        return without_secrets(lines[0] if lines else type(cause).__name__, self._url)

    def unavailable(self, error: Exception) -> LedgerUnavailable:
        """The error as the ledger raises it."""
        return LedgerUnavailable(self.name, self.problem(error))
