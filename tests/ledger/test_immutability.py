"""The database itself refuses changes of ended work items from every user (I3)."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
import sqlalchemy as sa

from tasquencer.core.work_item import WorkItemState
from tasquencer.sql import SqlLedger
from tasquencer.sql.databases import database_at
from tests.ledger.stories import Life, ai_job

ENDED = [WorkItemState.COMPLETED, WorkItemState.FAILED, WorkItemState.CANCELED]


async def run(url: str, *statements: str) -> None:
    database = database_at(url)

    def work(connection: sa.Connection) -> None:
        for statement in statements:
            connection.exec_driver_sql(statement)

    try:
        await database.write(work)
    finally:
        await database.close()


@pytest.fixture
async def held(database: str, sql_ledger: SqlLedger) -> str:
    """A database with one work item of each end, and one that is still started."""
    for number, state in enumerate([*ENDED, WorkItemState.STARTED]):
        life = Life(id=state.value, attempt=number)
        entries = life.until(state)
        entries[-1] = entries[-1].model_copy(update={"record": ai_job(state.value)})
        await sql_ledger.record(entries)
    return database


REFUSED = [
    *[
        statement.format(state=state)
        for state in ENDED
        for statement in (
            "UPDATE work_items SET worker = 'x' WHERE id = '{state}'",
            "UPDATE work_items SET state = 'started', ended_at = NULL WHERE id = '{state}'",
            "DELETE FROM work_items WHERE id = '{state}'",
            "UPDATE ai_jobs SET result = 'x' WHERE work_item_id = '{state}'",
            "DELETE FROM ai_jobs WHERE work_item_id = '{state}'",
        )
    ],
    "UPDATE work_items SET worker = 'x'",
    "UPDATE work_item_transitions SET actor = 'x' WHERE work_item_id = 'started'",
    "DELETE FROM work_item_transitions WHERE work_item_id = 'started'",
    "DELETE FROM work_item_transitions",
]


@pytest.mark.parametrize("statement", REFUSED)
async def test_a_change_of_what_has_ended_is_refused(held: str, statement: str) -> None:
    with pytest.raises(sa.exc.IntegrityError, match=r"(that has ended is|transitions are) immutable"):
        await run(held, statement)


async def test_what_is_open_can_change(held: str) -> None:
    await run(
        held,
        "UPDATE work_items SET worker = 'x' WHERE id = 'started'",
        "UPDATE ai_jobs SET model = 'x' WHERE work_item_id = 'started'",
        "DELETE FROM ai_jobs WHERE work_item_id = 'started'",
    )


COPY = "INSERT OR REPLACE INTO {table} SELECT * FROM {table} WHERE {key} = 'completed'"
SAME_ATTEMPT = (
    "INSERT OR REPLACE INTO work_items (id, task_id, run_id, task_type, lineage, attempt, state, "
    "delay_seconds, delay_reason, not_before, created_at) SELECT 'another', task_id, run_id, task_type, "
    "lineage, attempt, 'initialized', 0, 'first_try', not_before, created_at FROM work_items "
    "WHERE id = 'completed'"
)
REPLACED = [
    COPY.format(table="work_items", key="id"),
    COPY.format(table="work_item_transitions", key="work_item_id"),
    COPY.format(table="ai_jobs", key="work_item_id"),
    SAME_ATTEMPT,
]


@pytest.mark.parametrize(
    "statement", [*REPLACED, *(f"TRUNCATE {name} CASCADE" for name in ("work_items", "ai_jobs"))]
)
async def test_the_ways_around_are_closed(held: str, statement: str) -> None:
    """SQLite has REPLACE, PostgreSQL has TRUNCATE; the other one does not know the word."""
    known = ("TRUNCATE" in statement) == held.startswith("postgresql")
    with pytest.raises(sa.exc.DBAPIError, match="immutable" if known else "syntax error"):
        await run(held, statement)


TAKEN = [
    "UPDATE OR REPLACE work_items SET id = 'failed' WHERE id = 'started'",
    "UPDATE OR REPLACE work_items SET attempt = 0 WHERE id = 'started'",
    "UPDATE OR REPLACE work_items SET rowid = 1 WHERE id = 'started'",
    "UPDATE OR REPLACE work_items SET oid = 1 WHERE id = 'started'",
    "UPDATE OR REPLACE ai_jobs SET work_item_id = 'failed' WHERE work_item_id = 'started'",
    "UPDATE OR REPLACE ai_jobs SET _rowid_ = 1 WHERE work_item_id = 'started'",
    (
        "INSERT OR REPLACE INTO ai_jobs (rowid, work_item_id, prompt, max_retries, attempt, status) "
        "VALUES (1, 'another', 'Why?', 3, 0, 'started')"
    ),
    SAME_ATTEMPT.replace("INTO work_items (id", "INTO work_items (rowid, id")
    .replace("SELECT 'another'", "SELECT 1, 'another'")
    .replace("lineage, attempt, 'initialized'", "lineage, 7, 'initialized'"),
]


@pytest.mark.parametrize("foreign_keys", ["ON", "OFF"])
@pytest.mark.parametrize("statement", TAKEN)
async def test_a_row_cannot_take_the_key_of_an_ended_one_on_sqlite(
    held: str, statement: str, foreign_keys: str
) -> None:
    if held.startswith("sqlite"):
        with closing(sqlite3.connect(held.removeprefix("sqlite:///"), isolation_level=None)) as connection:
            connection.execute(f"PRAGMA foreign_keys = {foreign_keys}")
            before = [list(connection.execute(f"SELECT * FROM {name}")) for name in ("work_items", "ai_jobs")]
            with pytest.raises(sqlite3.IntegrityError, match="that has ended is immutable"):
                connection.execute(statement)
            after = [list(connection.execute(f"SELECT * FROM {name}")) for name in ("work_items", "ai_jobs")]
        assert after == before


APPENDED = (
    "INSERT INTO work_item_transitions (work_item_id, sequence, previous_state, next_state, at, actor) "
    "VALUES ('{id}', {sequence}, 'started', '{state}', '2026-11-23 12:00:00', 'x')"
)


@pytest.mark.parametrize("id", ENDED)
@pytest.mark.parametrize("state", ["started", "completed"])
async def test_a_transition_after_the_end_is_refused(held: str, id: str, state: str) -> None:  # noqa: A002
    with pytest.raises(sa.exc.IntegrityError, match="it takes no further transition"):
        await run(held, APPENDED.format(id=id, sequence=3, state=state))


async def test_one_statement_cannot_append_an_end_and_what_follows_it(held: str) -> None:
    two = APPENDED.format(id="started", sequence=2, state="failed")
    two += ", ('started', 3, 'started', 'completed', '2026-11-23 12:00:00', 'x')"
    with pytest.raises(sa.exc.IntegrityError, match="it takes no further transition"):
        await run(held, two)
    await run(held, APPENDED.format(id="started", sequence=2, state="failed"))


async def test_a_temporary_table_does_not_hide_that_a_work_item_has_ended(held: str) -> None:
    if held.startswith("sqlite"):
        return
    hidden = "CREATE TEMPORARY TABLE work_item_transitions (LIKE public.work_item_transitions)"
    appended = APPENDED.format(id="failed", sequence=3, state="completed")
    with pytest.raises(sa.exc.IntegrityError, match="it takes no further transition"):
        await run(held, hidden, appended.replace("INTO ", "INTO public."))


async def test_a_transition_table_cannot_be_emptied_on_postgresql(held: str) -> None:
    if held.startswith("postgresql"):
        with pytest.raises(sa.exc.IntegrityError, match="transitions are immutable"):
            await run(held, "TRUNCATE work_item_transitions")


CONSTRAINTS = {
    "work_items_state_known": "UPDATE work_items SET state = 'paused' WHERE id = 'started'",
    "work_items_delay_reason_known": "UPDATE work_items SET delay_reason = 'mood' WHERE id = 'started'",
    "work_items_attempt_counts_from_0": "UPDATE work_items SET attempt = -1 WHERE id = 'started'",
    "work_items_delay_not_negative": "UPDATE work_items SET delay_seconds = -1 WHERE id = 'started'",
    "work_items_terminal_means_ended": "UPDATE work_items SET state = 'completed' WHERE id = 'started'",
    "work_items_started_has_time": "UPDATE work_items SET started_at = NULL WHERE id = 'started'",
    "work_items_failed_has_kind": "UPDATE work_items SET failure_kind = 'x' WHERE id = 'started'",
    "ai_jobs_status_known": "UPDATE ai_jobs SET status = 'paused' WHERE work_item_id = 'started'",
    "ai_jobs_attempt_within_retries": "UPDATE ai_jobs SET attempt = 4 WHERE work_item_id = 'started'",
}


@pytest.mark.parametrize("constraint", CONSTRAINTS)
async def test_each_constraint_holds(held: str, constraint: str) -> None:
    with pytest.raises(sa.exc.IntegrityError, match=constraint):
        await run(held, CONSTRAINTS[constraint])
