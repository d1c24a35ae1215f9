"""An error in the workflow's code records nothing and pauses the task; one in an activity is a failure."""

from __future__ import annotations

from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import WorkflowExecutionStatus

from tasquencer.core.hooks import NextAttempt, StateChange
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import Task
from tests.semantics.side_by_side import Handle, until
from tests.support.patience import eventually
from tests.support.tasks import failure_of_task, history, tasks_on


@activity.defn
async def divide(by: int) -> float:
    return 1 / by


def buggy(change: StateChange) -> NextAttempt | None:
    if change.transition.next_state is WorkItemState.COMPLETED:
        raise LookupError("a bug in the hook")
    return None


@workflow.defn
class Divides:
    def __init__(self) -> None:
        self._task = Task(recipe=RetryRecipe(max_retries=0), on_work_item_state_changed=buggy)

    @workflow.run
    async def run(self, by: int) -> str:
        async for work_item in self._task.attempts(by):
            async with work_item:
                quotient = await work_item.execute_activity(
                    divide, by, start_to_close_timeout=timedelta(seconds=60)
                )
                work_item.complete(quotient)
        return str(self._task.result())


async def test_an_error_in_the_hook_records_nothing_and_the_task_waits_to_be_mended(
    dev_server: EmbeddedTemporal,
) -> None:
    async with tasks_on(dev_server.address, [Divides], [divide]) as tasks:
        handle = await tasks.start("Divides", 2)
        await eventually(lambda: has_stumbled(handle), "a workflow task that fails")
        found = await until(tasks, handle, {"main": ["started"]})
        log = await tasks.ledger.transitions(found["main"][0].id)
        assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
        await handle.terminate()
    assert [transition.next_state for transition in log] == ["initialized", "started"]


async def has_stumbled(handle: Handle) -> bool:
    return any(
        event.workflow_task_failed_event_attributes.failure.message.endswith("LookupError: a bug in the hook")
        for event in await history(handle)
        if event.HasField("workflow_task_failed_event_attributes")
    )


async def test_an_error_in_an_activity_is_the_failure_of_its_work_item(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, [Divides], [divide]) as tasks:
        handle = await tasks.start("Divides", 0)
        error = await failure_of_task(handle)
        found = await until(tasks, handle, {"main": ["failed"]})
    (item,) = found["main"]
    assert error.type == "RetriesExhausted"
    assert item.failure is not None
    assert (item.failure.kind, item.failure.message) == ("ZeroDivisionError", "division by zero")
