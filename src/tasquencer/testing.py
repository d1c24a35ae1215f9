"""An in-memory ledger and in-memory batches with the full contract, for tests of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import JsonValue

from tasquencer.ai import AI_JOBS
from tasquencer.batch import BatchCounts, BatchRow, OpenRow, RowOutcome, RowState, merged, task_id_of
from tasquencer.batch_store import Batch, BatchState, BatchStore, RowAnswer, RowPage, UnansweredRow
from tasquencer.entries import LedgerEntry, storable
from tasquencer.errors import LedgerConflict
from tasquencer.ledger import (
    Ledger,
    OpenWorkItem,
    Place,
    Settlement,
    WorkItemFilter,
    as_recorded,
    caught_up,
    is_new,
)
from tasquencer.work_item import Transition, WorkItem, WorkItemState

__all__ = ["InMemoryBatches", "InMemoryLedger"]


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

    def _write(self, told: LedgerEntry) -> None:
        held = {known.sequence: known.next_state for known in self._transitions.get(told.work_item.id, [])}
        entry = caught_up(told, held)
        if entry is None or not is_new(entry, held):
            return
        transition, item = entry.transition, entry.work_item
        present = self._work_items.get(item.id)
        if present is not None:
            item = as_recorded(item, present)
        else:
            attempt = (item.run_id, item.lineage, item.attempt)
            for other in self._work_items.values():
                if (other.run_id, other.lineage, other.attempt) == attempt:
                    place = f"attempt {item.attempt} of lineage {item.lineage!r} in run {item.run_id!r}"
                    raise LedgerConflict(item.id, f"{place} is already work item {other.id!r}")
        self._work_items[item.id] = item
        self._transitions.setdefault(item.id, []).append(transition)
        if entry.record is not None:
            self._records.setdefault(entry.record.table, {})[item.id] = dict(entry.record.values)

    async def settle(self, settlement: Settlement) -> list[str]:
        """See `Ledger.settle`."""
        left = [
            item
            for item in self._work_items.values()
            if (item.task_id, item.run_id) == (settlement.task_id, settlement.run_id)
            and (settlement.work_item_ids is None or item.id in settlement.work_item_ids)
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
        """See `Ledger.domain_records`; here every table name is known."""
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


class InMemoryBatches(BatchStore):
    """Keeps batches in dictionaries.

    Args:
        ledger: Where the answers are.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._batches: dict[str, Batch] = {}
        self._rows: dict[str, dict[int, BatchRow]] = {}
        self._outcomes: dict[str, dict[int, RowOutcome]] = {}

    async def create(self, batch: Batch) -> Batch:
        """See `BatchStore.create`."""
        return self._batches.setdefault(batch.id, batch)

    async def find(self, batch_id: str) -> Batch | None:
        """See `BatchStore.find`."""
        return self._batches.get(batch_id)

    async def fill(self, batch_id: str, rows: Sequence[BatchRow]) -> None:
        """See `BatchStore.fill`."""
        held = self._rows.setdefault(batch_id, {})
        for row in rows:
            held.setdefault(row.position, row)

    async def filled(self, batch_id: str) -> None:
        """See `BatchStore.filled`. It was just when it was created: there is no clock here."""
        batch = self._batches[batch_id]
        if batch.filled_at is None:
            self._batches[batch_id] = batch.model_copy(update={"filled_at": batch.created_at})

    async def begin(self, batch_id: str) -> BatchCounts:
        """See `BatchStore.begin`."""
        held = self._outcomes.get(batch_id, {})
        self._outcomes[batch_id] = {
            position: outcome for position, outcome in held.items() if outcome.state is RowState.COMPLETED
        }
        self._set_state(batch_id, BatchState.STARTED)
        return await self.counts(batch_id)

    async def counts(self, batch_id: str) -> BatchCounts:
        """See `BatchStore.counts`."""
        outcomes = list(self._outcomes.get(batch_id, {}).values())
        states = [outcome.state for outcome in outcomes]
        costs = [outcome.cost_usd for outcome in outcomes if outcome.cost_usd is not None]
        return BatchCounts(
            pending=len(self._rows.get(batch_id, {})) - len(outcomes),
            completed=states.count(RowState.COMPLETED),
            failed=states.count(RowState.FAILED),
            canceled=states.count(RowState.CANCELED),
            ended=max((outcome.number for outcome in outcomes), default=0),
            input_tokens=sum(outcome.input_tokens or 0 for outcome in outcomes),
            output_tokens=sum(outcome.output_tokens or 0 for outcome in outcomes),
            cost_usd=sum(costs) if costs else None,
        )

    async def retrying(self, batch_id: str) -> int:
        """See `BatchStore.retrying`."""
        return sum(item.attempt > 0 for item in await self._under_way(batch_id))

    async def left_running(self, batch_id: str) -> list[OpenRow]:
        """See `BatchStore.left_running`."""
        task_ids = {item.task_id for item in await self._under_way(batch_id)}
        ended = self._outcomes.get(batch_id, {})
        return [
            OpenRow(position=position, row_id=row.row_id, found=True)
            for position, row in sorted(self._rows.get(batch_id, {}).items())
            if position not in ended and task_id_of(batch_id, row.row_id) in task_ids
        ]

    async def _under_way(self, batch_id: str) -> list[OpenWorkItem]:
        """The open work items of its tasks."""
        found = await self._ledger.open_work_items(created_before=datetime.max.replace(tzinfo=UTC))
        return [item for item in found if item.task_id.startswith(task_id_of(batch_id, ""))]

    async def pending(self, batch_id: str, *, after: int, limit: int, most_bytes: int) -> RowPage:
        """See `BatchStore.pending`; here a page has as many rows as asked for, however large."""
        ended = self._outcomes.get(batch_id, {})
        rows = sorted(self._rows.get(batch_id, {}).items())
        left = [row for position, row in rows if position > after and position not in ended]
        defaults = self._batches[batch_id].defaults if batch_id in self._batches else {}
        page = [row.model_copy(update={"request": merged(defaults, row.request)}) for row in left[:limit]]
        return RowPage(rows=page, is_last=len(left) <= len(page))

    async def record(self, batch_id: str, outcomes: Sequence[RowOutcome]) -> None:
        """See `BatchStore.record`."""
        held = self._outcomes.setdefault(batch_id, {})
        for outcome in outcomes:
            known = held.get(outcome.position)
            if known is None or known.state is not RowState.COMPLETED:
                held[outcome.position] = outcome

    async def end(self, batch_id: str, state: BatchState) -> None:
        """See `BatchStore.end`."""
        held = self._outcomes.setdefault(batch_id, {})
        for position, row in self._rows.get(batch_id, {}).items():
            canceled = RowOutcome(position=position, row_id=row.row_id, state=RowState.CANCELED)
            held.setdefault(position, canceled)
        self._set_state(batch_id, state)

    async def answers(
        self,
        batch_id: str,
        *,
        order: Literal["position", "number"],
        after: int,
        limit: int,
        most_bytes: int,
    ) -> list[RowAnswer]:
        """See `BatchStore.answers`."""
        held = self._outcomes.get(batch_id, {}).values()
        completed = [outcome for outcome in held if outcome.state is RowState.COMPLETED]
        page = sorted(
            (outcome for outcome in completed if getattr(outcome, order) > after),
            key=lambda outcome: int(getattr(outcome, order)),
        )[:limit]
        ids = [outcome.work_item_id or "" for outcome in page]
        records = await self._ledger.domain_records(AI_JOBS, ids)
        answers = []
        for outcome, work_item_id in zip(page, ids, strict=True):
            record = records.get(work_item_id, {})
            told = {name: record.get(name) for name in ("model", "finish_reason")}
            answers.append(
                RowAnswer.model_validate({**outcome.model_dump(), **told, "text": record.get("result")})
            )
        return answers

    async def unanswered(
        self, batch_id: str, *, after: int, limit: int, most_bytes: int
    ) -> list[UnansweredRow]:
        """See `BatchStore.unanswered`."""
        rows = self._rows.get(batch_id, {})
        lost = [
            UnansweredRow(
                position=position,
                row_id=outcome.row_id,
                request=rows[position].request,
                state=outcome.state,
                failure=outcome.failure,
            )
            for position, outcome in sorted(self._outcomes.get(batch_id, {}).items())
            if position > after and outcome.state is not RowState.COMPLETED
        ]
        return lost[:limit]

    def _set_state(self, batch_id: str, state: BatchState) -> None:
        if batch_id in self._batches:
            self._batches[batch_id] = self._batches[batch_id].model_copy(update={"state": state})
