"""How a piece of synchronous SQLAlchemy code runs in a transaction, on SQLite and on PostgreSQL.

Both databases run the same functions of a `sqlalchemy.Connection`. SQLite runs each in a thread, as one
job: an async driver would hand every statement to its thread on its own, and hold the one write lock while
the event loop turns (measured here, five statements a transaction: 1,750 instead of 540 transactions per
second on an idle loop, 760 instead of 21 beside busy workflows). PostgreSQL runs them on asyncpg.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import sqlalchemy as sa
from pydantic_core import from_json, to_json

from tasquencer.core.errors import LedgerUnavailable
from tasquencer.sql.urls import parse, shown, without_secrets

__all__ = ["Database", "PostgresDatabase", "SqliteDatabase", "Trouble", "database_at"]

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

_READERS = 4

_BUSY_SECONDS = 4.0
"""How long SQLite waits for another process's lock. Less than the bookkeeping waits, so that its error
says what the matter is."""

_PAUSE_SECONDS = 0.01
"""Between two tries to get a lock for which SQLite itself doesn't wait."""

_CONNECT_SECONDS = 10.0

_COMMAND_SECONDS = 30.0
"""How long PostgreSQL may take for a statement. By then a connection that has gone silent is given up."""


_FAREWELL_SECONDS = 1.0


class Trouble(Enum):
    """What an error of the database means."""

    REFUSED = "refused"
    """The database does not take these rows: a constraint, a trigger, a value out of range."""
    PASSING = "passing"
    """The same again may work at once: a deadlock, a connection that had gone stale."""
    OUTAGE = "outage"
    """The database cannot be reached or used."""


def _to_json(value: object) -> str:
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
        """Whether opening a ledger brings the schema up to date."""

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


class SqliteDatabase(Database):
    """A file, or memory. One writer at a time, in a thread of its own; readers beside it.

    Commits are durable (`synchronous=FULL`): a commit of 2 kB cost 0.29 ms here, with `NORMAL` 0.02 ms. The
    latter may lose the last commits at a power cut, and then an AI request could have left that the ledger
    knows nothing of.
    """

    outages = (*Database.outages, sqlite3.Error)

    def __init__(self, url: sa.URL) -> None:
        super().__init__(url)
        is_file = url.database not in (None, "", ":memory:") and url.query.get("mode") != "memory"
        self._file = Path(url.database or "") if is_file and "uri" not in url.query else None
        self._opened: tuple[int, int] | None = None
        self._engine = sa.create_engine(
            url,
            poolclass=sa.QueuePool if is_file else sa.StaticPool,
            connect_args={"check_same_thread": False, "timeout": _BUSY_SECONDS},
            json_serializer=_to_json,
            json_deserializer=from_json,
            hide_parameters=True,
        )
        sa.event.listen(self._engine, "connect", _prepare_sqlite)
        sa.event.listen(self._engine, "connect", self._remember_file)
        sa.event.listen(self._engine, "begin", _begin_sqlite)
        self._writing_engine = self._engine.execution_options(tasquencer_writes=True)
        self._is_file = is_file
        self._new_threads()

    def _new_threads(self) -> None:
        self._writer = ThreadPoolExecutor(1, "tasquencer-ledger-writer")
        self._reader = self._writer
        if self._is_file:
            self._reader = ThreadPoolExecutor(_READERS, "tasquencer-ledger-reader")

    @property
    def migrates_itself(self) -> bool:
        """An embedded file does."""
        return True

    async def read(self, work: Work[T]) -> T:
        """See `Database.read`."""

        def job() -> T:
            self._check_file()
            with self._engine.connect() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._reader, job)

    async def write(self, work: Work[T]) -> T:
        """See `Database.write`."""

        def job() -> T:
            self._check_file()
            with self._writing_engine.begin() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._writer, job)

    async def prepare(self) -> None:
        """Create the folder of the file, and let it have a write-ahead log (readers beside the writer)."""

        def job() -> None:
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
            connection = self._engine.raw_connection()
            try:
                _write_ahead(connection.cursor())
            finally:
                connection.close()

        await asyncio.get_running_loop().run_in_executor(self._writer, job)

    async def close(self) -> None:
        """See `Database.close`. Waits for the transaction under way."""
        await asyncio.to_thread(self._writer.shutdown)
        await asyncio.to_thread(self._reader.shutdown)
        self._engine.dispose()
        self._opened = None
        self._new_threads()  # none runs before it is needed: a closed ledger may be opened again

    def _remember_file(self, _connection: object, _record: object) -> None:
        if self._opened is None and self._file is not None:
            self._opened = _identity(self._file)

    def _check_file(self) -> None:
        """Notice that the file is gone or another one: SQLite would go on to write where nobody can read.

        Another one is not opened: SQLite would take the log of the old one (`-wal`) for its own.
        """
        if self._opened is None or self._file is None:
            return
        found = _identity(self._file)
        if found != self._opened:
            happened = "is gone" if found is None else "is another one"
            raise FileNotFoundError(f"the file {happened}: put it back, or stop what uses it first")


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transaction by itself: `_begin_sqlite` does
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")


