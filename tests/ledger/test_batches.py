"""The contract of batches, on every kind of store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from tasquencer.ai.usage import Usage
from tasquencer.batch.rows import ID_TAKEN, BatchCounts, BatchRow, OpenRow, RowFailure, RowOutcome, RowState
from tasquencer.batch.store import Batch, BatchState, BatchStore, RowAnswer
from tasquencer.ledger.contract import Ledger
from tasquencer.sql import SqlLedger, upgrade
from tasquencer.sql.databases import database_at
from tasquencer.testing import InMemoryBatches
from tests.ledger.conftest import DatabaseMaker
from tests.ledger.stories import START, Life, after, ai_job
from tests.ledger.test_immutability import run
from tests.support.batches import filled_batch

MUCH = 2**20


@pytest.fixture
def batches(ledger: Ledger) -> BatchStore:
    return ledger.batches if isinstance(ledger, SqlLedger) else InMemoryBatches(ledger)


async def pending(
    batches: BatchStore, after: int = -1, limit: int = 10, most_bytes: int = MUCH
) -> tuple[list[str], bool]:
    page = await batches.pending("b", after=after, limit=limit, most_bytes=most_bytes)
    return [row.row_id for row in page.rows], page.is_last


def ended(position: int, state: RowState, number: int, **more: Any) -> RowOutcome:
    facts: dict[str, Any] = {"work_item_id": f"w{position}", "attempts": 1, **more}
    if state is not RowState.COMPLETED:
        facts.setdefault("failure", RowFailure(type="NotRetryable", kind="refused", message="no"))
    return RowOutcome(
        position=position,
        row_id=f"row-{position}",
        state=state,
        number=number,
        ended_at=after(number),
        **facts,
    )


async def answered(ledger: Ledger, position: int, text: str) -> None:
    """The work item that gave a row its answer."""
    life = Life(id=f"w{position}", task_id=f"b/row-{position}", run_id=f"run-{position}")
    record = ai_job("completed", result=text, finish_reason="stop")
    await ledger.record([life.initialized(), life.started(), life.completed(record=record)])


async def answers(batches: BatchStore, order: Any, after: int, **limits: int) -> list[RowAnswer]:
    return await batches.answers("b", order=order, after=after, **{"limit": 10, "most_bytes": MUCH, **limits})


async def test_a_batch_is_created_once(batches: BatchStore) -> None:
    first = Batch(id="b", digest="d", rows=2, defaults={"model": "m"}, created_at=START)
    assert await batches.find("b") is None
    assert await batches.create(first) == first
    assert await batches.create(first.model_copy(update={"digest": "e", "rows": 9})) == first
    assert await batches.find("b") == first


async def test_rows_come_in_their_order_page_by_page_with_the_defaults(batches: BatchStore) -> None:
    await filled_batch(batches, "b", ["one", {"prompt": "two", "model": "mine"}, "three"], model="theirs")
    await filled_batch(batches, "another", ["x"])
    page = await batches.pending("b", after=-1, limit=2, most_bytes=MUCH)
    assert [row.model_copy(update={"size": 0}) for row in page.rows] == [
        BatchRow(position=0, row_id="row-0", request={"prompt": "one", "model": "theirs"}),
        BatchRow(position=1, row_id="row-1", request={"prompt": "two", "model": "mine"}),
    ]
    assert not page.is_last
    assert await pending(batches, after=1, limit=2) == (["row-2"], True)
    assert await pending(batches, after=2) == ([], True)


async def test_filling_twice_adds_nothing(batches: BatchStore) -> None:
    await filled_batch(batches, "b", ["one", "two"])
    before = await batches.find("b")
    assert before is not None and before.filled_at is not None
    await batches.fill("b", [BatchRow(position=1, row_id="row-1", request={"prompt": "other"})])
    await batches.filled("b")
    page = await batches.pending("b", after=0, limit=5, most_bytes=MUCH)
    assert [row.request for row in page.rows] == [{"prompt": "two"}]
    assert await batches.find("b") == before


async def test_outcomes_are_counted_and_no_longer_pending(batches: BatchStore) -> None:
    await filled_batch(batches, "b", ["x"] * 5)
    outcomes = [
        ended(3, RowState.COMPLETED, 1, input_tokens=5, output_tokens=2**40, cost_usd=0.25),
        ended(0, RowState.FAILED, 2),
        ended(1, RowState.COMPLETED, 3, input_tokens=6),
        ended(4, RowState.CANCELED, 4),
    ]
    await batches.save("b", outcomes)
    await batches.save("b", outcomes[1:])  # delivered twice
    await batches.save("b", [])
    assert await batches.counts("b") == BatchCounts(
        pending=1,
        completed=2,
        failed=1,
        canceled=1,
        ended=4,
        input_tokens=11,
        output_tokens=2**40,
        cost_usd=0.25,
    )
    assert await pending(batches) == (["row-2"], True)
    assert await batches.counts("nobody") == BatchCounts()


async def attempts_of(ledger: Ledger, row_id: str, run_id: str, costs: Sequence[float | None]) -> None:
    """Attempts of a row's task; all but the last one failed."""
    for attempt, cost in enumerate(costs):
        life = Life(id=f"{run_id}-{attempt}", task_id=f"b/{row_id}", run_id=run_id, attempt=attempt)
        used = {} if cost is None else {"input_tokens": 3, "output_tokens": 4, "cost_usd": cost}
        is_last = attempt == len(costs) - 1
        record = ai_job("completed" if is_last else "failed", attempt=attempt, **used)
        begun = [life.initialized(), life.started()]
        await ledger.record(
            [*begun, life.completed(record=record) if is_last else life.failed(record=record)]
        )


