"""The ledger's contract.

The ledger is a projection of tasks that can be queried: work items, their transitions, and their domain
records. The workflow histories are the truth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.observed import is_observed
from tasquencer.core.work_item import Transition, WorkItem, WorkItemState
from tasquencer.ledger.rules import Supersession

__all__ = [
    "Ledger",
    "OpenWorkItem",
    "Place",
    "Settlement",
    "WorkItemFilter",
]

_PAGE = 500


class Ledger(ABC):
    """Holds work items, their transitions and the domain records.

    **Opening.** A ledger is an async context manager. Opening it checks that the database can be
    used and that its schema fits this release (`LedgerUnavailable`, `SchemaMismatch`).

    **Writing** happens only through `record`, at least once. One call is one transaction: either
    all its entries are in the ledger when it returns, or it raises and none of them is.

    - An entry that the ledger already holds was delivered twice. It is skipped with its domain record.
    Times do not matter.
    - An entry that contradicts the ledger replaces what it contradicts, if its workflow task began no
    earlier (`as_of`) than the one that wrote that. The replaced part is kept as a `Supersession`. The
    rules are in `tasquencer.ledger.rules`.
    - A contradicting entry that is only `offered` is skipped instead.
    - An entry raises `LedgerConflict` if it is older than what it contradicts, leaves a gap, is about a
    work item of another task, creates a work item whose run, lineage and attempt are taken, or
    contradicts itself.
    - The domain record replaces the one with the same table and work item.
    - `payload`, ids, attempt and the planned delay are taken from the entry that creates the
      work item. Later entries set state, result, failure, times, the worker if they name one, and,
      if an operator changed the wait, `delay_seconds`, `delay_reason` and `not_before`.
      - A terminal work item, its domain record and every transition are immutable, except as above. If the
      ledger is a database, the database itself refuses to update or delete them without a supersession.
    - Text that a database cannot hold (NUL characters, lone surrogates) is stored with U+FFFD in
      its place. Ids are kept as they are.
      - Any outage raises `LedgerUnavailable`. The caller may try the same entries again.

    **Settling** (`settle`) cancels the work items that a run of a task has left open, or the named ones among
    them, as if the task had canceled them. Observed attempts are settled only by name: Temporal may still be
    running them.

    **Reading** sees all entries whose `record` has returned. Lists are newest first
    (`created_at`, then attempt, descending) unless the filter says otherwise.
    """

    @abstractmethod
    async def open(self) -> None:
        """Connect and check the schema. Raises `LedgerUnavailable` or `SchemaMismatch`."""

    @abstractmethod
    async def close(self) -> None:
        """Close all connections. Closing twice does nothing."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @abstractmethod
    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        """Write the entries in one transaction. Raises `LedgerConflict` or `LedgerUnavailable`."""

    async def record_and_find_open(
        self, entries: Sequence[LedgerEntry], task_id: str, run_id: str
    ) -> frozenset[str]:
        """Write the entries like `record`, then return the ids of the work items that the run has open.

        These are the work items that a run of a task has created and that have not ended, without observed
        attempts.
        """
        await self.record(entries)
        items = await self.work_items_of(task_id)
        of_run = (item for item in items if item.run_id == run_id and not item.state.is_terminal)
        return frozenset(item.id for item in of_run if not is_observed(item.id))

    async def supersessions(self, work_item_ids: Sequence[str]) -> dict[str, list[Supersession]]:
        """Return the supersessions of some work items, oldest first, by work item id. Most have none."""
        return {}

    async def holder(self, work_item_id: str) -> tuple[str, WorkItemState] | None:
        """Return the task and the state of a work item, or None if there is no such work item."""
        found = await self.work_items(WorkItemFilter(work_item_id=work_item_id, limit=1))
        return (found[0].task_id, found[0].state) if found else None

    @abstractmethod
    async def settle(self, settlement: Settlement) -> list[str]:
        """Cancel the open work items that the settlement names, and return their ids.

        This is one transaction. Each work item gets its transition, with the settlement's time, actor and
        reason. A column `status` of its domain record becomes `canceled`. Work items that have ended stay as
        they are, so a second settlement changes nothing. Raises `LedgerUnavailable`.
        """

    @abstractmethod
    async def work_items(self, wanted: WorkItemFilter) -> list[WorkItem]:
        """Return the complete work items that the filter selects."""

    @abstractmethod
    async def open_work_items(
        self, *, created_before: datetime, after: Place | None = None, limit: int = 1000
    ) -> list[OpenWorkItem]:
        """Return the initialized and started work items of all tasks, oldest first.

        Read page by page with `after`. The time of a page does not depend on the number of ended work items
        or of earlier pages.

        Args:
            created_before: Only work items created before this time (aware).
            after: Only work items after this place in the order.
            limit: At most this many.
        """

    @abstractmethod
    async def transitions_of(self, work_item_ids: Sequence[str]) -> dict[str, list[Transition]]:
        """Return the transitions of some work items, oldest first, by work item id, without unknown ids."""

    @abstractmethod
    async def domain_records(
        self, table: str, work_item_ids: Sequence[str]
    ) -> dict[str, dict[str, JsonValue]]:
        """Return the domain records of a table, by work item id, without work items that have none.

        Raises:
            KeyError: the ledger has no domain table of that name.
        """

    async def transitions(self, work_item_id: str) -> list[Transition]:
        """Return the transitions of one work item, oldest first. Empty if there is no such work item."""
        return (await self.transitions_of([work_item_id])).get(work_item_id, [])

    async def work_items_of(self, task_id: str) -> list[WorkItem]:
        """Return all work items of a task, complete, oldest first."""
        items: list[WorkItem] = []
        while True:
            wanted = WorkItemFilter(task_id=task_id, limit=_PAGE, offset=len(items), oldest_first=True)
            page = await self.work_items(wanted)
            items += page
            if len(page) < _PAGE:
                return items


