"""The ledger in an SQL database."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

import sqlalchemy as sa
from pydantic import JsonValue

from tasquencer.core.entries import LedgerEntry, cleaned, cleaned_text
from tasquencer.core.errors import LedgerConflict
from tasquencer.core.work_item import Transition, WorkItem, WorkItemState
from tasquencer.ledger.contract import Ledger, OpenWorkItem, Place, Settlement, WorkItemFilter
from tasquencer.ledger.rules import Supersession
from tasquencer.sql.batches import SqlBatches
from tasquencer.sql.databases import SqliteDatabase, Trouble, database_at
from tasquencer.sql.group_commit import GroupCommit, Write
from tasquencer.sql.migrate import check_schema, upgrade_database
from tasquencer.sql.reading import (
    domain_records_in,
    holder_in,
    open_work_items_in,
    transitions_in,
    work_items_in,
)
from tasquencer.sql.schema import ai_jobs
from tasquencer.sql.superseding import supersessions_in
from tasquencer.sql.task_listing import TaskFilter, TaskSummary, tasks_in
from tasquencer.sql.writing import find_open, settle, taken_attempt, write

__all__ = ["SqlLedger"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_TRIES = 5
"""How often to try a transaction that lost a race or whose connection was stale."""


class _Refused(Exception):
    """The database refuses the write each time."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        super().__init__(str(error))


