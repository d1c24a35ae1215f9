"""An in-memory ledger with the full contract, for tests of tasks."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import JsonValue

from tasquencer.entries import LedgerEntry, storable
from tasquencer.errors import LedgerConflict
from tasquencer.ledger import Ledger, WorkItemFilter
from tasquencer.work_item import LEGAL_TRANSITIONS, Transition, WorkItem

__all__ = ["InMemoryLedger"]


class InMemoryLedger(Ledger):
    """Keeps everything in dictionaries; one process, nothing survives it."""

    def __init__(self) -> None:
        self._work_items: dict[str, WorkItem] = {}
        self._transitions: dict[str, list[Transition]] = {}
        self._records: dict[str, dict[str, dict[str, JsonValue]]] = {}

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        """See `Ledger.record`."""
        saved = (
            dict(self._work_items),
            {key: list(value) for key, value in self._transitions.items()},
            {table: dict(rows) for table, rows in self._records.items()},
        )
        try:
            for entry in entries:
                self._write(storable(entry))
        except LedgerConflict:
            self._work_items, self._transitions, self._records = saved
            raise

    def _write(self, entry: LedgerEntry) -> None:
        transition, item = entry.transition, entry.work_item
        log = self._transitions.get(item.id, [])
        present = self._work_items.get(item.id)
        if transition.sequence < len(log):
            if log[transition.sequence].next_state is transition.next_state:
                return
            raise LedgerConflict(item.id, f"transition {transition.sequence} is already {log[transition.sequence].next_state}")
        state = None if present is None else present.state
        if transition.sequence != len(log) or transition.previous_state is not state:
            raise LedgerConflict(item.id, f"it is {state}, the entry expects {transition.previous_state}")
        if transition.next_state not in LEGAL_TRANSITIONS[state]:
            raise LedgerConflict(item.id, f"{state} cannot become {transition.next_state}")
        if present is None:
            key = (item.run_id, item.lineage, item.attempt)
            if any((other.run_id, other.lineage, other.attempt) == key for other in self._work_items.values()):
                raise LedgerConflict(item.id, f"run, lineage and attempt {key} are taken")
        else:
            item = item.model_copy(
                update={"payload": present.payload, "worker": item.worker or present.worker}
            )
        self._work_items[item.id] = item
        self._transitions.setdefault(item.id, []).append(transition)
        if entry.record is not None:
            self._records.setdefault(entry.record.table, {})[item.id] = dict(entry.record.values)

    async def work_items(self, wanted: WorkItemFilter) -> list[WorkItem]:
        """See `Ledger.work_items`."""
        found = [item for item in self._work_items.values() if _matches(item, wanted)]
        found.sort(key=lambda item: (item.created_at, item.attempt, item.id), reverse=not wanted.oldest_first)
        return found[wanted.offset : wanted.offset + wanted.limit]

    async def transitions(self, work_item_id: str) -> list[Transition]:
        """See `Ledger.transitions`."""
        return list(self._transitions.get(work_item_id, []))

    async def domain_records(self, table: str, work_item_ids: Sequence[str]) -> dict[str, dict[str, JsonValue]]:
        """See `Ledger.domain_records`; here every table name is known."""
        rows = self._records.get(table, {})
        return {key: dict(rows[key]) for key in work_item_ids if key in rows}


def _matches(item: WorkItem, wanted: WorkItemFilter) -> bool:
    return (
        (wanted.task_id is None or item.task_id == wanted.task_id)
        and (wanted.work_item_id is None or item.id == wanted.work_item_id)
        and (wanted.states is None or item.state in wanted.states)
        and (
            wanted.failure_kind is None
            or (item.failure is not None and item.failure.kind == wanted.failure_kind)
        )
        and (wanted.created_since is None or item.created_at >= wanted.created_since)
        and (wanted.ended_since is None or (item.ended_at is not None and item.ended_at >= wanted.ended_since))
    )
