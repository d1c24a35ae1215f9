"""What a work item has scheduled ends with it: its delay, its call, its wait for the outside world."""

from __future__ import annotations

from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError

from tasquencer.core.retry import RetryRecipe
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import Task
from tests.semantics.side_by_side import Handle, SideBySide, Work, hours_canceled, until
from tests.support.patience import eventually
from tests.support.tasks import Tasks, comes_to, failure_of_task, history, tasks_on


async def end_of(tasks: Tasks, handle: Handle, action: str, **more: object) -> None:
    """End the last work item from outside."""
    *_, item = await tasks.work_items(handle)
    await handle.execute_update(action, {"work_item_id": item.id, "actor": "anna", **more})


@pytest.mark.parametrize(
    ("action", "more"),
    [("cancel_work_item", {}), ("fail_work_item", {}), ("complete_work_item", {"result": "from a person"})],
)
async def test_the_call_of_a_work_item_is_stopped_however_the_work_item_ends(
    dev_server: EmbeddedTemporal, action: str, more: dict[str, object]
) -> None:
    work = Work()
    async with tasks_on(dev_server.address, [SideBySide], [work.work]) as tasks:
        handle = await tasks.start("SideBySide", ["hangs"], True)
        await eventually(lambda: under_way(work), "the call to be under way")
        await end_of(tasks, handle, action, **more)
        await eventually(lambda: stopped(work), "the call to be stopped")
        await handle.terminate() if action == "fail_work_item" else await handle.result()
    assert work.begun == work.stopped == ["hangs"]


async def under_way(work: Work) -> bool:
    return work.begun == ["hangs"]


async def stopped(work: Work) -> bool:
    return work.stopped == ["hangs"]


async def test_the_delay_of_a_work_item_is_canceled_with_it_and_its_call_is_never_made(
    dev_server: EmbeddedTemporal,
) -> None:
    work = Work()
    async with tasks_on(dev_server.address, [SideBySide], [work.work]) as tasks:
        handle = await tasks.start("SideBySide", ["fails"])
        await until(tasks, handle, {"fails": ["failed", "initialized"]})
        await comes_to(handle, "timer_started_event_attributes")
        await end_of(tasks, handle, "cancel_work_item")
        await failure_of_task(handle)
        events = await history(handle)
    assert hours_canceled(events) == [1]
    assert work.begun == ["fails"]


@workflow.defn
class AskSomebody:
    """Waits for an answer from outside, for two hours."""

    def __init__(self) -> None:
        self._task = Task(recipe=RetryRecipe(max_retries=0))

    @workflow.run
    async def run(self) -> str:
        async for work_item in self._task.attempts("a question"):
            async with work_item:
                work_item.complete(await work_item.outcome(within=timedelta(hours=2)))
        return str(self._task.result())


async def test_the_wait_for_an_outcome_ends_with_its_work_item(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, [AskSomebody], []) as tasks:
        handle = await tasks.start("AskSomebody")
        await until(tasks, handle, {"main": ["started"]})
        await comes_to(handle, "timer_started_event_attributes")
        await end_of(tasks, handle, "complete_work_item", result="an answer")
        assert await handle.result() == "an answer"
        assert hours_canceled(await history(handle)) == [2]


@workflow.defn
class Errand:
    """Runs until it is let go."""

    def __init__(self) -> None:
        self._let_go = False

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: self._let_go)
        return "done"

    @workflow.signal
    def let_go(self) -> None:
        self._let_go = True


@workflow.defn
class SendsOnAnErrand:
    """Its block waits for a child workflow, not for a call of its work item."""

    def __init__(self) -> None:
        self._task = Task(recipe=RetryRecipe(max_retries=0))

    @workflow.run
    async def run(self) -> str:
        async for work_item in self._task.attempts("an errand"):
            async with work_item:
                work_item.complete(await workflow.execute_child_workflow(Errand.run, id=work_item.id))
        return str(self._task.result())


async def test_a_child_workflow_goes_on_when_its_work_item_is_canceled_and_the_task_waits_for_it(
    dev_server: EmbeddedTemporal,
) -> None:
    async with tasks_on(dev_server.address, [SendsOnAnErrand, Errand], []) as tasks:
        handle = await tasks.start("SendsOnAnErrand")
        found = await until(tasks, handle, {"main": ["started"]})
        errand = tasks.client.get_workflow_handle(found["main"][0].id)
        await eventually(lambda: is_running(errand), "the child workflow to run")

        await end_of(tasks, handle, "cancel_work_item")

        await until(tasks, handle, {"main": ["canceled"]})
        assert await is_running(handle)
        await errand.signal(Errand.let_go)
        assert await errand.result() == "done"
        error = await failure_of_task(handle)
    assert error.type == "TaskFailed"


async def is_running(handle: Handle) -> bool:
    try:
        return (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
    except RPCError:
        return False  # not yet there
