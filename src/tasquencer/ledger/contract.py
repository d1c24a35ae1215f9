"""The ledger's contract.

The ledger is the queryable projection of what tasks do: work items, their transitions, and the
domain records beside them. The workflow histories are the truth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import AlreadyEnded, LedgerConflict
from tasquencer.core.work_item import LEGAL_TRANSITIONS, DelayReason, Transition, WorkItem, WorkItemState

__all__ = [
    "Ledger",
    "OpenWorkItem",
    "Place",
    "Settlement",
    "WorkItemFilter",
    "as_recorded",
    "caught_up",
    "fitting",
    "is_new",
]

_PAGE = 500


class Ledger(ABC):
    """Where work items, their transitions and the domain records live.

    **Opening.** A ledger is an async context manager. Opening it checks that the database can be
    used and holds the schema this release works with (`LedgerUnavailable`, `SchemaMismatch`).

    **Writing** happens only through `record`, at least once. One call is one transaction: either
    all its entries are in the ledger when it returns, or it raises and none is.

    - An entry whose transition the ledger already holds (same work item, same sequence, same next
      state) was delivered twice: it is skipped, domain record included.
    - An entry whose sequence the ledger holds with another next state, whose previous state is not
      the work item's present state, whose sequence does not follow the last one, that leaves a
      terminal state, or that creates a work item whose run, lineage and attempt are taken,
      raises `LedgerConflict`. So does one that contradicts itself (see `is_new`).
    - Where such an entry only cancels a work item that has completed or failed instead, the conflict is an
      `AlreadyEnded`: whoever gave the work item up can take its end over.
    - The domain record replaces the one with the same table and work item.
    - `payload`, ids, attempt and the plan of the delay are taken from the entry that creates the
      work item. Later entries set state, result, failure, times, the worker where they name one,
      and, where an operator changed the wait, `delay_seconds`, `delay_reason` and `not_before`.
    - A terminal work item, its domain record and every transition are immutable. Where the ledger
      is a database, the database itself refuses to update or delete them.
    - Text that a database cannot hold (NUL characters, lone surrogates) is stored with U+FFFD in
      its place. Ids are kept: two that differ in such a character stay two.
    - Any outage raises `LedgerUnavailable`; the caller may try the same entries again.

    **Settling** (`settle`) ends what a run of a task has left open, or what the settlement names of it, as if
    the task had canceled it.

    **Reading** sees all entries whose `record` has returned. Lists are newest first
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
        """Write the entries in one transaction. Raises `LedgerConflict` or `LedgerUnavailable`."""

    @abstractmethod
    async def settle(self, settlement: Settlement) -> list[str]:
        """Cancel the work items that the settlement names and that are still open; their ids.

        One transaction: each gets its transition, with the settlement's time, actor and reason, and where
        its domain record has a column `status`, that becomes `canceled`. What has ended stays as it is, so
        settling twice settles nothing more. Raises `LedgerUnavailable`.
        """

    @abstractmethod
    async def work_items(self, wanted: WorkItemFilter) -> list[WorkItem]:
        """The work items that the filter selects, each whole."""

    @abstractmethod
    async def open_work_items(
        self, *, created_before: datetime, after: Place | None = None, limit: int = 1000
    ) -> list[OpenWorkItem]:
        """Work items that are initialized or started, oldest first, of any task.

        Page by page with `after`, in a time that does not grow with how many work items have ended or were on
        the pages before.

        Args:
            created_before: Only those; aware.
            after: Only those that come after this place in the order.
            limit: At most this many.
        """

    @abstractmethod
    async def transitions_of(self, work_item_ids: Sequence[str]) -> dict[str, list[Transition]]:
        """The transitions of some work items, oldest first, by work item id; what is unknown is left out."""

    @abstractmethod
    async def domain_records(
        self, table: str, work_item_ids: Sequence[str]
    ) -> dict[str, dict[str, JsonValue]]:
        """The domain records of a table, by work item id; work items without one are left out.

        Raises:
            KeyError: the ledger has no domain table of that name.
        """

    async def transitions(self, work_item_id: str) -> list[Transition]:
        """The transitions of one work item, oldest first; empty if there is no such work item."""
        return (await self.transitions_of([work_item_id])).get(work_item_id, [])

    async def work_items_of(self, task_id: str) -> list[WorkItem]:
        """All work items of a task, oldest first, each whole."""
        items: list[WorkItem] = []
        while True:
            wanted = WorkItemFilter(task_id=task_id, limit=_PAGE, offset=len(items), oldest_first=True)
            page = await self.work_items(wanted)
            items += page
            if len(page) < _PAGE:
                return items