class Settlement(BaseModel):
    """The work items to cancel, with the time and the reason.

    Attributes:
        task_id: The task's.
        run_id: Only work items that this run of it has created.
        work_item_ids: Only these of them; None: all but observed attempts.
        spared: Not these, where `work_item_ids` is None.
        only_looks: Cancel nothing. The task may continue, and only wants to know what is left open.
        at: When they end; aware.
        reason: Why, in one line.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str
    run_id: str
    work_item_ids: frozenset[str] | None = None
    spared: frozenset[str] = frozenset()
    only_looks: bool = False
    at: AwareDatetime
    actor: str
    reason: str

    def covers(self, work_item_id: str) -> bool:
        """Return whether it settles this work item, if the run has left it open."""
        if self.work_item_ids is None:
            return not is_observed(work_item_id) and work_item_id not in self.spared
        return work_item_id in self.work_item_ids


class Place(BaseModel):
    """A place in the order of all work items, between two pages."""

    model_config = ConfigDict(frozen=True)

    created_at: AwareDatetime
    attempt: int
    id: str


class OpenWorkItem(BaseModel):
    """An open work item in a list: its task and run, and its place in the order."""

    model_config = ConfigDict(frozen=True)

    id: str
    task_id: str
    run_id: str
    lineage: str
    attempt: int
    state: WorkItemState
    created_at: AwareDatetime

    @property
    def place(self) -> Place:
        """Return the place where the next page begins if this work item is the last one of a page."""
        return Place(created_at=self.created_at, attempt=self.attempt, id=self.id)


class WorkItemFilter(BaseModel):
    """Selects the work items to list. A field that is None does not matter.

    Attributes:
        payload_kind: The payload is an object whose `kind` is this text.
        created_since: Created at this time (aware) or later.
        ended_since: Ended at this time (aware) or later.
        limit: At most this many.
        offset: Skip this many of the newest.
        oldest_first: Reverse the order.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str | None = None
    work_item_id: str | None = None
    states: frozenset[WorkItemState] | None = None
    failure_kind: str | None = None
    payload_kind: str | None = None
    created_since: datetime | None = None
    ended_since: datetime | None = None
    limit: int = 100
    offset: int = 0
    oldest_first: bool = False
