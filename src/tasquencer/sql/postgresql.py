"""The ledger's database on a PostgreSQL server, also behind a pooler such as pgbouncer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from pydantic_core import from_json

from tasquencer.sql.postgres_options import connect_arguments
from tasquencer.sql.transactions import Database, Trouble, Work, json_text

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["COMMAND_SECONDS", "PostgresDatabase"]

T = TypeVar("T")

_CONNECT_SECONDS = 10.0

COMMAND_SECONDS = 30.0
"""How long PostgreSQL may take for a statement. A silent connection is given up after this time."""

_FAREWELL_SECONDS = 1.0

_LOCK_POLL_SECONDS = 0.1

_FRESH_SECONDS = 1.0
"""A connection of at most this age is trusted to be writable."""

_READ_ONLY = "25006"
_LOST_STATEMENTS = ("26000", "42P05")
"""A prepared statement does not exist, or already exists, because another session took this one's place."""


class PostgresDatabase(Database):
    """A PostgreSQL server, for any number of workers.

    Before the first transaction, one connection detects a pooler. Behind a pooler, each transaction may use a
    different session of the server, so statements are not kept prepared.
    """

    def __init__(self, url: sa.URL, *, command_seconds: float | None = COMMAND_SECONDS) -> None:
        super().__init__(url)
        import asyncpg

        self.outages = (
            *Database.outages,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        )
        arguments, self._pooled = connect_arguments(url)
        self._arguments: dict[str, Any] = {
            "timeout": _CONNECT_SECONDS,
            "command_timeout": command_seconds,
            "connection_class": _impatient(asyncpg.Connection),
            **arguments,
        }
        if command_seconds is None:
            self._arguments["command_timeout"] = None
        self._engine: AsyncEngine | None = None
        self._look_again = False
        self._opening = asyncio.Lock()

    @property
    def migrates_itself(self) -> bool:
        """False: workers of other releases may use the database, so a person decides when to upgrade."""
        return False

    async def read(self, work: Work[T]) -> T:
        """See `Database.read`."""
        engine = await self._open()
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            return await connection.run_sync(work)

    async def write(self, work: Work[T]) -> T:
        """See `Database.write`."""
        engine = await self._open()
        async with engine.begin() as connection:
            return await connection.run_sync(work)

    @contextlib.asynccontextmanager
    async def locked(self, key: int) -> AsyncIterator[None]:
        """Hold the advisory lock during the block.

        The lock belongs to its own transaction, so that a pooler keeps it on one session.
        """
        engine = await self._open()
        async with engine.connect() as connection:
            # Poll for the lock. A statement that waits for a lock keeps a snapshot, and CREATE INDEX
            # CONCURRENTLY waits for the end of all snapshots.
            lock = sa.select(sa.func.pg_try_advisory_xact_lock(key))
            while not (await connection.execute(lock)).scalar():
                await connection.rollback()
                await asyncio.sleep(_LOCK_POLL_SECONDS)
            # The second statement also ends the first one's snapshot.
            await connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            yield

    async def close(self) -> None:
        """See `Database.close`."""
        engine, self._engine = self._engine, None
        self._opening = asyncio.Lock()  # it may be opened again on another event loop
        if engine is not None:
            await engine.dispose()

    def trouble(self, error: Exception) -> Trouble:
        """See `Database.trouble`, by PostgreSQL's error codes."""
        state = _state(error)
        if state in ("40001", "40P01"):  # serialization failure, deadlock
            return Trouble.PASSING
        if state.startswith("22"):  # data exception; asyncpg uses it too for values it cannot encode
            return Trouble.REFUSED
        return super().trouble(error)

    def problem(self, error: Exception) -> str:
        """See `Database.problem`."""
        found = super().problem(error)
        if _state(error) == _READ_ONLY:
            found += " (the database is read-only: a standby, or default_transaction_read_only is on)"
        return found

    async def _open(self) -> AsyncEngine:
        if self._engine is None or self._look_again:
            async with self._opening:
                if self._engine is None or self._look_again:
                    pooled = await self._is_behind_pooler() if self._pooled is None else self._pooled
                    before, self._engine = self._engine, self._new_engine(pooled=pooled)
                    self._look_again = False
                    if before is not None:
                        await before.dispose()
        return self._engine

    async def _is_behind_pooler(self) -> bool:
        """Return whether the session's process differs from the one that was announced when it opened."""
        import asyncpg

        connection = await asyncpg.connect(**self._arguments, statement_cache_size=0)
        try:
            process = await connection.fetchval("SELECT pg_backend_pid()")
            return bool(process != connection.get_server_pid())
        finally:
            await connection.close()

    def _new_engine(self, *, pooled: bool) -> AsyncEngine:
        from sqlalchemy.ext.asyncio import create_async_engine

        # Without both caches asyncpg uses the unnamed statement, which is parsed at each execution.
        without_caches = {"statement_cache_size": 0, "prepared_statement_cache_size": 0} if pooled else {}
        engine = create_async_engine(
            sa.URL.create("postgresql+asyncpg"),
            isolation_level="READ COMMITTED",
            connect_args=self._arguments | without_caches,
            json_serializer=json_text,
            json_deserializer=from_json,
            hide_parameters=True,
        )
        sa.event.listen(engine.sync_engine, "connect", _remember_age)
        sa.event.listen(engine.sync_engine, "handle_error", self._give_up_lost_sessions)
        return engine

    def _give_up_lost_sessions(self, context: sa.engine.ExceptionContext) -> None:
        """Close all open connections, so that new ones can reach another server or session.

        After a failover the old primary's sessions are read-only, while new ones are writable.
        """
        state = getattr(context.original_exception, "sqlstate", None)
        if state == _READ_ONLY and context.connection is not None:
            age = time.monotonic() - context.connection.info.get("opened", 0.0)
            context.is_disconnect = age > _FRESH_SECONDS
        elif state in _LOST_STATEMENTS:
            context.is_disconnect = True
            self._look_again = True


def _state(error: Exception) -> str:
    return getattr(getattr(error, "orig", error), "sqlstate", None) or ""


def _remember_age(_connection: object, record: sa.pool.ConnectionPoolEntry) -> None:
    record.info["opened"] = time.monotonic()


def _impatient(connection_class: type[Any]) -> type[Any]:
    """Return the class of connections whose closing does not wait for a server that hangs."""

    class Connection(connection_class):  # type: ignore[misc]
        async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's
            with contextlib.suppress(TimeoutError):  # asyncpg has then dropped the connection
                await super().close(timeout=_FAREWELL_SECONDS if timeout is None else timeout)

    return Connection
