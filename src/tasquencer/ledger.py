"""The ledger's contract.

The ledger is the queryable projection of what tasks do: work items, their transitions, and the
domain records beside them. The workflow histories are the truth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, JsonValue

from tasquencer.entries import LedgerEntry
from tasquencer.work_item import Transition, WorkItem, WorkItemState

__all__ = ["Ledger", "WorkItemFilter"]


class Ledger(ABC):
    """Where work items, their transitions and the domain records live.

    **Opening.** A ledger is an async context manager. Opening it checks that the database can be
    used and holds the schema this release works with (`LedgerUnavailable`, `SchemaMismatch`).

    **Writing** happens only through `record`, at least once. One call is one transaction: either
    all entries of the batch are in the ledger when it returns, or it raises and none is.

    - An entry whose transition the ledger already holds (same work item, same sequence, same next
      state) was delivered twice: it is skipped, domain record included.
    - An entry whose sequence the ledger holds with another next state, whose previous state is not
      the work item's present state, whose sequence does not follow the last one, that leaves a
      terminal state, or that creates a work item whose run, lineage and attempt are taken,
      raises `LedgerConflict`.
    - The domain record replaces the one with the same table and work item.
    - `payload`, ids, attempt and the plan of the delay are taken from the entry that creates the
      work item. Later entries set state, result, failure, times, worker, and, where an operator
      changed the wait, `delay_seconds`, `delay_reason` and `not_before`.
    - A terminal work item, its domain record and every transition are immutable. Where the ledger
      is a database, the database itself refuses to update or delete them.
    - Text that a database cannot hold (NUL characters, lone surrogates) is stored with U+FFFD in
      its place.
    - Any outage raises `LedgerUnavailable`; the caller may try the same batch again.

    **Reading** sees every batch whose `record` has returned. Lists are newest first
    (`created_at`, then attempt, descending) unless the filter says otherwise.
    """

    @abstractmethod
    async def open(self) -> None:
        """Connect and check the schema. Raises `LedgerUnavailable` or `SchemaMismatch`."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of all connections. Closing twice does nothing."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @abstractmethod
    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        """Write the batch in one transaction. Raises `LedgerConflict` or `LedgerUnavailable`."""

    @abstractmethod
    async def work_items(self, wanted: WorkItemFilter) -> list[WorkItem]:
        """The work items that the filter selects, each whole."""

    @abstractmethod
    async def transitions(self, work_item_id: str) -> list[Transition]:
        """The transitions of one work item, oldest first; empty if there is no such work item."""

    @abstractmethod
    async def domain_records(self, table: str, work_item_ids: Sequence[str]) -> dict[str, dict[str, JsonValue]]:
        """The domain records of a table, by work item id; work items without one are left out.

        Raises:
            KeyError: the ledger has no domain table of that name.
        """


class WorkItemFilter(BaseModel):
    """Which work items to list; what is None does not matter.

    Attributes:
        created_since: Created at this time or later; aware.
        ended_since: Ended at this time or later; aware.
        limit: At most this many.
        offset: Leave out this many of the newest.
        oldest_first: Turn the order around.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str | None = None
    work_item_id: str | None = None
    states: frozenset[WorkItemState] | None = None
    failure_kind: str | None = None
    created_since: datetime | None = None
    ended_since: datetime | None = None
    limit: int = 100
    offset: int = 0
    oldest_first: bool = False
