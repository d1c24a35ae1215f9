"""A ledger in memory, with the full contract of `Ledger`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydantic import JsonValue

from tasquencer.core.entries import LedgerEntry, cleaned
from tasquencer.core.errors import LedgerConflict
from tasquencer.core.work_item import Transition, WorkItem, WorkItemState
from tasquencer.ledger.contract import (
    Ledger,
    OpenWorkItem,
    Place,
    Settlement,
    WorkItemFilter,
)
from tasquencer.ledger.rules import Held, Supersession, as_recorded, check_owner, follows, judge

__all__ = ["InMemoryLedger"]


class InMemoryLedger(Ledger):
    """Keeps everything in dictionaries of one process. Nothing survives the process."""

    def __init__(self) -> None:
        self._work_items: dict[str, WorkItem] = {}
        self._transitions: dict[str, list[Transition]] = {}
        self._records: dict[str, dict[str, dict[str, JsonValue]]] = {}
        self._as_of: dict[str, dict[int, datetime]] = {}
        self._supersessions: dict[str, list[Supersession]] = {}

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
            {key: dict(value) for key, value in self._as_of.items()},
            {key: list(value) for key, value in self._supersessions.items()},
        )
        try:
            for entry in entries:
                self._write(cleaned(entry))
        except LedgerConflict:
            (
                self._work_items,
                self._transitions,
                self._records,
                self._as_of,
                self._supersessions,
            ) = saved
            raise

    def _write(self, entry: LedgerEntry) -> None:
        transition, item = entry.transition, entry.work_item
        present = self._work_items.get(item.id)
        check_owner(entry, None if present is None else present.task_id)
        log = {known.sequence: known.next_state for known in self._transitions.get(item.id, [])}
        if not follows(entry, log):
            if present is None:
                before = f"transition {transition.sequence} from {transition.previous_state}"
                raise LedgerConflict(item.id, f"it does not exist, the entry is its {before}")
            replaced = judge(entry, self._held(present))
            if replaced is None:
                return
            item = self._replace(replaced, item, present)
        elif present is not None:
            item = as_recorded(item, present)
        else:
            attempt = (item.run_id, item.lineage, item.attempt)
            for other in self._work_items.values():
                if (other.run_id, other.lineage, other.attempt) == attempt:
                    place = f"attempt {item.attempt} of lineage {item.lineage!r} in run {item.run_id!r}"
                    raise LedgerConflict(item.id, f"{place} is already work item {other.id!r}")
        self._work_items[item.id] = item
        self._transitions.setdefault(item.id, []).append(transition)
        if entry.as_of is not None:
            self._as_of.setdefault(item.id, {})[transition.sequence] = entry.as_of
        if entry.record is not None:
            self._records.setdefault(entry.record.table, {})[item.id] = dict(entry.record.values)

    def _held(self, item: WorkItem) -> Held:
        return Held(
            item,
            self._transitions[item.id],
            self._as_of.get(item.id, {}),
            {table: rows[item.id] for table, rows in self._records.items() if item.id in rows},
            len(self._supersessions.get(item.id, [])),
        )

    def _replace(self, replaced: Supersession, item: WorkItem, present: WorkItem) -> WorkItem:
        first = replaced.from_sequence
        self._supersessions.setdefault(item.id, []).append(replaced)
        self._transitions[item.id] = self._transitions[item.id][:first]
        for later in [known for known in self._as_of.get(item.id, {}) if known >= first]:
            del self._as_of[item.id][later]
        return item if first == 0 else item.model_copy(update={"payload": present.payload})

    async def supersessions(self, work_item_ids: Sequence[str]) -> dict[str, list[Supersession]]:
        """See `Ledger.supersessions`."""
        return {key: list(self._supersessions[key]) for key in work_item_ids if key in self._supersessions}

    async def settle(self, settlement: Settlement) -> list[str]:
        """See `Ledger.settle`."""
        left = [
            item
            for item in self._work_items.values()
            if (item.task_id, item.run_id) == (settlement.task_id, settlement.run_id)
            and settlement.covers(item.id)
            and not item.state.is_terminal
        ]
        for item in left:
            log = self._transitions[item.id]
            log.append(
                Transition(
                    work_item_id=item.id,
                    sequence=len(log),
                    previous_state=item.state,
                    next_state=WorkItemState.CANCELED,
                    at=settlement.at,
                    actor=settlement.actor,
                    reason=settlement.reason,
                )
            )
            update = {"state": WorkItemState.CANCELED, "ended_at": settlement.at}
            self._work_items[item.id] = item.model_copy(update=update)
            for rows in self._records.values():
                if "status" in rows.get(item.id, {}):
                    rows[item.id] = rows[item.id] | {"status": WorkItemState.CANCELED.value}
        return [item.id for item in left]

    async def work_items(self, wanted: WorkItemFilter) -> list[WorkItem]:
        """See `Ledger.work_items`."""
        found = [item for item in self._work_items.values() if _matches(item, wanted)]
        found.sort(key=lambda item: (item.created_at, item.attempt, item.id), reverse=not wanted.oldest_first)
        return found[wanted.offset : wanted.offset + wanted.limit]

    async def open_work_items(
        self, *, created_before: datetime, after: Place | None = None, limit: int = 1000
    ) -> list[OpenWorkItem]:
        """See `Ledger.open_work_items`."""
        found = [
            OpenWorkItem.model_validate(item.model_dump(include=set(OpenWorkItem.model_fields)))
            for item in self._work_items.values()
            if not item.state.is_terminal and item.created_at < created_before
        ]
        found.sort(key=lambda item: _order(item.place))
        return [item for item in found if after is None or _order(item.place) > _order(after)][:limit]

    async def transitions_of(self, work_item_ids: Sequence[str]) -> dict[str, list[Transition]]:
        """See `Ledger.transitions_of`."""
        return {key: list(self._transitions[key]) for key in work_item_ids if key in self._transitions}

    async def domain_records(
        self, table: str, work_item_ids: Sequence[str]
    ) -> dict[str, dict[str, JsonValue]]:
        """See `Ledger.domain_records`. This ledger accepts every table name."""
        rows = self._records.get(table, {})
        return {key: dict(rows[key]) for key in work_item_ids if key in rows}


def _order(place: Place) -> tuple[datetime, int, str]:
    return (place.created_at, place.attempt, place.id)


def _matches(item: WorkItem, wanted: WorkItemFilter) -> bool:
    return (
        (wanted.task_id is None or item.task_id == wanted.task_id)
        and (wanted.work_item_id is None or item.id == wanted.work_item_id)
        and (wanted.states is None or item.state in wanted.states)
        and (
            wanted.failure_kind is None
            or (item.failure is not None and item.failure.kind == wanted.failure_kind)
        )
        and (
            wanted.payload_kind is None
            or (isinstance(item.payload, dict) and item.payload.get("kind") == wanted.payload_kind)
        )
        and (wanted.created_since is None or item.created_at >= wanted.created_since)
        and (
            wanted.ended_since is None or (item.ended_at is not None and item.ended_at >= wanted.ended_since)
        )
    )
