"""Batches on the real dev server, with a scripted call and the ledger in a real database."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio import workflow
from temporalio.client import (
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.exceptions import CancelledError, TerminatedError
from temporalio.worker import Replayer

from tasquencer.ai.usage import Usage
from tasquencer.batch.rows import RowOutcome
from tasquencer.batch.store import BatchState
from tasquencer.cli.batch_following import progress_of
from tasquencer.core.errors import LedgerUnavailable
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.sql import SqlBatches, SqlLedger, batch_rows, upgrade
from tasquencer.sql.databases import database_at
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryBatches, InMemoryLedger
from tests.support.batches import filled_batch
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.postgres import EmbeddedPostgres
from tests.support.tasks import Tasks, failure_of_task, history, tasks_on
from tests.workflows.test_ai_fan_out import AT_ONCE, Echo
from workflows.ai_agent import AiAgentTask
from workflows.ai_batch import AiBatchTask

Handle = WorkflowHandle[Any, Any]

LONG_BACKOFF = {"initial_interval_seconds": 3600}


@dataclass(frozen=True)
class Scene:
    """A worker, its calls, and the batches of its ledger."""

    tasks: Tasks
    batches: SqlBatches
    echo: Echo

    async def start(self, prompts: Sequence[Any], *, batch_id: str | None = None, **request: Any) -> Handle:
        batch_id = batch_id or f"batch-{uuid4()}"
        await filled_batch(self.batches, batch_id, prompts, retry=AT_ONCE)
        return await self.again(batch_id, **request)

    async def again(self, batch_id: str, **request: Any) -> Handle:
        return await self.tasks.client.start_workflow(
            "AiBatchTask", request, id=batch_id, task_queue=self.tasks.task_queue
        )

    async def states(self, batch_id: str) -> Counter[str]:
        counts = await self.batches.counts(batch_id)
        found = {name: getattr(counts, name) for name in ("pending", "completed", "failed", "canceled")}
        return Counter({name: count for name, count in found.items() if count})

    async def asked(self, prompt: str, times: int = 1) -> None:
        async def probe() -> bool:
            return self.echo.asked[prompt] >= times

        await eventually(probe, f"{prompt!r} is asked")


@asynccontextmanager
async def scene_on(server: str, database: Path | str, *, calls_at_once: int = 100) -> AsyncIterator[Scene]:
    """Args: database: Its URL, or a folder for a file."""
    url = database if isinstance(database, str) else f"sqlite:///{database / 'ledger.db'}"
    await upgrade(url)
    ledger, echo = SqlLedger(url), Echo()
    async with tasks_on(
        server,
        [AiAgentTask, AiBatchTask],
        [echo.generate],
        ledger=ledger,
        batches=ledger.batches,
        calls_at_once=calls_at_once,
    ) as tasks:
        yield Scene(tasks, ledger.batches, echo)


@pytest.fixture
async def scene(dev_server: EmbeddedTemporal, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_on(dev_server.address, tmp_path) as scene:
        yield scene


async def runs_of(handle: Handle) -> list[int]:
    """How many events each run of the workflow has, newest first."""
    found = []
    run_id = (await handle.describe()).run_id
    while run_id:
        run = handle._client.get_workflow_handle(handle.id, run_id=run_id)
        events = await history(run)
        found.append(len(events))
        run_id = events[0].workflow_execution_started_event_attributes.continued_execution_run_id
    return found


async def answers(scene: Scene, batch_id: str) -> dict[str, str | None]:
    found = await scene.batches.answers(batch_id, order="position", after=-1, limit=1000, most_bytes=2**20)
    return {answer.row_id: answer.text for answer in found}


async def test_each_row_is_a_task_of_its_own_and_few_are_under_way_at_once(scene: Scene) -> None:
    prompts = [f"{'fail once ' if number % 5 == 0 else ''}line {number}" for number in range(30)]
    scene.echo.together = 2
    handle = await scene.start([*prompts, "fail"], concurrency=4)
    result = await handle.result()
    assert result == {
        "rows": 31,
        "completed": 30,
        "failed": 1,
        "canceled": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "cost_usd": None,
    }
    assert await answers(scene, handle.id) == {
        f"row-{number}": f"echo of {prompt}" for number, prompt in enumerate(prompts)
    }
    (lost,) = await scene.batches.unanswered(handle.id, after=-1, limit=10, most_bytes=2**20)
    assert (lost.row_id, lost.request) == ("row-30", {"prompt": "fail"})
    assert lost.failure is not None and (lost.failure.type, lost.failure.kind) == ("NotRetryable", "refused")
    assert scene.echo.most_under_way <= 4
    batch = await scene.batches.find(handle.id)
    assert batch is not None and batch.state is BatchState.COMPLETED
    first = scene.tasks.client.get_workflow_handle(f"{handle.id}/row-0")
    assert [(item.attempt, item.state) for item in await scene.tasks.work_items(first)] == [
        (0, "failed"),
        (1, "completed"),
    ]
    assert await handle.query("progress") == {**result, "running": 0, "paused": None}


async def test_the_books_of_a_batch_have_all_attempts_also_those_of_rows_that_failed(scene: Scene) -> None:
    handle = await scene.start(["paid one", "fail once paid two", "fail paid three", "four"])
    result = await handle.result()
    progress = await handle.query("progress")
    counts = await scene.batches.counts(handle.id)
    sums = {"input_tokens": 12, "output_tokens": 16, "cost_usd": 1.0}
    for found in (result, progress, counts.model_dump()):
        assert {name: found[name] for name in sums} == sums
    lines = await scene.batches.answers(handle.id, order="position", after=-1, limit=10, most_bytes=2**20)
    assert [(line.cost_usd, line.total.cost_usd) for line in lines] == [
        (0.25, 0.25),
        (0.25, 0.5),
        (None, None),
    ]


async def test_what_an_earlier_run_of_a_batch_used_stays_in_the_books(scene: Scene) -> None:
    everything = {"name": "absorb_failures", "limit": 0}
    handle = await scene.start(["fail paid one", "paid two"], concurrency=1, policy=everything)
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert (await scene.batches.counts(handle.id)).cost_usd == 0.25
    again = await scene.again(handle.id)
    assert (await again.result())["cost_usd"] == 0.75
    assert (await scene.batches.counts(handle.id)).cost_usd == 0.75


async def test_a_row_says_what_its_own_task_does_the_defaults_say_the_rest(scene: Scene) -> None:
    batch_id = f"batch-{uuid4()}"
    rows: list[Any] = [{"prompt": "one", "model": "mine"}, {"prompt": "fail once two", "max_retries": 0}]
    await filled_batch(scene.batches, batch_id, rows, model="theirs", retry=AT_ONCE, max_retries=2)
    assert (await (await scene.again(batch_id)).result())["failed"] == 1
    models = []
    for number in range(2):
        task = scene.tasks.client.get_workflow_handle(f"{batch_id}/row-{number}")
        (item,) = await scene.tasks.work_items(task)
        assert isinstance(item.payload, dict)
        models.append(item.payload["model"])
    assert models == ["mine", "theirs"]


async def test_it_goes_on_in_new_runs_that_follow_what_the_run_before_has_started(tmp_path: Path) -> None:
    """A task in a long backoff holds nobody up, and its end is learned of."""
    prompts = [{"prompt": "fail once sleeper", "retry": LONG_BACKOFF}, *[f"line {n}" for n in range(40)]]
    settings = {"limit.historyCount.suggestContinueAsNew": 80}
    async with (
        embedded_temporal(ui=False, dynamic_config=settings) as server,
        scene_on(server.address, tmp_path) as scene,
    ):
        handle = await scene.start(prompts, concurrency=3)

        async def all_but_one() -> bool:
            return (await scene.states(handle.id))["completed"] == 40

        await eventually(all_but_one, "all rows but one")
        assert (await handle.query("progress"))["running"] == 1
        assert await scene.batches.retrying(handle.id) == 1
        sleeper = scene.tasks.client.get_workflow_handle(f"{handle.id}/row-0")
        await sleeper.execute_update("retry_now", {"actor": "anna"})
        assert (await asyncio.wait_for(handle.result(), PATIENCE_SECONDS))["completed"] == 41
        events = await runs_of(handle)
    assert len(events) > 2
    assert max(events) < 200
    assert scene.echo.most_under_way <= 3
    assert sum(scene.echo.asked.values()) == 42
    assert len(await answers_after(scene, handle.id)) == 41


async def answers_after(scene: Scene, batch_id: str) -> dict[str, str | None]:
    """With the ledger opened once more, for its worker has closed it."""
    async with scene.tasks.ledger:
        return await answers(scene, batch_id)


async def test_a_new_run_leaves_the_calls_their_places(tmp_path: Path) -> None:
    """It looks for the ends of the tasks of the run before, and these need the only place there is."""
    settings = {"limit.historyCount.suggestContinueAsNew": 40}
    async with (
        embedded_temporal(ui=False, dynamic_config=settings) as server,
        scene_on(server.address, tmp_path, calls_at_once=1) as scene,
    ):
        handle = await scene.start([f"late {number}" for number in range(8)], concurrency=3)
        assert (await asyncio.wait_for(handle.result(), PATIENCE_SECONDS))["completed"] == 8
        assert len(await runs_of(handle)) > 1


async def test_a_cancel_waits_for_no_place_among_the_calls(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with scene_on(dev_server.address, tmp_path, calls_at_once=2) as scene:
        handle = await scene.start(["wait one", "wait two", "wait three"], concurrency=3)
        await eventually(lambda: _are_asked(scene, 2), "two calls")
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as ended:
            await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)
        assert await scene.states(handle.id) == {"canceled": 3}
    assert isinstance(ended.value.cause, CancelledError)
    # The place of a call that has ended may be taken once more before its task hears of the cancel.
    assert sum(scene.echo.asked.values()) <= 3


async def _are_asked(scene: Scene, number: int) -> bool:
    return sum(scene.echo.asked.values()) == number


async def test_pause_starts_nothing_more_and_lasts_into_the_next_run(tmp_path: Path) -> None:
    settings = {"limit.historyCount.suggestContinueAsNew": 40}
    async with (
        embedded_temporal(ui=False, dynamic_config=settings) as server,
        scene_on(server.address, tmp_path) as scene,
    ):
        handle = await scene.start([f"late {number}" for number in range(12)], concurrency=2)
        await scene.asked("late 3")
        await handle.execute_update("pause", {"actor": "anna", "reason": "lunch"})

        async def quiet() -> bool:
            return (await handle.query("progress"))["running"] == 0

        await eventually(quiet, "what was under way has ended")
        asked = sum(scene.echo.asked.values())
        for number in range(20):  # events enough for another run
            await handle.execute_update("pause", {"actor": "anna", "reason": f"lunch {number}"})
        progress = await handle.query("progress")
        assert progress["paused"] == {"actor": "anna", "reason": "lunch 19"}
        assert sum(scene.echo.asked.values()) == asked < 12
        await handle.execute_update("resume", {"actor": "anna"})
        assert (await handle.result())["completed"] == 12
        assert len(await runs_of(handle)) > 1
        with pytest.raises(WorkflowUpdateFailedError):
            await (await scene.start(["wait"])).execute_update("pause", {"reason": "nobody"})


async def test_the_largest_prompts_pass_a_few_at_a_time(scene: Scene) -> None:
    prompts = [f"{number} {'x' * 1_500_000}" for number in range(7)]
    handle = await scene.start([*prompts, "small"], concurrency=4)
    assert (await asyncio.wait_for(handle.result(), PATIENCE_SECONDS))["completed"] == 8
    replayer = Replayer(workflows=[AiBatchTask], plugins=[TasquencerPlugin(InMemoryLedger())])
    await replayer.replay_workflow(await handle.fetch_history())


@pytest.mark.postgresql
async def test_it_works_on_postgresql_too(dev_server: EmbeddedTemporal, postgres: EmbeddedPostgres) -> None:
    url = await postgres.create_database("batches")
    async with scene_on(dev_server.address, url) as scene:
        prompts = [f"{'fail ' if number % 7 == 0 else ''}line {number}" for number in range(50)]
        result = await (await scene.start(prompts, batch_id="on-postgresql", concurrency=8)).result()
        assert (result["completed"], result["failed"]) == (42, 8)
        assert len(await answers(scene, "on-postgresql")) == 42
        await failure_of_task(await scene.again("on-postgresql", policy="fail_fast", concurrency=1))
        assert await scene.states("on-postgresql") == {"completed": 42, "failed": 1, "canceled": 7}


async def test_cancel_settles_everything(scene: Scene) -> None:
    prompts = ["one", "wait two", {"prompt": "fail once three", "retry": LONG_BACKOFF}, "wait four", "five"]
    handle = await scene.start(prompts, concurrency=3)
    await scene.asked("wait four")
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as caught:
        await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)
    assert isinstance(caught.value.cause, CancelledError)
    assert await scene.states(handle.id) == {"completed": 1, "canceled": 4}
    batch = await scene.batches.find(handle.id)
    assert batch is not None and batch.state is BatchState.CANCELED
    for number in (1, 2, 3):
        task = scene.tasks.client.get_workflow_handle(f"{handle.id}/row-{number}")
        assert (await task.describe()).status is WorkflowExecutionStatus.CANCELED
        assert all(item.state.is_terminal for item in await scene.tasks.work_items(task))
    assert scene.echo.asked["five"] == 0


async def test_a_cancel_that_comes_first_cancels_all_rows(scene: Scene) -> None:
    batch_id = f"batch-{uuid4()}"
    await filled_batch(scene.batches, batch_id, ["one"] * 5)
    handle = await scene.tasks.client.start_workflow(
        "AiBatchTask", id=batch_id, task_queue=scene.tasks.task_queue, start_delay=timedelta(minutes=1)
    )
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as caught:
        await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)
    assert isinstance(caught.value.cause, CancelledError)
    assert await scene.states(batch_id) == {"canceled": 5}
    assert not scene.echo.asked


async def test_the_policy_ends_it_and_what_is_under_way(scene: Scene) -> None:
    prompts = ["wait", "one", "fail two", "fail three", *["never"] * 20]
    policy = {"name": "absorb_failures", "limit": 1}
    handle = await scene.start(prompts, concurrency=2, policy=policy)
    error = await failure_of_task(handle)
    assert error.type == "TaskFailed"
    assert error.message == (
        "the policy ended the batch: 2 of 24 rows failed; the last one: row-3: NotRetryable: "
        "first try failed with refused: no, which does not qualify for a retry"
    )
    assert await scene.states(handle.id) == {"completed": 1, "failed": 2, "canceled": 21}
    waiting = scene.tasks.client.get_workflow_handle(f"{handle.id}/row-0")
    assert (await waiting.describe()).status is WorkflowExecutionStatus.CANCELED


async def test_it_ends_when_so_many_answers_are_there_as_it_needs(scene: Scene) -> None:
    policy = {"name": "require_successes", "successes": 2}
    handle = await scene.start(["wait", "one", "two", "wait too"], policy=policy)
    result = await handle.result()
    assert (result["completed"], result["canceled"]) == (2, 2)
    assert await scene.states(handle.id) == {"completed": 2, "canceled": 2}
    asked = scene.echo.asked.total()
    assert await (await scene.again(handle.id, policy=policy)).result() == result
    assert await scene.states(handle.id) == {"completed": 2, "canceled": 2}
    assert scene.echo.asked.total() == asked


async def test_a_batch_that_failed_goes_on_with_what_has_no_answer(scene: Scene) -> None:
    prompts = ["one", {"prompt": "fail once two", "max_retries": 0}, "three"]
    handle = await scene.start(prompts, concurrency=1, policy="fail_fast")
    await failure_of_task(handle)
    assert await scene.states(handle.id) == {"completed": 1, "failed": 1, "canceled": 1}
    result = await (await scene.again(handle.id)).result()
    assert (result["completed"], result["failed"], result["canceled"]) == (3, 0, 0)
    assert scene.echo.asked == {"one": 1, "fail once two": 2, "three": 1}
    again = await (await scene.again(handle.id)).result()
    assert again == result
    assert scene.echo.asked["one"] == 1


async def test_a_batch_that_was_terminated_takes_up_the_tasks_it_left(scene: Scene) -> None:
    prompts = ["late one", "late two", "wait three", "four"]
    handle = await scene.start(prompts, concurrency=3)
    for prompt in prompts[:3]:
        await scene.asked(prompt)
    await handle.terminate()
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, TerminatedError)
    left = scene.tasks.client.get_workflow_handle(f"{handle.id}/row-0")
    await left.result()  # it goes on by itself

    again = await scene.again(handle.id, concurrency=3)
    third = scene.tasks.client.get_workflow_handle(f"{handle.id}/row-2")

    async def all_but_the_third() -> bool:
        return (await scene.states(handle.id))["completed"] == 3

    await eventually(all_but_the_third, "the others")
    (item,) = await scene.tasks.work_items(third)
    by_hand = {"work_item_id": item.id, "actor": "anna", "result": {"text": "three"}}
    await third.execute_update("complete_work_item", by_hand)
    assert (await asyncio.wait_for(again.result(), PATIENCE_SECONDS))["completed"] == 4
    assert scene.echo.asked == {"late one": 1, "late two": 1, "wait three": 1, "four": 1}


async def test_a_cancel_reaches_the_tasks_that_a_terminated_run_has_left(scene: Scene) -> None:
    """The next run has a place for the first of them only."""
    prompts = ["wait one", "wait two", "wait three", "four"]
    handle = await scene.start(prompts, concurrency=3)
    for prompt in prompts[:3]:
        await scene.asked(prompt)
    await handle.terminate()
    again = await scene.again(handle.id, concurrency=1)

    async def probe() -> bool:
        progress = await again.query("progress")
        return progress is not None and progress["running"] == 1

    await eventually(probe, "the first one to be taken up")
    await again.cancel()
    with pytest.raises(WorkflowFailureError):
        await asyncio.wait_for(again.result(), PATIENCE_SECONDS)
    assert await scene.states(handle.id) == {"canceled": 4}
    for number in range(3):
        task = scene.tasks.client.get_workflow_handle(f"{handle.id}/row-{number}")
        with pytest.raises(WorkflowFailureError) as ended:
            await asyncio.wait_for(task.result(), PATIENCE_SECONDS)
        assert isinstance(ended.value.cause, CancelledError)
    assert scene.echo.asked["four"] == 0


@workflow.defn(sandboxed=False, name="AiAgentTask")
class Claiming:
    """Says that the work item with the id in its prompt holds its answer."""

    @workflow.run
    async def run(self, request: dict[str, Any]) -> dict[str, Any]:
        usage = {"input_tokens": 0, "output_tokens": 0, "cost_usd": None}
        answer = {"text": "mine", "model": None, "finish_reason": None, **usage}
        return {**answer, "work_item_id": request["prompt"], "attempts": 1}


async def test_a_work_item_of_another_task_is_not_an_answer_and_a_pruned_one_is(
    scene: Scene, dev_server: EmbeddedTemporal
) -> None:
    """The batch ends in both cases, and keeps what it knows of the row."""
    result, other = await scene.tasks.run("AiAgentTask", {"prompt": "another task"})
    (item,) = await scene.tasks.work_items(other)
    assert result["work_item_id"] == item.id
    batch_id, ledger = f"batch-{uuid4()}", scene.tasks.ledger
    await filled_batch(scene.batches, batch_id, [item.id, "pruned"])
    workflows, calls = [Claiming, AiBatchTask], [scene.echo.generate]
    async with tasks_on(dev_server.address, workflows, calls, ledger=ledger, batches=scene.batches) as tasks:
        batch: Handle = await tasks.client.start_workflow(
            "AiBatchTask", {}, id=batch_id, task_queue=tasks.task_queue
        )
        await asyncio.wait_for(batch.result(), PATIENCE_SECONDS)
    (lost,) = await scene.batches.unanswered(batch_id, after=-1, limit=10, most_bytes=2**20)
    assert (lost.row_id, lost.failure and lost.failure.type) == ("row-0", "IdTaken")
    (kept,) = await scene.batches.answers(batch_id, order="position", after=-1, limit=10, most_bytes=2**20)
    assert (kept.row_id, kept.text, kept.work_item_id) == ("row-1", None, "pruned")
    assert kept.ended_at is not None


async def test_a_task_that_somebody_else_has_started_is_not_taken_for_the_row_s(scene: Scene) -> None:
    batch_id = f"batch-{uuid4()}"
    for number, prompt in enumerate(["one", "wait for something else", "three"]):
        await scene.tasks.client.start_workflow(
            "AiAgentTask",
            {"prompt": prompt, "retry": AT_ONCE},
            id=f"{batch_id}/row-{number}",
            task_queue=scene.tasks.task_queue,
        )
    await scene.asked("wait for something else")
    await filled_batch(scene.batches, batch_id, ["one", "two", "other"], retry=AT_ONCE)
    result = await asyncio.wait_for((await scene.again(batch_id)).result(), PATIENCE_SECONDS)
    assert (result["completed"], result["failed"]) == (0, 3)
    lost = await scene.batches.unanswered(batch_id, after=-1, limit=10, most_bytes=2**20)
    assert [(row.row_id, row.failure and row.failure.type) for row in lost] == [
        ("row-0", "IdTaken"),
        ("row-1", "IdTaken"),
        ("row-2", "IdTaken"),
    ]
    await scene.asked("three")
    assert scene.echo.asked == {"one": 1, "wait for something else": 1, "three": 1}
    theirs = scene.tasks.client.get_workflow_handle(f"{batch_id}/row-1")
    assert (await theirs.describe()).status is WorkflowExecutionStatus.RUNNING
    await theirs.cancel()


async def test_more_answers_than_rows_are_refused_and_nothing_is_asked(scene: Scene) -> None:
    policy = {"name": "require_successes", "successes": 3}
    handle = await scene.start(["one", "two"], policy=policy)
    error = await failure_of_task(handle)
    assert (error.type, error.message) == (
        "InvalidRequest",
        "policy.successes: 3 are required of only 2 prompts",
    )
    assert await scene.states(handle.id) == {"canceled": 2}
    assert not scene.echo.asked


async def test_a_batch_that_waits_for_a_place_answers_that_it_has_not_begun(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with scene_on(dev_server.address, tmp_path, calls_at_once=1) as scene:
        busy = await scene.start(["wait"])
        await scene.asked("wait")
        waiting = await scene.start(["one"])

        async def probe() -> bool:
            return await progress_of(waiting) == (True, None)

        await eventually(probe, "an answer")
        await busy.cancel()
        assert (await asyncio.wait_for(waiting.result(), PATIENCE_SECONDS))["completed"] == 1


async def test_a_batch_without_rows_says_how_to_add_them(scene: Scene) -> None:
    error = await failure_of_task(await scene.again(f"batch-{uuid4()}"))
    assert error.type == "InvalidRequest"
    assert error.message.endswith("has no rows in the ledger: add them with `tasq batch`")


async def test_a_wrong_request_fails_at_once(scene: Scene) -> None:
    error = await failure_of_task(await scene.start(["one"], concurrency=0))
    assert (error.type, error.message.partition(":")[0]) == ("InvalidRequest", "concurrency")


async def test_rows_that_somebody_has_deleted_end_it(scene: Scene) -> None:
    handle = await scene.start(["late one", *[f"line {number}" for number in range(59)]], concurrency=1)
    await scene.asked("late one")
    url = scene.tasks.ledger.database if isinstance(scene.tasks.ledger, SqlLedger) else ""
    database = database_at(url)
    gone = batch_rows.delete().where(batch_rows.c.batch_id == handle.id, batch_rows.c.position >= 50)
    await database.write(lambda connection: connection.execute(gone))
    await database.close()
    error = await failure_of_task(handle)
    assert (error.type, error.message) == ("TaskFailed", "the ledger no longer has 10 rows of the batch")
    assert await scene.states(handle.id) == {"completed": 50}


class FallingBatches(InMemoryBatches):
    """Is down from its first outcome on, until it is repaired."""

    repaired = False
    refused = 0

    async def save(self, batch_id: str, outcomes: Sequence[RowOutcome]) -> dict[int, Usage]:
        if not self.repaired:
            self.refused += 1
            raise LedgerUnavailable("a database", "connection refused")
        return await super().save(batch_id, outcomes)


async def test_an_outage_of_the_ledger_is_waited_for(dev_server: EmbeddedTemporal) -> None:
    ledger, echo = InMemoryLedger(), Echo()
    batches = FallingBatches(ledger)
    async with tasks_on(
        dev_server.address, [AiAgentTask, AiBatchTask], [echo.generate], ledger=ledger, batches=batches
    ) as tasks:
        batch_id = f"batch-{uuid4()}"
        await filled_batch(batches, batch_id, ["one", "two"])
        handle: Handle = await tasks.client.start_workflow(
            "AiBatchTask", {}, id=batch_id, task_queue=tasks.task_queue
        )

        async def refused() -> bool:
            return batches.refused >= 2

        await eventually(refused, "two tries")
        batches.repaired = True
        assert (await asyncio.wait_for(handle.result(), PATIENCE_SECONDS))["completed"] == 2
    assert sum(echo.asked.values()) == 2