class Settlement(BaseModel):
    """What is to be ended, and what its transitions say.

    Attributes:
        task_id: The task's.
        run_id: Only work items that this run of it has created.
        work_item_ids: Only these of them; None: all.
        at: When they end; aware.
        reason: Why, in one line.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str
    run_id: str
    work_item_ids: frozenset[str] | None = None
    at: AwareDatetime
    actor: str
    reason: str


class Place(BaseModel):
    """A place in the order of all work items: where a page ended, and the next one begins."""

    model_config = ConfigDict(frozen=True)

    created_at: AwareDatetime
    attempt: int
    id: str


class OpenWorkItem(BaseModel):
    """What a list of open work items tells of each: whose it is, and its place in the order."""

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
        """Where the next page begins if this is the last one of a page."""
        return Place(created_at=self.created_at, attempt=self.attempt, id=self.id)


class WorkItemFilter(BaseModel):
    """Which work items to list; what is None does not matter.

    Attributes:
        payload_kind: The payload is an object whose `kind` is this text.
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
    payload_kind: str | None = None
    created_since: datetime | None = None
    ended_since: datetime | None = None
    limit: int = 100
    offset: int = 0
    oldest_first: bool = False


def caught_up(entry: LedgerEntry, log: Mapping[int, WorkItemState]) -> LedgerEntry | None:
    """The entry as it applies to what the ledger already holds; None if it was written before.

    A worker that dies between its commit and the end of its workflow task leaves a start that no history
    knows. If the task is canceled meanwhile, the next worker cancels the work item before its start: here
    that ends the started one. Nothing was called: the call leaves with the workflow task.
    """
    transition = entry.transition
    if (
        transition.next_state is not WorkItemState.CANCELED
        or transition.previous_state is not WorkItemState.INITIALIZED
        or log.get(transition.sequence) is not WorkItemState.STARTED
    ):
        return entry
    last = max(log)
    if log[last] is WorkItemState.CANCELED:
        return None
    update = {"sequence": last + 1, "previous_state": log[last]}
    return entry.model_copy(update={"transition": transition.model_copy(update=update)})


def fitting(entry: LedgerEntry, log: Mapping[int, WorkItemState]) -> LedgerEntry | None:
    """The entry as it is to be written after what the ledger holds; None if there is nothing to write.

    Args:
        log: Of the entry's work item, the next states of the transitions that the ledger holds, by sequence.

    Raises:
        LedgerConflict: See `is_new`. An entry that is only offered is left out instead.
    """
    try:
        caught = caught_up(entry, log)
        return caught if caught is not None and is_new(caught, log) else None
    except LedgerConflict:
        if entry.offered:
            return None
        raise


def is_new(entry: LedgerEntry, log: Mapping[int, WorkItemState]) -> bool:
    """Whether the entry is to be written; False if it was delivered twice.

    Args:
        log: Of the entry's work item, the next states of the transitions that the ledger holds, by sequence.

    Raises:
        AlreadyEnded: the entry cancels what has ended otherwise with this very transition.
        LedgerConflict: the entry contradicts the log or itself: transition and work item disagree on id or
            state, it has ended without a time or has one before its end, it was started without a time, or
            failed without a failure.
    """
    transition, item = entry.transition, entry.work_item
    held = log.get(transition.sequence)
    if held is transition.next_state:
        return False
    if held is not None:
        gives_up = held.is_terminal and transition.next_state is WorkItemState.CANCELED
        raise (AlreadyEnded if gives_up else LedgerConflict)(
            item.id, f"its transition {transition.sequence} is {held}, the entry says {transition.next_state}"
        )
    state = log[max(log)] if log else None
    found = "does not exist" if state is None else f"is {state} after transition {max(log)}"
    if transition.sequence != len(log) or transition.previous_state is not state:
        before = "nothing" if transition.previous_state is None else transition.previous_state
        expected = f"transition {transition.sequence} from {before}"
        raise LedgerConflict(item.id, f"it {found}, the entry is its {expected}")
    if transition.next_state not in LEGAL_TRANSITIONS[state]:
        raise LedgerConflict(item.id, f"it {found} and cannot become {transition.next_state}")
    if (problem := _contradiction(transition, item)) is not None:
        raise LedgerConflict(item.id, f"the entry contradicts itself: {problem}")
    return True


def _contradiction(transition: Transition, item: WorkItem) -> str | None:
    if transition.work_item_id != item.id:
        return f"its transition is of work item {transition.work_item_id!r}"
    if transition.next_state is not item.state:
        return f"the transition leads to {transition.next_state}, the work item is {item.state}"
    if item.state.is_terminal != (item.ended_at is not None):
        return f"{item.state} {'without' if item.ended_at is None else 'with'} ended_at"
    if item.started_at is None and item.state not in (WorkItemState.INITIALIZED, WorkItemState.CANCELED):
        return f"{item.state} without started_at"
    if (item.state is WorkItemState.FAILED) != (item.failure is not None):
        return f"{item.state} {'without' if item.failure is None else 'with'} a failure"
    return None


def as_recorded(later: WorkItem, present: WorkItem) -> WorkItem:
    """The work item after a later entry: what only the creating entry sets stays as it is."""
    kept = ["id", "task_id", "run_id", "task_type", "lineage", "attempt", "payload", "created_at"]
    if later.delay_reason is not DelayReason.OPERATOR:
        kept += ["delay_seconds", "delay_reason", "not_before"]
    kept += ["worker"] if later.worker is None else []
    kept += ["started_at"] if present.started_at is not None else []  # as its transition says
    return later.model_copy(update={name: getattr(present, name) for name in kept})