async def test_tokens_and_cost_are_those_of_all_attempts_in_all_runs(
    ledger: Ledger, batches: BatchStore
) -> None:
    await filled_batch(batches, "b", ["x"] * 3)
    await attempts_of(ledger, "row-0", "run-0", [0.25, 0.5])
    await attempts_of(ledger, "row-1", "run-1", [1.0, None])
    await attempts_of(ledger, "row-2", "run-2", [2.0])
    taken = RowFailure(type=ID_TAKEN, message="another request has a task with this row's id")
    outcomes = [
        ended(0, RowState.COMPLETED, 1, work_item_id="run-0-1", cost_usd=0.5),
        ended(1, RowState.FAILED, 2),
        ended(2, RowState.FAILED, 3, failure=taken),
    ]

    used = await batches.save("b", outcomes)

    assert used == {
        0: Usage(input_tokens=6, output_tokens=8, cost_usd=0.75),
        1: Usage(input_tokens=3, output_tokens=4, cost_usd=1.0),
        2: Usage(),
    }
    assert await batches.save("b", outcomes) == used
    counts = await batches.counts("b")
    assert (counts.input_tokens, counts.output_tokens, counts.cost_usd) == (9, 12, 1.75)
    (answer,) = await answers(batches, "position", -1)
    assert (answer.usage, answer.total) == (Usage(input_tokens=3, output_tokens=4, cost_usd=0.5), used[0])

    again = await batches.begin("b")
    assert again.cost_usd == 0.75
    assert (await batches.counts("b")).cost_usd == 1.75
    await attempts_of(ledger, "row-1", "run-3", [4.0])
    assert (await batches.save("b", [ended(1, RowState.COMPLETED, 4)]))[1].cost_usd == 5.0
    assert (await batches.counts("b")).cost_usd == 5.75


