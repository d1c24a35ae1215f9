"""A task that is a work item of another task: its end is the work item's, and the other's policy decides."""

from __future__ import annotations

from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError

from tasquencer.core.retry import RetryRecipe
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import Task
from tests.semantics.side_by_side import Handle, Work, until
from tests.support.patience import eventually
from tests.support.tasks import Tasks, failure_of_task, tasks_on


@workflow.defn
class Part:
    """One call, without a retry."""

    def __init__(self) -> None:
        self._task = Task(recipe=RetryRecipe(max_retries=0))

    @workflow.run
    async def run(self, name: str) -> str:
        async for work_item in self._task.attempts(name):
            async with work_item:
                answer = await work_item.execute_activity(
                    "work",
                    name,
                    start_to_close_timeout=timedelta(minutes=1),
                    heartbeat_timeout=timedelta(seconds=10),
                )
                work_item.complete(answer)
        return str(self._task.result())


@workflow.defn
class Whole:
    """Each of its work items is a `Part`, whose workflow id is the work item's; one retry, at once."""

    def __init__(self) -> None:
        self._task = Task(recipe=RetryRecipe(max_retries=1, initial_interval=timedelta(0)))

    @workflow.run
    async def run(self, name: str) -> str:
        async for work_item in self._task.attempts(name):
            async with work_item:
                work_item.complete(await workflow.execute_child_workflow(Part.run, name, id=work_item.id))
        return str(self._task.result())


async def parts(tasks: Tasks, whole: Handle) -> list[Handle]:
    return [tasks.client.get_workflow_handle(item.id) for item in await tasks.work_items(whole)]


async def status(handle: Handle) -> WorkflowExecutionStatus | None:
    return (await handle.describe()).status


async def test_a_task_that_fails_fails_its_work_item_and_the_other_s_recipe_retries_it(
    dev_server: EmbeddedTemporal,
) -> None:
    work = Work()
    async with tasks_on(dev_server.address, [Whole, Part], [work.work]) as tasks:
        error, handle = await tasks.failure("Whole", "fails")
        found = await until(tasks, handle, {"main": ["failed", "failed"]})
        first, second = await parts(tasks, handle)
        assert [await status(first), await status(second)] == [WorkflowExecutionStatus.FAILED] * 2
        await until(tasks, first, {"main": ["failed"]})
    assert error.type == "RetriesExhausted"
    assert [item.failure.kind for item in found["main"] if item.failure] == ["told_so", "told_so"]
    assert work.begun == ["fails", "fails"]


async def test_a_task_that_is_canceled_cancels_its_work_item_and_not_the_task_above(
    dev_server: EmbeddedTemporal,
) -> None:
    work = Work()
    async with tasks_on(dev_server.address, [Whole, Part], [work.work]) as tasks:
        handle = await tasks.start("Whole", "hangs")
        await eventually(lambda: under_way(work), "the call to be under way")
        (part,) = await parts(tasks, handle)

        await part.cancel()

        error = await failure_of_task(handle)
        await until(tasks, handle, {"main": ["canceled"]})
        await until(tasks, part, {"main": ["canceled"]})
        assert (await status(part), await status(handle)) == (
            WorkflowExecutionStatus.CANCELED,
            WorkflowExecutionStatus.FAILED,
        )
    assert error.type == "TaskFailed"


async def test_a_task_that_is_canceled_cancels_the_tasks_below(dev_server: EmbeddedTemporal) -> None:
    work = Work()
    async with tasks_on(dev_server.address, [Whole, Part], [work.work]) as tasks:
        handle = await tasks.start("Whole", "hangs")
        await eventually(lambda: under_way(work), "the call to be under way")
        (part,) = await parts(tasks, handle)

        await handle.cancel()
        with pytest.raises(WorkflowFailureError):
            await handle.result()

        await until(tasks, handle, {"main": ["canceled"]})
        await until(tasks, part, {"main": ["canceled"]})
        assert (await status(part), await status(handle)) == (WorkflowExecutionStatus.CANCELED,) * 2
    assert work.stopped == ["hangs"]


async def under_way(work: Work) -> bool:
    return bool(work.begun)
