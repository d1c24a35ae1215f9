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
"""How long SQLite waits for another process's lock. The bookkeeping waits longer, so it gets SQLite's clear
error."""

_PAUSE_SECONDS = 0.01
"""The pause between two tries to get a lock for which SQLite itself does not wait."""


class SqliteDatabase(Database):
    """A file, or memory. There is one writer at a time, in its own thread, and any number of readers.

    Commits are durable (`synchronous=FULL`). A commit of 2 kB took 0.29 ms, and 0.02 ms with `NORMAL`. But
    `NORMAL` may lose the last commits in a power cut, and then the ledger could lack an AI request that was
    sent.
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
            None  # the writer's, kept open because opening takes longer than a write
        )
        self._new_threads()

    def _new_threads(self) -> None:
        self._writer = ThreadPoolExecutor(1, "tasquencer-ledger-writer")
        self._reader = self._writer
        if self._is_file:
            self._reader = ThreadPoolExecutor(_READERS, "tasquencer-ledger-reader")

    @property
    def migrates_itself(self) -> bool:
        """True, because the file belongs to this program."""
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
        """Create the folder of the file, and turn on the write-ahead log, so that readers need not wait."""

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
        """See `Database.close`. Waits for the current transaction."""
        self._writer.submit(self._end_writing)
        await asyncio.to_thread(self._writer.shutdown)
        await asyncio.to_thread(self._reader.shutdown)
        self._engine.dispose()
        self._opened = None
        self._new_threads()  # they start when needed, so a closed ledger can be opened again

    def _create_privately(self, *_arguments: object) -> None:
        """Create the file if necessary, only for its owner. SQLite gives its other files the same rights."""
        path = self._file
        if path is None and self._is_file and self._url.query.get("mode", "rwc") == "rwc":
            path = Path(unquote((self._url.database or "").removeprefix("file:").partition("?")[0]))
        if path is not None:
            with contextlib.suppress(OSError):  # SQLite's own error is clearer
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))

    def _remember_file(self, _connection: object, _record: object) -> None:
        if self._opened is None and self._file is not None:
            self._opened = _identity(self._file)

    def _check_file(self) -> None:
        """Raise an error if the file is gone or was replaced, because SQLite would still write to the lost
        file.

        A new file is not opened, because SQLite would apply the old file's log (`-wal`) to it.
        """
        if self._opened is None or self._file is None:
            return
        found = _identity(self._file)
        if found != self._opened:
            happened = "is gone" if found is None else "was replaced by another one"
            raise FileNotFoundError(f"the file {happened}: put the original back, or stop this program first")


def _make_private(folder: Path) -> None:
    """Create the folder and its missing parents, only for their owner."""
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
    connection.isolation_level = None  # `_begin_sqlite` begins transactions, not the driver
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")


def _write_ahead(cursor: Any) -> None:
    # SQLite refuses this without waiting if several connections do it at the same time.
    until = time.monotonic() + _BUSY_SECONDS
    while cursor.execute("PRAGMA journal_mode").fetchone() == ("delete",):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return  # a file system without shared memory ignores it


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock immediately. If it read first, the file could change before it gets the lock.
    writes = connection.get_execution_options().get("tasquencer_writes", False)
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    driver.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
