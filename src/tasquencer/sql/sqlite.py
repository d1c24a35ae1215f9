"""The ledger's database in a SQLite file, or in memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import sqlalchemy as sa
from pydantic_core import from_json

from tasquencer.sql.transactions import Database, Work, json_text

__all__ = ["SqliteDatabase"]

T = TypeVar("T")

_READERS = 4

_BUSY_SECONDS = 4.0
"""How long SQLite waits for another process's lock. Less than the bookkeeping waits, so that its error
says what the matter is."""

_PAUSE_SECONDS = 0.01
"""Between two tries to get a lock for which SQLite itself doesn't wait."""


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
            json_serializer=json_text,
            json_deserializer=from_json,
            hide_parameters=True,
        )
        sa.event.listen(self._engine, "do_connect", self._create_privately)
        sa.event.listen(self._engine, "connect", _prepare_sqlite)
        sa.event.listen(self._engine, "connect", self._remember_file)
        sa.event.listen(self._engine, "begin", _begin_sqlite)
        self._writing_engine = self._engine.execution_options(tasquencer_writes=True)
        self._is_file = is_file
        self._writing: sa.Connection | None = (
            None  # the writer's, kept: to get one takes longer than to use it
        )
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
            if self._writing is None:
                self._writing = self._writing_engine.connect()
            try:
                with self._writing.begin():
                    return work(self._writing)
            except BaseException:
                self._end_writing()
                raise

        return await asyncio.get_running_loop().run_in_executor(self._writer, job)

    def _end_writing(self) -> None:
        connection, self._writing = self._writing, None
        if connection is not None:
            connection.close()

    async def prepare(self) -> None:
        """Create the folder of the file, and let it have a write-ahead log (readers beside the writer)."""

        def job() -> None:
            if self._file is not None:
                _make_private(self._file.parent)
            connection = self._engine.raw_connection()
            try:
                _write_ahead(connection.cursor())
            finally:
                connection.close()

        await asyncio.get_running_loop().run_in_executor(self._writer, job)

    async def close(self) -> None:
        """See `Database.close`. Waits for the transaction under way."""
        self._writer.submit(self._end_writing)
        await asyncio.to_thread(self._writer.shutdown)
        await asyncio.to_thread(self._reader.shutdown)
        self._engine.dispose()
        self._opened = None
        self._new_threads()  # none runs before it is needed: a closed ledger may be opened again

    def _create_privately(self, *_arguments: object) -> None:
        """Create the file if need be, for its owner alone. SQLite's files beside it get the same rights."""
        path = self._file
        if path is None and self._is_file and self._url.query.get("mode", "rwc") == "rwc":
            path = Path(unquote((self._url.database or "").removeprefix("file:").partition("?")[0]))
        if path is not None:
            with contextlib.suppress(OSError):  # SQLite says what the matter is
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))

    def _remember_file(self, _connection: object, _record: object) -> None:
        if self._opened is None and self._file is not None:
            self._opened = _identity(self._file)

    def _check_file(self) -> None:
        """Notice that the file is gone or another one: SQLite would continue to write to the lost file.

        Another one is not opened: SQLite would take the log of the old one (`-wal`) for its own.
        """
        if self._opened is None or self._file is None:
            return
        found = _identity(self._file)
        if found != self._opened:
            happened = "is gone" if found is None else "is another one"
            raise FileNotFoundError(f"the file {happened}: put it back, or stop what uses it first")


def _make_private(folder: Path) -> None:
    """Create the folder and those above it that are missing, for their owner alone."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing or [folder]):
        one.mkdir(mode=0o700, exist_ok=True)


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
    # If several connections do this at the same time, SQLite refuses some without waiting.
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
    # A writer takes the lock immediately. If it read first, the file could change before it has the lock.
    writes = connection.get_execution_options().get("tasquencer_writes", False)
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    driver.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
