"""The books of a task: its work items, transitions and counts, and the entries still to be recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from tasquencer.core.entries import DomainRecord, LedgerEntry
from tasquencer.core.errors import IllegalTransition, TaskMisused, UnknownWorkItem
from tasquencer.core.explanation import TaskFailure, explain
from tasquencer.core.hooks import LineageRules, RecordOf
from tasquencer.core.lineage import MAIN_LINEAGE, Lineage
from tasquencer.core.policy import Counts
from tasquencer.core.work_item import LEGAL_TRANSITIONS, Transition, WorkItem, WorkItemState

__all__ = ["Books"]


class Books:
    """Keeps a task's work items and makes a ledger entry from each transition.

    Entries about a work item that a reset has left behind (`left_behind`) are only offered to the ledger. If
    the abandoned run has recorded something different, the ledger keeps that.

    Args:
        task_id: The task whose books these are.
        record_of: Makes the domain record of a work item in its present state, or None if it has no record.
        rules: By kind, the rules of independent lineages.
    """

    def __init__(
        self, task_id: str, record_of: RecordOf | None, rules: Mapping[str, LineageRules] | None = None
    ) -> None:
        self.lineages: dict[str, Lineage] = {}
        self.left_behind: set[str] = set()
        self.task_id = task_id
        self._record_of = record_of
        self._rules = rules or {}
        self._work_items: dict[str, WorkItem] = {}
        self._sequences: dict[str, int] = {}
        self._logs: dict[str, list[LedgerEntry]] = {}
        self._entries: list[LedgerEntry] = []
        self._ended: list[str] = []
        self._states = Counter[WorkItemState]()
        self._standings = Counter[WorkItemState | None]()

    # Reading

    def work_items(self) -> list[WorkItem]:
        """All work items, oldest first."""
        return list(self._work_items.values())

    def find(self, work_item_id: str) -> WorkItem | None:
        """Return the work item with this id, or None. After a reset another one may have taken its place."""
        return self._work_items.get(work_item_id)

    def work_item(self, work_item_id: str) -> WorkItem:
        """The work item with this id. Raises `UnknownWorkItem`."""
        try:
            return self._work_items[work_item_id]
        except KeyError:
            raise UnknownWorkItem(work_item_id, self.task_id) from None

    def open_work_items(self) -> list[WorkItem]:
        """Return the initialized and started work items, oldest first."""
        return [item for item in self._work_items.values() if not item.state.is_terminal]

    def latest(self, lineage: str = MAIN_LINEAGE) -> WorkItem:
        """The last work item of a lineage. Raises `TaskMisused` if it was never begun."""
        if lineage not in self.lineages:
            raise TaskMisused(f"lineage {lineage!r} was never begun: call attempts() first")
        return self._work_items[self.lineages[lineage].work_item_ids[-1]]

    def before(self, work_item: WorkItem) -> WorkItem | None:
        """The work item that came before this one in its lineage."""
        ids = self.lineages[work_item.lineage].work_item_ids
        return self._work_items[ids[work_item.attempt - 1]] if work_item.attempt else None

    def failure_in(self, lineage: str) -> TaskFailure:
        """How an independent lineage ended that has no result."""
        item, known = self.latest(lineage), self.lineages[lineage]
        return explain(item, known, known.reason, self.before(item))

    def sequence(self, work_item_id: str) -> int:
        """The sequence of the work item's last transition."""
        return self._sequences[work_item_id]

    def rules_of(self, lineage: str) -> LineageRules | None:
        """The rules of an independent lineage; None for a lineage under the task's own."""
        kind = self.lineages[lineage].kind
        return None if kind is None else self._rules[kind]

    def takes_place(self, item: WorkItem) -> bool:
        """Return whether the work item counts among those that are started at the same time."""
        rules = self.rules_of(item.lineage)
        return rules is None or rules.takes_place

    def counts(self) -> Counts:
        """Count the work items and lineages by state, without independent lineages. A group counts as one."""
        return Counts(
            initialized=self._states[WorkItemState.INITIALIZED],
            started=self._states[WorkItemState.STARTED],
            completed=self._states[WorkItemState.COMPLETED],
            failed=self._states[WorkItemState.FAILED],
            canceled=self._states[WorkItemState.CANCELED],
            open_lineages=self._standings[None],
            completed_lineages=self._standings[WorkItemState.COMPLETED],
            failed_lineages=self._standings[WorkItemState.FAILED],
            canceled_lineages=self._standings[WorkItemState.CANCELED],
        )

    # Entries to record

    @property
    def has_entries(self) -> bool:
        """Return whether there are entries to record."""
        return bool(self._entries)

    def just_ended(self) -> list[str]:
        """Return the ids of the work items whose end is still to be recorded."""
        return list(self._ended)

    def take_entries(self) -> list[LedgerEntry]:
        """Return the new entries since the last call, in order."""
        entries, self._entries, self._ended = self._entries, [], []
        kept = {entry.work_item.id for entry in entries}
        for known in [known for known in self._logs if known not in kept]:
            if (item := self._work_items.get(known)) is None or item.state.is_terminal:
                del self._logs[known]
        return entries

    def log(self, work_item_id: str) -> list[LedgerEntry]:
        """Return the entries that this run has made about a work item that is open or has just ended."""
        return list(self._logs.get(work_item_id, []))

    # Changing

    def add(self, item: WorkItem, *, actor: str, reason: str | None) -> Transition:
        """Add a new work item as the last one of its lineage."""
        self.lineages[item.lineage].work_item_ids.append(item.id)
        return self._note(None, item, item.created_at, actor, reason)

    def put_in_place(self, item: WorkItem, old: WorkItem, *, actor: str, reason: str | None) -> Transition:
        """Put a new work item in the place of the last one of its lineage, which is forgotten."""
        del self._work_items[old.id], self._sequences[old.id]
        self._logs.pop(old.id, None)
        self._count(old.lineage, old.state, -1)
        self.left_behind.discard(old.id)
        self._entries = [entry for entry in self._entries if entry.work_item.id != old.id]
        self.lineages[old.lineage].work_item_ids[-1] = item.id
        return self._note(None, item, item.created_at, actor, reason)

    def take_over(self, item: WorkItem, sequence: int) -> None:
        """Add a work item that an earlier run of the task has recorded."""
        self._work_items[item.id] = item
        self._sequences[item.id] = sequence
        self._count(item.lineage, item.state, 1)
        self.lineages[item.lineage].work_item_ids.append(item.id)
        self._recount(item.lineage)

    def move(
        self,
        before: WorkItem,
        state: WorkItemState,
        now: datetime,
        actor: str,
        reason: str | None,
        **facts: object,
    ) -> Transition:
        """Change a work item's state. Raises `IllegalTransition`."""
        if state not in LEGAL_TRANSITIONS[before.state]:
            raise IllegalTransition(before.id, before.state, state)
        if state.is_terminal:
            facts["ended_at"] = now
        return self._note(before, before.model_copy(update={"state": state, **facts}), now, actor, reason)

    def adopt(self, known: LedgerEntry, entries: list[LedgerEntry]) -> list[LedgerEntry]:
        """Give a work item that was just canceled the end that the ledger already holds for it.

        The hook and the policy are not called, because the work item was canceled by the task's end.

        Args:
            known: The end that the ledger holds.
            entries: The entries still to be recorded, including the cancellation.

        Returns:
            The entries, with the known end instead of the cancellation.
        """
        present = self.work_item(known.work_item.id)
        if present.state is not WorkItemState.CANCELED or not known.work_item.state.is_terminal:
            raise TaskMisused(f"work item {present.id!r} is {present.state}, the ledger's end is not its own")
        fields = ("state", "result", "failure", "started_at", "ended_at", "worker")
        item = present.model_copy(update={name: getattr(known.work_item, name) for name in fields})
        record = self.correct(item)
        told = item.model_copy(update={"payload": None})
        entry = LedgerEntry(transition=known.transition, work_item=told, record=record)
        canceled = (item.id, WorkItemState.CANCELED)
        return [
            entry if (one.work_item.id, one.transition.next_state) == canceled else one for one in entries
        ]

    def correct(self, item: WorkItem) -> DomainRecord | None:
        """Replace a work item that has ended. Returns the domain record of the new one."""
        self._keep(item, self.work_item(item.id).state)
        return self._record(item)

    def _note(
        self, before: WorkItem | None, item: WorkItem, now: datetime, actor: str, reason: str | None
    ) -> Transition:
        sequence = 0 if before is None else self._sequences[item.id] + 1
        transition = Transition(
            work_item_id=item.id,
            sequence=sequence,
            previous_state=None if before is None else before.state,
            next_state=item.state,
            at=now,
            actor=actor,
            reason=reason,
        )
        self._sequences[item.id] = sequence
        self._keep(item, None if before is None else before.state)
        self.lineages[item.lineage].reason = reason
        # The ledger already has the payload from the first entry.
        told = item if before is None else item.model_copy(update={"payload": None})
        entry = LedgerEntry(
            transition=transition,
            work_item=told,
            record=self._record(item),
            offered=item.id in self.left_behind,
        )
        self._entries.append(entry)
        self._logs.setdefault(item.id, []).append(entry)
        if item.state.is_terminal:
            self._ended.append(item.id)
        return transition

    def _record(self, item: WorkItem) -> DomainRecord | None:
        rules = self.rules_of(item.lineage)
        record_of = self._record_of if rules is None else rules.record
        if record_of is None:
            return None
        try:
            record = record_of(item, self.lineages[item.lineage].recipe)
        except Exception as error:
            raise TaskMisused.by("the function given as `record`", error) from error
        if record is not None and not isinstance(record, DomainRecord):
            raise TaskMisused.returned("the function given as `record`", record, "a DomainRecord or None")
        return record

    def _keep(self, item: WorkItem, previous_state: WorkItemState | None) -> None:
        self._work_items[item.id] = item
        if previous_state is not None:
            self._count(item.lineage, previous_state, -1)
        self._count(item.lineage, item.state, 1)
        self._recount(item.lineage)

    def _count(self, lineage: str, state: WorkItemState, change: int) -> None:
        if self.lineages[lineage].kind is None:
            self._states[state] += change

    def _recount(self, name: str) -> None:
        lineage = self.lineages[name]
        state = self._work_items[lineage.work_item_ids[-1]].state
        standing = state if state.is_terminal else None
        if lineage.counted:
            self._standings[lineage.standing] -= 1
        lineage.standing, lineage.counted = standing, lineage.kind is None and lineage.group is None
        if lineage.counted:
            self._standings[standing] += 1
