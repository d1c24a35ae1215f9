"""Read-only view of the ledger, for following a running task."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Self

from tasquencer.core.errors import LedgerUnavailable, SchemaMismatch

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    from tasquencer.core.work_item import WorkItem
    from tasquencer.settings import Settings
    from tasquencer.sql import SqlLedger

__all__ = ["LedgerView"]

_TRY_AGAIN_SECONDS = 5.0
"""Seconds between two tries to open a ledger that cannot be used."""


class LedgerView:
    """The ledger that the settings name. It is opened at the first read, and again after an outage.

    A SQLite file that does not exist is not created. The ledger then has no work items.

    Attributes:
        problem: Why the last read failed. None if it succeeded.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened = AsyncExitStack()
        self._ledger: SqlLedger | None = None
        self._not_before = 0.0
        self.problem: str | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def work_items_of(self, task_id: str, since: datetime | None) -> list[WorkItem] | None:
        """Return the work items of a task, oldest first, or None if the ledger cannot be read.

        Args:
            task_id: The task's.
            since: When the task started. Older work items belong to an earlier task with the same id.
        """
        if monotonic() < self._not_before:
            return None
        try:
            ledger = await self._open()
            items = [] if ledger is None else await ledger.work_items_of(task_id)
        except (LedgerUnavailable, SchemaMismatch, ModuleNotFoundError) as error:
            self.problem = str(error)
            self._not_before = monotonic() + _TRY_AGAIN_SECONDS
            await self._close()
            return None
        self.problem = None
        return [item for item in items if since is None or item.created_at >= since]

    async def _open(self) -> SqlLedger | None:
        """Return the open ledger, or None if its file does not exist."""
        from tasquencer.cli.connections import open_ledger

        if self._ledger is None and _exists(self._settings.database_url):
            ledger = open_ledger(self._settings)
            self._ledger = await self._opened.enter_async_context(ledger)
        return self._ledger

    async def _close(self) -> None:
        self._ledger = None
        await self._opened.aclose()


def _exists(database_url: str) -> bool:
    """Return whether there is a ledger to open. A server counts as one."""
    from tasquencer.cli.connections import readable_database_url
    from tasquencer.sql.urls import parse

    with readable_database_url():
        url = parse(database_url)
    if url.get_backend_name() != "sqlite":
        return True
    if not url.database:  # in memory
        return False
    return "uri" in url.query or Path(url.database).exists()