def _write_ahead(cursor: Any) -> None:
    # Of several that do it at once SQLite refuses some without waiting: each may have begun to read.
    until = time.monotonic() + _BUSY_SECONDS
    while cursor.execute("PRAGMA journal_mode").fetchone() == ("delete",):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return  # a file system without shared memory leaves it as it is


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock at once. One that reads first and takes it later may find the file changed.
    writes = connection.get_execution_options().get("tasquencer_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


_OPTIONS_OF_SQLALCHEMY = {"prepared_statement_cache_size", "prepared_statement_name_func"}


class PostgresDatabase(Database):
    """A PostgreSQL server, for any number of workers."""

    def __init__(self, url: sa.URL, *, command_seconds: float | None = _COMMAND_SECONDS) -> None:
        super().__init__(url)
        import asyncpg
        from sqlalchemy.ext.asyncio import create_async_engine

        self.outages = (
            *Database.outages,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        )
        ours = inspect.signature(asyncpg.connect).parameters.keys() | _OPTIONS_OF_SQLALCHEMY
        others = {name: value for name, value in url.query.items() if name not in ours}
        connect_args: dict[str, Any] = {
            "timeout": _CONNECT_SECONDS,
            "command_timeout": command_seconds,
            "connection_class": _impatient(asyncpg.Connection),
        }
        if others:  # libpq's options, such as sslrootcert, and the server's: asyncpg knows them in a URL only
            connect_args["dsn"] = "postgresql://?" + urlencode(others, doseq=True)
        self._engine = create_async_engine(
            url.difference_update_query(others),
            isolation_level="READ COMMITTED",
            connect_args=connect_args,
            json_serializer=_to_json,
            json_deserializer=from_json,
            hide_parameters=True,
        )
        self._reading_engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    @property
    def migrates_itself(self) -> bool:
        """Other releases' workers may be using it: someone decides when."""
        return False

    async def read(self, work: Work[T]) -> T:
        """See `Database.read`."""
        async with self._reading_engine.connect() as connection:
            return await connection.run_sync(work)

    async def write(self, work: Work[T]) -> T:
        """See `Database.write`."""
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        """See `Database.close`."""
        await self._engine.dispose()

    def trouble(self, error: Exception) -> Trouble:
        """See `Database.trouble`, by PostgreSQL's error codes."""
        state = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
        if state in ("40001", "40P01"):  # serialization failure, deadlock
            return Trouble.PASSING
        if state.startswith("22"):  # data exception; asyncpg uses it too for values it cannot encode
            return Trouble.REFUSED
        return super().trouble(error)


def _impatient(connection_class: type[Any]) -> type[Any]:
    """The class of connections, whose farewell does not wait for a server that hangs."""

    class Connection(connection_class):  # type: ignore[misc]
        async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's
            with contextlib.suppress(TimeoutError):  # asyncpg has dropped the connection then
                await super().close(timeout=_FAREWELL_SECONDS if timeout is None else timeout)

    return Connection


def database_at(database_url: str, *, command_seconds: float | None = _COMMAND_SECONDS) -> Database:
    """The database of the URL; nothing is opened yet. Raises `ValueError` for a URL it cannot use."""
    url = parse(database_url)
    if url.get_backend_name() == "sqlite":
        return SqliteDatabase(url)
    if "@" in (url.host or ""):
        raise ValueError("the database URL has an @ too many: in a password it is written %40")
    for option in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):  # asyncpg's error names no file
        file = url.query.get(option)
        if isinstance(file, str) and not Path(file).exists():
            raise ValueError(f"{option} in the database URL names {file!r}, which does not exist")
    return PostgresDatabase(url, command_seconds=command_seconds)
