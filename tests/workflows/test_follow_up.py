"""A workflow that follows the end of a task and outlives it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from pydantic import JsonValue
from temporalio import workflow
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle

from tasquencer import FollowUp, RetryRecipe, TaskEnd, TaskEndState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import Task
from tests.support.calls import GONE, Hang, ScriptedCalls
from tests.support.patience import eventually
from tests.support.tasks import Tasks, tasks_on

Handle = WorkflowHandle[Any, Any]


@workflow.defn
class Notice:
    """Is told of a task's end, and lives until it is let go."""

    def __init__(self) -> None:
        self._let_go = False

    @workflow.run
    async def run(self, end: dict[str, Any]) -> dict[str, Any]:
        await workflow.wait_condition(lambda: self._let_go)
        return end

    @workflow.signal
    def let_go(self) -> None:
        self._let_go = True


def notice(end: TaskEnd) -> FollowUp | None:
    if end.task_id.endswith("-quiet"):
        return None
    told: dict[str, JsonValue] = {
        "task_id": end.task_id,
        "state": end.state.value,
        "error_type": end.error_type,
        "message": end.message,
        "work_items": end.counts.completed + end.counts.failed + end.counts.canceled,
        "open": end.counts.open_lineages,
    }
    return FollowUp("Notice", told)


@workflow.defn
class Noticed:
    """One call, whose end is noticed."""

    @workflow.run
    async def run(self, job: dict[str, Any]) -> Any:
        task = Task(recipe=RetryRecipe(max_retries=1, initial_interval=timedelta(0)), on_ended=notice)
        async for work_item in task.attempts(job):
            async with work_item:
                work_item.complete(
                    await work_item.execute_activity(
                        "generate",
                        job,
                        start_to_close_timeout=timedelta(minutes=1),
                        heartbeat_timeout=timedelta(seconds=10),
                    )
                )
        return task.result()


JOB = {"messages": [{"role": "user", "content": "?"}]}


async def told_by(tasks: Tasks, handle: Handle) -> Any:
    """Return the input of the follow-up. It is still running after the task has ended."""
    assert (await handle.describe()).status is not WorkflowExecutionStatus.RUNNING
    follow_up = tasks.client.get_workflow_handle(f"{handle.id}/follow-up")
    assert (await follow_up.describe()).status is WorkflowExecutionStatus.RUNNING
    await follow_up.signal(Notice.let_go)
    return await follow_up.result()


async def test_it_is_told_of_a_task_that_completed_and_runs_on(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, [Noticed, Notice], [ScriptedCalls(GONE).generate]) as tasks:
        result, handle = await tasks.run("Noticed", JOB)
        told = await told_by(tasks, handle)
    assert result["text"] == "42"
    assert told == {
        "task_id": handle.id,
        "state": TaskEndState.COMPLETED,
        "error_type": None,
        "message": None,
        "work_items": 2,
        "open": 0,
    }


async def test_it_is_told_why_a_task_failed(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, [Noticed, Notice], [ScriptedCalls(GONE, GONE).generate]) as tasks:
        error, handle = await tasks.failure("Noticed", JOB)
        told = await told_by(tasks, handle)
    assert (told["state"], told["error_type"], told["message"]) == (
        "failed",
        "RetriesExhausted",
        error.message,
    )


async def test_it_is_told_of_a_cancel_and_is_not_canceled_itself(dev_server: EmbeddedTemporal) -> None:
    calls = ScriptedCalls(Hang())
    async with tasks_on(dev_server.address, [Noticed, Notice], [calls.generate]) as tasks:
        handle = await tasks.start("Noticed", JOB)
        await calls.under_way.wait()
        await handle.cancel()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        told = await told_by(tasks, handle)
    assert (told["state"], told["error_type"], told["work_items"], told["open"]) == ("canceled", None, 1, 0)


async def test_a_hook_that_wishes_nothing_starts_nothing(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, [Noticed, Notice], [ScriptedCalls().generate]) as tasks:
        task_id = f"{tasks.task_queue}-quiet"
        await tasks.client.execute_workflow("Noticed", JOB, id=task_id, task_queue=tasks.task_queue)
        found = [one async for one in tasks.client.list_workflows(f"WorkflowId = '{task_id}/follow-up'")]
    assert found == []


async def test_where_the_follow_up_is_there_already_the_task_ends_all_the_same(
    dev_server: EmbeddedTemporal,
) -> None:
    async with tasks_on(dev_server.address, [Noticed, Notice], [ScriptedCalls().generate]) as tasks:
        task_id = f"{tasks.task_queue}-again"
        earlier = await tasks.client.start_workflow(
            "Notice", {"earlier": True}, id=f"{task_id}/follow-up", task_queue=tasks.task_queue
        )
        await tasks.client.execute_workflow("Noticed", JOB, id=task_id, task_queue=tasks.task_queue)
        await earlier.signal(Notice.let_go)
        assert await earlier.result() == {"earlier": True}


async def test_a_cancel_that_meets_the_last_moments_gets_one_truth(dev_server: EmbeddedTemporal) -> None:
    """At any time of the cancel, the follow-up gets the state in which the task ends."""
    async with tasks_on(dev_server.address, [Noticed, Notice], [ScriptedCalls().generate]) as tasks:
        for number in range(15):
            handle = await tasks.start("Noticed", JOB)
            await asyncio.sleep(number * 0.004)
            await handle.cancel()
            try:
                await handle.result()
                state = "completed"
            except WorkflowFailureError:
                state = "canceled"
            follow_up = tasks.client.get_workflow_handle(f"{handle.id}/follow-up")

            async def there(follow_up: Handle = follow_up) -> bool:
                await follow_up.signal(Notice.let_go)
                return True

            await eventually(there, "the follow-up")
            assert (await follow_up.result())["state"] == state
