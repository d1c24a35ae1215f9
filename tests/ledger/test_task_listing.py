"""Tasks, as their work items add up to them, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue

from tasquencer.ai.usage import Usage
from tasquencer.sql import SqlLedger
from tasquencer.sql.task_listing import TaskFilter, TaskState, TaskSummary
from tests.ledger.stories import Life, after, ai_job

PAID = {"input_tokens": 3, "output_tokens": 4, "cost_usd": 0.25}


def life(task_id: str, attempt: int = 0, lineage: str = "main", *, at: float = 0, **labels: str) -> Life:
    metadata: dict[str, JsonValue] = {**labels}
    return Life(
        id=f"{task_id}-{lineage}-{attempt}",
        task_id=task_id,
        run_id=f"run of {task_id}",
        lineage=lineage,
        attempt=attempt,
        payload={"messages": [], "metadata": metadata},
        created_at=after(at),
    )


async def fails(ledger: SqlLedger, one: Life, *, at: float, **record: Any) -> None:
    job = ai_job("failed", attempt=one.attempt, **record)
    await ledger.record([one.initialized(), one.started(), one.failed(record=job, at=after(at))])


async def completes(ledger: SqlLedger, one: Life, *, at: float, **record: Any) -> None:
    job = ai_job("completed", attempt=one.attempt, **record)
    await ledger.record([one.initialized(), one.started(), one.completed(record=job, at=after(at))])


@pytest.fixture
async def told(sql_ledger: SqlLedger) -> SqlLedger:
    """Four tasks, the newest last; the retries of `failed` and of `waiting` begin in this order."""
    await fails(sql_ledger, life("done", customer="4711", city="Bonn"), at=2, **PAID)
    await completes(
        sql_ledger, life("done", 1, at=3, customer="4711", city="Bonn"), at=4, **PAID, model="small"
    )
    await completes(sql_ledger, life("failed", lineage="one", at=10, customer="4712"), at=30)
    await fails(sql_ledger, life("failed", lineage="two", at=11, customer="4711"), at=40)
    await fails(sql_ledger, life("waiting", at=20), at=21)
    await sql_ledger.record([life("waiting", 1, at=22).initialized()])
    await completes(sql_ledger, life("waiting", lineage="two", at=23), at=60)
    canceled = life("canceled", at=50)
    await sql_ledger.record([canceled.initialized(), canceled.started(), canceled.canceled()])
    return sql_ledger


async def listed(ledger: SqlLedger, **wanted: Any) -> list[str]:
    return [task.task_id for task in await ledger.tasks(TaskFilter(**wanted))]


async def test_a_task_is_the_sum_of_its_attempts(told: SqlLedger) -> None:
    (task,) = await told.tasks(TaskFilter(state=TaskState.COMPLETED))
    assert task == TaskSummary(
        task_id="done",
        task_type="SomeTask",
        state=TaskState.COMPLETED,
        attempts=2,
        lineages=1,
        models=["m", "small"],
        created_at=after(0),
        ended_at=after(4),
        input_tokens=6,
        output_tokens=8,
        cost_usd=0.5,
    )


async def test_a_task_with_an_open_work_item_is_started_and_has_no_end(told: SqlLedger) -> None:
    (task,) = await told.tasks(TaskFilter(state=TaskState.STARTED))
    assert (task.task_id, task.attempts, task.lineages, task.ended_at) == ("waiting", 3, 2, None)
    assert task.usage == Usage()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, ["canceled", "waiting", "failed", "done"]),
        ({"state": TaskState.FAILED}, ["failed"]),
        ({"state": TaskState.CANCELED}, ["canceled"]),
        ({"model": "small"}, ["done"]),
        ({"model": "large"}, []),
        ({"metadata": {"customer": "4711"}}, ["failed", "done"]),
        ({"metadata": {"customer": "4711", "city": "Bonn"}}, ["done"]),
        ({"metadata": {"customer": "4711"}, "state": TaskState.FAILED}, ["failed"]),
        ({"task_type": "SomeTask"}, ["canceled", "waiting", "failed", "done"]),
        ({"task_type": "OtherTask"}, []),
        ({"active_since": after(11)}, ["canceled", "waiting", "failed"]),
        ({"limit": 2}, ["canceled", "waiting"]),
        ({"limit": 2, "offset": 2}, ["failed", "done"]),
    ],
)
async def test_the_filter_selects_tasks_the_last_active_first(
    told: SqlLedger, wanted: dict[str, Any], expected: list[str]
) -> None:
    assert await listed(told, **wanted) == expected
