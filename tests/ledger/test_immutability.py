"""The database itself refuses to change what has ended, whoever asks (I3)."""

from __future__ import annotations

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
            connection.execute(sa.text(statement))

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