async def test_a_row_that_has_completed_stays_so_another_one_may_end_otherwise(batches: BatchStore) -> None:
    await filled_batch(batches, "b", ["x"] * 2)
    await batches.save("b", [ended(0, RowState.COMPLETED, 1), ended(1, RowState.FAILED, 2)])
    await batches.save("b", [ended(0, RowState.FAILED, 3), ended(1, RowState.COMPLETED, 4)])
    counts = await batches.counts("b")
    assert (counts.completed, counts.failed, counts.ended) == (2, 0, 4)


async def test_the_end_cancels_what_is_pending_and_a_new_begin_takes_up_what_has_no_answer(
    batches: BatchStore,
) -> None:
    await filled_batch(batches, "b", ["x"] * 4)
    assert (await batches.begin("b")).pending == 4
    await batches.save("b", [ended(0, RowState.COMPLETED, 1), ended(1, RowState.FAILED, 2)])
    for _ in range(2):
        await batches.end("b", BatchState.FAILED)
        counts = await batches.counts("b")
        assert (counts.pending, counts.completed, counts.failed, counts.canceled) == (0, 1, 1, 2)
    batch = await batches.find("b")
    assert batch is not None and batch.state is BatchState.FAILED
    again = await batches.begin("b")
    assert (again.pending, again.completed, again.failed, again.ended) == (3, 1, 0, 1)
    batch = await batches.find("b")
    assert batch is not None and batch.state is BatchState.STARTED
    assert await pending(batches) == (["row-1", "row-2", "row-3"], True)


async def test_answers_come_from_the_ledger_in_both_orders_page_by_page(
    ledger: Ledger, batches: BatchStore
) -> None:
    await filled_batch(batches, "b", ["x"] * 4)
    for position in (2, 0, 3):
        await answered(ledger, position, f"answer {position}")
    outcomes = [
        ended(2, RowState.COMPLETED, 1, cost_usd=0.5),
        ended(1, RowState.FAILED, 2),
        ended(0, RowState.COMPLETED, 3),
        ended(3, RowState.COMPLETED, 4),
    ]
    await batches.save("b", outcomes)
    found = await answers(batches, "position", -1)
    assert [(answer.position, answer.text) for answer in found] == [
        (0, "answer 0"),
        (2, "answer 2"),
        (3, "answer 3"),
    ]
    assert found[1] == RowAnswer(
        position=2,
        number=1,
        row_id="row-2",
        text="answer 2",
        model="m",
        finish_reason="stop",
        work_item_id="w2",
        attempts=1,
        total=Usage(cost_usd=0.5),
        ended_at=after(1),
    )
    assert [answer.row_id for answer in await answers(batches, "position", 0, limit=1)] == ["row-2"]
    assert [answer.row_id for answer in await answers(batches, "number", 0)] == ["row-2", "row-0", "row-3"]
    assert [answer.row_id for answer in await answers(batches, "number", 3)] == ["row-3"]


async def test_what_has_no_answer_comes_as_it_was_given(batches: BatchStore) -> None:
    request = {"prompt": "two", "metadata": {"topic": "moons"}, "retry": {"jitter": 0.5}}
    await filled_batch(batches, "b", ["one", request, "three"], model="m")
    await batches.save("b", [ended(1, RowState.FAILED, 1)])
    await batches.end("b", BatchState.CANCELED)
    first, second, third = await batches.unanswered("b", after=-1, limit=10, most_bytes=MUCH)
    assert (second.request, second.state) == (request, RowState.FAILED)
    assert second.failure == RowFailure(type="NotRetryable", kind="refused", message="no")
    assert (first.state, first.failure, third.row_id) == (RowState.CANCELED, None, "row-2")
    assert await batches.unanswered("b", after=1, limit=1, most_bytes=MUCH) == [third]


async def test_retries_are_counted_while_they_are_open(ledger: Ledger, batches: BatchStore) -> None:
    for number, (task_id, attempt) in enumerate([("b/1", 1), ("b/2", 0), ("bb/3", 1), ("b/4", 2)]):
        life = Life(id=f"i{number}", task_id=task_id, run_id=f"r{number}", attempt=attempt)
        await ledger.record([life.initialized()])
        if task_id == "b/4":
            await ledger.record([life.started()])
    assert await batches.retrying("b") == 2


