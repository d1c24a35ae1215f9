"""Batches and their rows in the ledger's database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TypeVar

import sqlalchemy as sa
from pydantic_core import to_json
from sqlalchemy.dialects import postgresql, sqlite

from tasquencer.ai.usage import Usage
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
from tasquencer.sql.schema import ai_jobs, batch_rows, batches, escaped, is_open, is_pending, work_items

__all__ = ["SqlBatches"]

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

_AT_ONCE = 10_000
"""Positions in one transaction. It is limited so that other writers need not wait long."""

_COLUMNS = batch_rows.c


def _is_task_of(batch_id: str) -> sa.ColumnElement[bool]:
    prefix = escaped(task_id_of(batch_id, ""))
    return sa.func.substr(work_items.c.task_id, 1, len(prefix)) == prefix


class Transaction(Protocol):
    """Runs a piece of work in a transaction."""

    def __call__(self, work: Work[T]) -> Awaitable[T]:
        """Return the result of the work. Raises `LedgerUnavailable`."""


class SqlBatches(BatchStore):
    """The batches in SQLite or PostgreSQL; made by `SqlLedger.batches`."""

    def __init__(self, read: Transaction, change: Transaction) -> None:
        self._read = read
        self._change = change

    async def create(self, batch: Batch) -> Batch:
        """See `BatchStore.create`."""

        def work(connection: sa.Connection) -> Batch | None:
            insert = _insert(connection, batches).on_conflict_do_nothing()
            connection.execute(insert, dict(batch))
            return _find(connection, batch.id)

        found = await self._change(work)
        assert found is not None
        return found

    async def find(self, batch_id: str) -> Batch | None:
        """See `BatchStore.find`."""
        return await self._read(lambda connection: _find(connection, batch_id))

    async def fill(self, batch_id: str, rows: Sequence[BatchRow]) -> None:
        """See `BatchStore.fill`."""
        values = [
            {
                "batch_id": batch_id,
                "position": row.position,
                "row_id": row.row_id,
                "request": row.request,
                "request_bytes": len(to_json(row.request)),
                "state": RowState.PENDING,
            }
            for row in rows
        ]

        def work(connection: sa.Connection) -> None:
            insert = _insert(connection, batch_rows)
            connection.execute(insert.on_conflict_do_nothing(index_elements=["batch_id", "position"]), values)

        if values:
            await self._change(work)

    async def filled(self, batch_id: str) -> None:
        """See `BatchStore.filled`."""
        update = sa.update(batches).where(batches.c.id == batch_id, batches.c.filled_at.is_(None))
        await self._change(lambda connection: connection.execute(update.values(filled_at=datetime.now(UTC))))

    async def begin(self, batch_id: str) -> BatchCounts:
        """See `BatchStore.begin`."""
        again = _COLUMNS.state.in_([RowState.FAILED, RowState.CANCELED])
        emptied = dict.fromkeys(["number", "ended_at", "work_item_id", "attempts", "failure"])
        await self._set_state(
            batch_id, BatchState.STARTED, None
        )  # first, because an ended batch may be pruned
        await self._change_rows(batch_id, again, {"state": RowState.PENDING, **emptied})
        return await self._count(batch_id, _COLUMNS.state != RowState.PENDING)

    async def counts(self, batch_id: str) -> BatchCounts:
        """See `BatchStore.counts`."""
        return await self._count(batch_id, sa.true())

    async def _count(self, batch_id: str, is_used: sa.ColumnElement[bool]) -> BatchCounts:
        """Return the counts of rows by state, and the tokens and cost of those that meet the condition."""
        query = (
            sa.select(
                _COLUMNS.state,
                sa.func.count(),
                sa.func.max(_COLUMNS.number),
                *(sa.func.sum(sa.case((is_used, _COLUMNS[name]))) for name in Usage.model_fields),
            )
            .where(_COLUMNS.batch_id == batch_id)
            .group_by(_COLUMNS.state)
        )

        def work(connection: sa.Connection) -> BatchCounts:
            groups = list(connection.execute(query))
            costs = [cost for *_, cost in groups if cost is not None]
            return BatchCounts(
                **{state: count for state, count, *_ in groups},
                ended=max((number or 0 for _, _, number, *_ in groups), default=0),
                input_tokens=sum(tokens or 0 for _, _, _, tokens, _, _ in groups),
                output_tokens=sum(tokens or 0 for _, _, _, _, tokens, _ in groups),
                cost_usd=sum(costs) if costs else None,
            )

        return await self._read(work)

    async def retrying(self, batch_id: str) -> int:
        """See `BatchStore.retrying`."""
        open_rows = sa.select(sa.func.count()).where(is_open, work_items.c.attempt > 0, _is_task_of(batch_id))
        return await self._read(lambda connection: connection.execute(open_rows).scalar_one())

    async def left_running(self, batch_id: str) -> list[OpenRow]:
        """See `BatchStore.left_running`."""
        row_id = sa.func.substr(work_items.c.task_id, len(escaped(task_id_of(batch_id, ""))) + 1)
        under_way = sa.select(row_id).where(is_open, _is_task_of(batch_id))
        left = (
            sa.select(_COLUMNS.position, _COLUMNS.row_id)
            .where(_COLUMNS.batch_id == batch_id, is_pending, _COLUMNS.row_id.in_(under_way))
            .order_by(_COLUMNS.position)
        )
        found = await self._read(lambda connection: connection.execute(left).all())
        return [OpenRow(position=position, row_id=row_id, found=True) for position, row_id in found]

    async def pending(self, batch_id: str, *, after: int, limit: int, most_bytes: int) -> RowPage:
        """See `BatchStore.pending`."""
        wanted = sa.and_(_COLUMNS.batch_id == batch_id, is_pending, _COLUMNS.position > after)
        sizes = (
            sa.select(_COLUMNS.position, _COLUMNS.request_bytes)
            .where(wanted)
            .order_by(_COLUMNS.position)
            .limit(limit)
        )

        def work(connection: sa.Connection) -> RowPage:
            # The defaults are the same for all rows. They must not make a page of short rows large.
            batch = _find(connection, batch_id)
            defaults = {} if batch is None else batch.defaults
            surplus = len(to_json(defaults))
            found = [(position, size + surplus) for position, size in connection.execute(sizes)]
            last = _last_within(found, most_bytes)
            if last is None:
                return RowPage(rows=[], is_last=True)
            query = (
                sa.select(_COLUMNS.position, _COLUMNS.row_id, _COLUMNS.request, _COLUMNS.request_bytes)
                .where(wanted, _COLUMNS.position <= last)
                .order_by(_COLUMNS.position)
            )
            rows = [
                BatchRow(
                    position=position,
                    row_id=row_id,
                    request=merged(defaults, request),
                    size=size + surplus,
                )
                for position, row_id, request, size in connection.execute(query)
            ]
            return RowPage(rows=rows, is_last=len(found) < limit and last == found[-1][0])

        return await self._read(work)

    async def save(self, batch_id: str, outcomes: Sequence[RowOutcome]) -> dict[int, Usage]:
        """See `BatchStore.save`."""
        if not outcomes:
            return {}
        task_ids = {
            outcome.position: task_id_of(batch_id, outcome.row_id)
            for outcome in outcomes
            if outcome.failure is None or outcome.failure.type != ID_TAKEN
        }
        totals = await self._read(lambda connection: _used_by(connection, list(task_ids.values())))
        used = {
            outcome.position: totals.get(task_ids.get(outcome.position, "")) or outcome.usage
            for outcome in outcomes
        }
        values = [
            {"same_batch": batch_id, "same_position": outcome.position}
            | outcome.model_dump(exclude={"position", "row_id"})
            | used[outcome.position].model_dump()
            for outcome in outcomes
        ]
        update = sa.update(batch_rows).where(
            _COLUMNS.batch_id == sa.bindparam("same_batch"),
            _COLUMNS.position == sa.bindparam("same_position"),
            _COLUMNS.state != RowState.COMPLETED,
        )
        names = values[0].keys() - {"same_batch", "same_position"}
        update = update.values({name: sa.bindparam(name) for name in names})
        await self._change(lambda connection: connection.execute(update, values))
        return used

    async def end(self, batch_id: str, state: BatchState) -> None:
        """See `BatchStore.end`."""
        now = datetime.now(UTC)
        await self._change_rows(batch_id, is_pending, {"state": RowState.CANCELED, "ended_at": now})
        await self._set_state(batch_id, state, now)

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
        place = _COLUMNS[order]
        joined = sa.join(batch_rows, ai_jobs, _COLUMNS.work_item_id == ai_jobs.c.work_item_id, isouter=True)
        wanted = [_COLUMNS.batch_id == batch_id, _COLUMNS.state == RowState.COMPLETED, place > after]
        size = sa.func.coalesce(sa.func.length(ai_jobs.c.result), 0) + _ROW_BYTES
        sizes = sa.select(place, size).select_from(joined).where(*wanted).order_by(place).limit(limit)
        usage = list(Usage.model_fields)
        own = [name for name in RowAnswer.model_fields if name in _COLUMNS and name not in usage]
        columns = [_COLUMNS[name] for name in own] + [_COLUMNS[name].label(f"total_{name}") for name in usage]
        facts = [ai_jobs.c[name] for name in ("model", "finish_reason", *usage)]
        query = (
            sa.select(*columns, ai_jobs.c.result.label("text"), *facts)
            .select_from(joined)
            .where(*wanted)
            .order_by(place)
        )

        def work(connection: sa.Connection) -> list[RowAnswer]:
            last = _last_within(connection.execute(sizes), most_bytes)
            if last is None:
                return []
            rows = connection.execute(query.where(place <= last)).mappings()
            return [
                RowAnswer.model_validate({**row, "total": {name: row[f"total_{name}"] for name in usage}})
                for row in rows
            ]

        return await self._read(work)

    async def unanswered(
        self, batch_id: str, *, after: int, limit: int, most_bytes: int
    ) -> list[UnansweredRow]:
        """See `BatchStore.unanswered`."""
        lost = _COLUMNS.state.in_([RowState.FAILED, RowState.CANCELED])
        wanted = [_COLUMNS.batch_id == batch_id, lost, _COLUMNS.position > after]
        sizes = (
            sa.select(_COLUMNS.position, _COLUMNS.request_bytes + _ROW_BYTES)
            .where(*wanted)
            .order_by(_COLUMNS.position)
            .limit(limit)
        )
        columns = [_COLUMNS[name] for name in UnansweredRow.model_fields]

        def work(connection: sa.Connection) -> list[UnansweredRow]:
            last = _last_within(connection.execute(sizes), most_bytes)
            if last is None:
                return []
            query = sa.select(*columns).where(*wanted, _COLUMNS.position <= last)
            rows = connection.execute(query.order_by(_COLUMNS.position)).mappings()
            return [UnansweredRow.model_validate(dict(row)) for row in rows]

        return await self._read(work)

    async def _change_rows(
        self, batch_id: str, which: sa.ColumnElement[bool] | sa.TextClause, values: dict[str, Any]
    ) -> None:
        """Change rows of the batch, a limited number in each transaction."""
        batch = await self.find(batch_id)
        for first in range(0, 0 if batch is None else batch.rows, _AT_ONCE):
            update = sa.update(batch_rows).where(
                _COLUMNS.batch_id == batch_id,
                _COLUMNS.position.between(first, first + _AT_ONCE - 1),
                which,
            )
            await self._change(lambda connection, update=update: connection.execute(update.values(values)))  # type: ignore[misc]

    async def _set_state(self, batch_id: str, state: BatchState, ended_at: datetime | None) -> None:
        update = sa.update(batches).where(batches.c.id == batch_id)
        await self._change(
            lambda connection: connection.execute(update.values(state=state, ended_at=ended_at))
        )


_ROW_BYTES = 300
"""The approximate bytes of a row without its request or answer."""


def _used_by(connection: sa.Connection, task_ids: Sequence[str]) -> dict[str, Usage]:
    """Return the tokens and cost of all attempts of the tasks, without unknown tasks."""
    sums = [sa.func.sum(ai_jobs.c[name]).label(name) for name in Usage.model_fields]
    query = (
        sa.select(work_items.c.task_id, *sums)
        .join(ai_jobs, ai_jobs.c.work_item_id == work_items.c.id)
        .where(work_items.c.task_id.in_(task_ids))
        .group_by(work_items.c.task_id)
    )
    totals = {row["task_id"]: Usage.model_validate(dict(row)) for row in connection.execute(query).mappings()}
    return {task_id: total for task_id, total in totals.items() if total != Usage()}


def _find(connection: sa.Connection, batch_id: str) -> Batch | None:
    row = connection.execute(sa.select(batches).where(batches.c.id == batch_id)).mappings().first()
    return None if row is None else Batch.model_validate(dict(row))


def _insert(connection: sa.Connection, table: sa.Table) -> Any:
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def _last_within(sizes: Any, most_bytes: int) -> int | None:
    """Return the last place up to which the sizes stay within the limit, at least the first, or None."""
    last: int | None = None
    total = 0
    for place, size in sizes:
        total += size
        if last is not None and total > most_bytes:
            break
        last = place
    return last