class SqlLedger(Ledger):
    """The ledger in SQLite or PostgreSQL.

    A SQLite file is created if necessary and migrates automatically when it is opened. A PostgreSQL database
    must already be migrated (`tasq db upgrade`). A warning is logged if it may lose committed data.

    Args:
        database_url: `sqlite:///file.db`, `sqlite://` (in memory), `postgresql://user@host/database`.
        domain_tables: Your own domain tables by name, in addition to `ai_jobs`. Each has a unique column
        `work_item_id` and takes JSON values. You create it.

    Raises:
        ValueError: the ledger cannot use the URL.
    """

    def __init__(self, database_url: str, *, domain_tables: Mapping[str, sa.Table] | None = None) -> None:
        self._database = database_at(database_url)
        self._domain_tables = {ai_jobs.name: ai_jobs, **(domain_tables or {})}
        self._commits = GroupCommit(self._write)

    @property
    def database(self) -> str:
        """The database's URL for people, without driver, options and password."""
        return self._database.name

    @property
    def batches(self) -> SqlBatches:
        """The batches in the same database. They are open as long as the ledger is."""
        return SqlBatches(self._read, self._change_or_wait)

    async def open(self) -> None:
        """See `Ledger.open`."""
        try:
            if isinstance(self._database, SqliteDatabase):
                await upgrade_database(self._database)
            else:
                await check_schema(self._database)
                await self._warn_of_forgetting()
        except self._database.outages as error:
            raise self._database.unavailable(error) from error

    async def _warn_of_forgetting(self) -> None:
        setting = sa.text("SELECT current_setting('synchronous_commit')")
        if await self._database.read(lambda connection: connection.scalar(setting)) == "off":
            _log.warning(
                "ledger %s: synchronous_commit is off, so a crash of the database may lose committed data. "
                "Set it to on: ALTER DATABASE … SET synchronous_commit = on",
                self.database,
            )

    async def close(self) -> None:
        """See `Ledger.close`."""
        await self._commits.finish()
        await self._database.close()

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        """See `Ledger.record`."""
        if entries:
            await self._commits.add(Write([cleaned(entry) for entry in entries]))

    async def record_and_find_open(
        self, entries: Sequence[LedgerEntry], task_id: str, run_id: str
    ) -> frozenset[str]:
        """See `Ledger.record_and_find_open`. This is one transaction."""
        write = Write([cleaned(entry) for entry in entries], (task_id, run_id))
        await self._commits.add(write)
        return frozenset(write.found_open)

    async def settle(self, settlement: Settlement) -> list[str]:
        """See `Ledger.settle`."""
        return await self._change_or_wait(
            lambda connection: settle(connection, settlement, self._domain_tables)
        )

    async def work_items(self, wanted: WorkItemFilter) -> list[WorkItem]:
        """See `Ledger.work_items`."""
        texts = {name: getattr(wanted, name) for name in ("failure_kind", "payload_kind")}
        wanted = wanted.model_copy(
            update={name: cleaned_text(text) for name, text in texts.items() if text is not None}
        )
        return await self._read(lambda connection: work_items_in(connection, wanted))

    async def tasks(self, wanted: TaskFilter) -> list[TaskSummary]:
        """Return tasks, the most recently active ones first."""
        return await self._read(lambda connection: tasks_in(connection, wanted))

    async def open_work_items(
        self, *, created_before: datetime, after: Place | None = None, limit: int = 1000
    ) -> list[OpenWorkItem]:
        """See `Ledger.open_work_items`."""
        return await self._read(
            lambda connection: open_work_items_in(connection, created_before, after, limit)
        )

    async def transitions_of(self, work_item_ids: Sequence[str]) -> dict[str, list[Transition]]:
        """See `Ledger.transitions_of`."""
        return await self._read(lambda connection: transitions_in(connection, work_item_ids))

    async def domain_records(
        self, table: str, work_item_ids: Sequence[str]
    ) -> dict[str, dict[str, JsonValue]]:
        """See `Ledger.domain_records`."""
        found = self._domain_tables[table]
        return await self._read(lambda connection: domain_records_in(connection, found, work_item_ids))

    async def supersessions(self, work_item_ids: Sequence[str]) -> dict[str, list[Supersession]]:
        """See `Ledger.supersessions`."""
        return await self._read(lambda connection: supersessions_in(connection, list(work_item_ids)))

    async def holder(self, work_item_id: str) -> tuple[str, WorkItemState] | None:
        """See `Ledger.holder`."""
        return await self._read(lambda connection: holder_in(connection, work_item_id))

    async def _write(self, writes: Sequence[Write]) -> None:
        entries = [entry for one in writes for entry in one.entries]

        def work(connection: sa.Connection) -> None:
            write(connection, entries, self._domain_tables)
            find_open(connection, writes)

        async def check_attempts() -> None:
            taken = await self._read(lambda connection: taken_attempt(connection, entries))
            if taken is not None:
                raise taken

        try:
            await self._change(work, check_attempts)
        except _Refused as refused:
            raise self._refusal(entries, refused.error) from refused.error

    async def _change_or_wait(self, work: Callable[[sa.Connection], T]) -> T:
        """Do the work in a transaction. If it is refused each time, that counts as an outage."""
        try:
            return await self._change(work)
        except _Refused as refused:
            raise self._database.unavailable(refused.error) from refused.error

    async def _change(
        self, work: Callable[[sa.Connection], T], explain: Callable[[], Awaitable[None]] | None = None
    ) -> T:
        """Do the work in a transaction, and repeat it if it lost a race.

        Args:
            work: Reads and writes.
            explain: Raises the meaning of a violated constraint, if it is known. Otherwise another writer may
            have written the same, and the next try skips it.

        Raises:
            _Refused: a constraint is violated each time.
        """
        database = self._database
        for tries_left in reversed(range(_TRIES)):
            try:
                return await database.write(work)
            except database.outages as error:
                trouble = database.trouble(error)
                if trouble is Trouble.OUTAGE or (trouble is Trouble.PASSING and not tries_left):
                    raise database.unavailable(error) from error
                if trouble is Trouble.REFUSED:
                    if explain is not None:
                        await explain()
                    if not tries_left:
                        raise _Refused(error) from error
        raise AssertionError("unreachable")

    def _refusal(self, entries: Sequence[LedgerEntry], error: Exception) -> LedgerConflict:
        others = f" (or one of the {len(entries) - 1} entries recorded with it)" if len(entries) > 1 else ""
        return LedgerConflict(entries[0].work_item.id, f"{self._database.problem(error)}{others}")

    async def _read(self, work: Callable[[sa.Connection], T]) -> T:
        for tries_left in reversed(range(_TRIES)):
            try:
                return await self._database.read(work)
            except self._database.outages as error:
                if not tries_left or self._database.trouble(error) is not Trouble.PASSING:
                    raise self._database.unavailable(error) from error
        raise AssertionError("unreachable")