async def test_pending_rows_whose_tasks_are_open_are_left_running(
    ledger: Ledger, batches: BatchStore
) -> None:
    await filled_batch(batches, "b", ["open", "not begun", "ended", "recorded", "at a retry"])
    await filled_batch(batches, "c", ["of another batch"])
    for task_id in ("b/row-0", "b/row-2", "b/row-3", "b/row-4", "bb/row-1", "c/row-0"):
        life = Life(id=task_id, task_id=task_id, run_id=task_id)
        await ledger.record([life.initialized(), life.started()])
        if task_id == "b/row-2":
            await ledger.record([life.completed()])
    retry = Life(id="retry", task_id="b/row-4", run_id="b/row-4", attempt=1)
    await ledger.record([retry.initialized()])
    await batches.save("b", [ended(3, RowState.FAILED, 1)])
    assert await batches.left_running("b") == [
        OpenRow(position=0, row_id="row-0", found=True),
        OpenRow(position=4, row_id="row-4", found=True),
    ]


async def test_an_id_is_taken_literally(ledger: Ledger, batches: BatchStore) -> None:
    life = Life(id="i", task_id="ab/1", attempt=1)
    await ledger.record([life.initialized()])
    assert [await batches.retrying(name) for name in ("a_", "%", "AB", "ab")] == [0, 0, 0, 1]


async def test_a_page_ends_where_it_gets_too_large_but_has_one_row(sql_ledger: SqlLedger) -> None:
    batches = sql_ledger.batches
    await filled_batch(batches, "b", ["x" * size for size in (100, 100, 5000, 100)])
    assert await pending(batches, most_bytes=400) == (["row-0", "row-1"], False)
    assert await pending(batches, after=1, most_bytes=400) == (["row-2"], False)
    assert await pending(batches, after=2, most_bytes=400) == (["row-3"], True)
    for position, length in enumerate((100, 5000, 100)):
        await answered(sql_ledger, position, "x" * length)
    await batches.save("b", [ended(position, RowState.COMPLETED, position + 1) for position in range(3)])
    assert [answer.position for answer in await answers(batches, "position", -1, most_bytes=1000)] == [0]
    assert [answer.position for answer in await answers(batches, "position", 0, most_bytes=1000)] == [1]
    assert [answer.position for answer in await answers(batches, "number", 2, most_bytes=1000)] == [2]


async def test_a_batch_is_deleted_with_its_rows(database: str, sql_ledger: SqlLedger) -> None:
    await filled_batch(sql_ledger.batches, "b", ["x"])
    await run(database, "DELETE FROM batch_rows WHERE batch_id = 'b'", "DELETE FROM batches WHERE id = 'b'")
    assert await sql_ledger.batches.find("b") is None
    await filled_batch(sql_ledger.batches, "b", ["x"])
    await run(database, "DELETE FROM batches WHERE id = 'b'")
    assert (await sql_ledger.batches.counts("b")).pending == 0


async def test_a_page_costs_the_same_wherever_it_is(new_sqlite_database: DatabaseMaker) -> None:
    """SQLite tells its plan; PostgreSQL scans small tables."""
    database = await new_sqlite_database()
    await upgrade(database)
    opened = database_at(database)

    def plan(connection: sa.Connection) -> str:
        query = (
            "EXPLAIN QUERY PLAN SELECT position FROM batch_rows "
            "WHERE batch_id = 'b' AND state = 'pending' AND position > 5 ORDER BY position LIMIT 10"
        )
        return " ".join(str(row) for row in connection.execute(sa.text(query)))

    found = await opened.read(plan)
    await opened.close()
    assert "batch_rows_pending" in found
    assert "TEMP B-TREE" not in found
