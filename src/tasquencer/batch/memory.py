"""Batches in memory, with the full contract of `BatchStore`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from tasquencer.ai.record import AI_JOBS
from tasquencer.ai.usage import Usage, UsageSum
from tasquencer.batch.rows import (
    ID_TAKEN,
    BatchCounts,
    BatchRow,
    OpenRow,
    RowOutcome,
    RowState,
    merged,
    task_id_of,
)
from tasquencer.batch.store import Batch, BatchState, BatchStore, RowAnswer, RowPage, UnansweredRow
from tasquencer.ledger.contract import (
    Ledger,
    OpenWorkItem,
)

__all__ = ["InMemoryBatches"]


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
        self._spent: dict[str, dict[int, Usage]] = {}  # of rows that are pending again

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
        """See `BatchStore.filled`. Uses the time of creation, because this store has no clock."""
        batch = self._batches[batch_id]
        if batch.filled_at is None:
            self._batches[batch_id] = batch.model_copy(update={"filled_at": batch.created_at})

    async def begin(self, batch_id: str) -> BatchCounts:
        """See `BatchStore.begin`."""
        held = self._outcomes.get(batch_id, {})
        completed = {
            position: outcome for position, outcome in held.items() if outcome.state is RowState.COMPLETED
        }
        spent = self._spent.setdefault(batch_id, {})
        spent |= {position: outcome.usage for position, outcome in held.items() if position not in completed}
        self._outcomes[batch_id] = completed
        self._set_state(batch_id, BatchState.STARTED)
        counts = await self.counts(batch_id)
        return counts.model_copy(update=UsageSum.sum_of(completed.values()).model_dump())

    async def counts(self, batch_id: str) -> BatchCounts:
        """See `BatchStore.counts`."""
        ended = self._outcomes.get(batch_id, {})
        outcomes = list(ended.values())
        spent = self._spent.get(batch_id, {})
        pending = [usage for position, usage in spent.items() if position not in ended]
        states = [outcome.state for outcome in outcomes]
        return BatchCounts(
            pending=len(self._rows.get(batch_id, {})) - len(outcomes),
            completed=states.count(RowState.COMPLETED),
            failed=states.count(RowState.FAILED),
            canceled=states.count(RowState.CANCELED),
            ended=max((outcome.number for outcome in outcomes), default=0),
            **UsageSum.sum_of([*outcomes, *pending]).model_dump(),
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
        """See `BatchStore.pending`. Here the size of a page in bytes is not limited."""
        ended = self._outcomes.get(batch_id, {})
        rows = sorted(self._rows.get(batch_id, {}).items())
        left = [row for position, row in rows if position > after and position not in ended]
        defaults = self._batches[batch_id].defaults if batch_id in self._batches else {}
        page = [row.model_copy(update={"request": merged(defaults, row.request)}) for row in left[:limit]]
        return RowPage(rows=page, is_last=len(left) <= len(page))

    async def save(self, batch_id: str, outcomes: Sequence[RowOutcome]) -> dict[int, Usage]:
        """See `BatchStore.save`."""
        held = self._outcomes.setdefault(batch_id, {})
        used = {outcome.position: await self._used(batch_id, outcome) for outcome in outcomes}
        for outcome in outcomes:
            known = held.get(outcome.position)
            if known is None or known.state is not RowState.COMPLETED:
                usage = used[outcome.position].model_dump()
                held[outcome.position] = outcome.model_copy(update=usage)
        return used

    async def _used(self, batch_id: str, outcome: RowOutcome) -> Usage:
        if outcome.failure is not None and outcome.failure.type == ID_TAKEN:
            return Usage()
        attempts = await self._ledger.work_items_of(task_id_of(batch_id, outcome.row_id))
        records = await self._ledger.domain_records(AI_JOBS, [item.id for item in attempts])
        total = Usage.sum_of(Usage.model_validate(record) for record in records.values())
        return outcome.usage if total == Usage() else total

    async def end(self, batch_id: str, state: BatchState) -> None:
        """See `BatchStore.end`."""
        held = self._outcomes.setdefault(batch_id, {})
        for position, row in self._rows.get(batch_id, {}).items():
            spent = self._spent.get(batch_id, {}).get(position, Usage())
            canceled = RowOutcome(
                position=position, row_id=row.row_id, state=RowState.CANCELED, **spent.model_dump()
            )
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
            facts: dict[str, Any] = {
                name: record.get(name) for name in ("model", "finish_reason", *Usage.model_fields)
            }
            facts |= {"text": record.get("result"), "total": outcome.usage}
            answers.append(RowAnswer.model_validate(outcome.model_dump() | facts))
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
