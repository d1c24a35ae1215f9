"""Old tasks go as a whole, and nothing else does, on both databases."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from tasquencer.core.errors import LedgerUnavailable, SchemaMismatch
from tasquencer.core.work_item import WorkItemState
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.sql import SqlLedger
from tasquencer.sql.databases import database_at
from tasquencer.sql.pruning import Old, old_tasks, prune
from tasquencer.sql.schema import batch_rows, batches
from tests.ledger.stories import START, Life, after, ai_job
from tests.ledger.test_immutability import run

BEFORE = after(3600)


async def _task(ledger: SqlLedger, name: str, *ends: WorkItemState) -> None:
    """A task whose attempts came to these states at noon."""
    for attempt, state in enumerate(ends):
        life = Life(id=f"{name}-{attempt}", task_id=name, run_id=name, attempt=attempt)
        entries = life.until(state)
        entries[-1] = entries[-1].model_copy(update={"record": ai_job(state.value)})
        await ledger.record(entries)


async def _recent_task(ledger: SqlLedger) -> None:
    """A task that ended the day after, with the id `new`."""
    life = Life(id="new-0", task_id="new", run_id="new")
    entries = life.until(WorkItemState.STARTED)
    await ledger.record([*entries, life.completed(record=ai_job("completed"), at=after(86_400))])


async def _ids(ledger: SqlLedger) -> list[str]:
    return sorted(item.id for item in await ledger.work_items(WorkItemFilter(limit=10_000)))


async def test_whole_tasks_go_and_the_others_stay(database: str, sql_ledger: SqlLedger) -> None:
    await _task(sql_ledger, "old", WorkItemState.FAILED, WorkItemState.COMPLETED)
    await _task(sql_ledger, "open", WorkItemState.FAILED, WorkItemState.STARTED)
    await _recent_task(sql_ledger)
    await _task(sql_ledger, "given-up", WorkItemState.CANCELED)

    assert await old_tasks(database, BEFORE) == Old(tasks=2, work_items=3)
    assert await prune(database, BEFORE) == Old(tasks=2, work_items=3)

    assert await _ids(sql_ledger) == ["new-0", "open-0", "open-1"]
    assert await sql_ledger.transitions("old-0") == []
    assert await sql_ledger.domain_records("ai_jobs", ["old-0", "old-1", "given-up-0"]) == {}
    assert len(await sql_ledger.transitions("open-1")) == 2
    assert await old_tasks(database, BEFORE) == await prune(database, BEFORE) == Old()


async def test_many_tasks_go_page_by_page(database: str, sql_ledger: SqlLedger) -> None:
    ends = [WorkItemState.STARTED if number % 100 == 0 else WorkItemState.COMPLETED for number in range(600)]
    await asyncio.gather(*(_task(sql_ledger, f"task-{n:03}", end) for n, end in enumerate(ends)))
    told: list[Old] = []
    assert await prune(database, BEFORE, told.append) == Old(tasks=594, work_items=594)
    assert [old.tasks for old in told] == sorted(old.tasks for old in told)
    assert len(told) > 1
    assert len(await _ids(sql_ledger)) == 6


async def test_what_stays_is_immutable_as_before(database: str, sql_ledger: SqlLedger) -> None:
    await _task(sql_ledger, "old", WorkItemState.COMPLETED)
    await _recent_task(sql_ledger)
    await prune(database, BEFORE)
    for statement in (
        "DELETE FROM work_items",
        "DELETE FROM work_item_transitions",
        "DELETE FROM ai_jobs",
        "UPDATE work_items SET worker = 'x'",
    ):
        with pytest.raises(sa.exc.DBAPIError, match="immutable"):
            await run(database, statement)


async def test_a_row_of_somebody_elses_that_refers_to_a_work_item_keeps_all_of_its_page(
    database: str, sql_ledger: SqlLedger
) -> None:
    await _task(sql_ledger, "old", WorkItemState.COMPLETED)
    await run(
        database,
        "CREATE TABLE invoices (work_item_id text REFERENCES work_items (id))",
        "INSERT INTO invoices VALUES ('old-0')",
    )
    try:
        with pytest.raises(LedgerUnavailable, match=r"(?i)foreign key"):
            await prune(database, BEFORE)
        assert await _ids(sql_ledger) == ["old-0"]
        with pytest.raises(sa.exc.DBAPIError, match="immutable"):
            await run(database, "DELETE FROM work_items")
    finally:
        await run(database, "DROP TABLE invoices")


async def test_the_tasks_of_a_batch_that_stays_stay_with_it(database: str, sql_ledger: SqlLedger) -> None:
    for name in ("open/1", "old/1", "other/1", "open"):
        await _task(sql_ledger, name, WorkItemState.COMPLETED)

    def fill(connection: sa.Connection) -> None:
        for name, ended_at in (("old", after(9)), ("open", None)):
            state = "completed" if ended_at else "started"
            facts = {"digest": "d", "rows": 1, "defaults": {}, "state": state, "created_at": START}
            connection.execute(sa.insert(batches).values(id=name, ended_at=ended_at, **facts))

    held = database_at(database)
    try:
        await held.write(fill)
    finally:
        await held.close()
    old = Old(tasks=3, work_items=3, batches=1)
    assert await old_tasks(database, BEFORE) == old
    assert await prune(database, BEFORE) == old
    assert await _ids(sql_ledger) == ["open/1-0"]


async def test_batches_go_with_their_rows_once_they_have_ended(database: str, sql_ledger: SqlLedger) -> None:
    def fill(connection: sa.Connection) -> None:
        for name, ended_at in (("old", after(9)), ("new", after(86_400)), ("open", None)):
            state = "completed" if ended_at else "started"
            facts = {"digest": "d", "rows": 1, "defaults": {}, "state": state, "created_at": START}
            connection.execute(sa.insert(batches).values(id=name, ended_at=ended_at, **facts))
            row = {"position": 0, "row_id": "a", "request": {}, "request_bytes": 2, "state": "pending"}
            connection.execute(sa.insert(batch_rows).values(batch_id=name, **row))

    held = database_at(database)
    try:
        await held.write(fill)
        assert await old_tasks(database, BEFORE) == await prune(database, BEFORE) == Old(batches=1)
        for query in (sa.select(batches.c.id), sa.select(batch_rows.c.batch_id)):
            assert set(await held.read(partial(_column, query))) == {"new", "open"}
    finally:
        await held.close()


def _column(query: sa.Select[Any], connection: sa.Connection) -> list[Any]:
    return list(connection.execute(query).scalars())


async def test_a_database_without_the_schema_is_refused(tmp_path: object) -> None:
    with pytest.raises(SchemaMismatch):
        await prune(f"sqlite:///{tmp_path}/empty.db", BEFORE)
