"""Users' own updates of a task: they come with its start, and their answers outlive lost workflow tasks.

Where a query ends a workflow task before its write to the ledger, a replay gives the answer to an update
earlier than the worker did. The SDK then has nothing to send, if the worker had lost that workflow task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import (
    Client,
    WithStartWorkflowOperation,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError
from temporalio.worker import Replayer

from tasquencer import RetryRecipe, Task, TasquencerPlugin
from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.testing import InMemoryLedger
from tests.support.patience import PATIENCE_SECONDS
from tests.support.tasks import Tasks, comes_to, tasks_on, update_that_waits

ANSWER_SECONDS = 0.4
"""How long the slow query takes: longer than the write that begins with it."""

TASK_TIMEOUT = timedelta(seconds=1)
LOST = set[str]()
"""Runs that have lost the workflow task with their answer."""


def lose_workflow_task() -> None:
    """Let the run's workflow task time out, once."""
    if (run_id := workflow.info().run_id) not in LOST:
        LOST.add(run_id)
        time.sleep(1.5 * TASK_TIMEOUT.total_seconds())


@workflow.defn(sandboxed=False)
class Desk:
    """Answers an update when the attempt that it makes is in the ledger."""

    def __init__(self) -> None:
        self._task = Task(recipe=RetryRecipe(max_retries=0))
        self._answered = False

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: self._answered)
        return "closed"

    @workflow.update
    async def serve(self, queue: str, fails: bool) -> str:
        try:
            async for item in self._task.attempts("once"):
                async with item:
                    timeout = timedelta(minutes=1)
                    item.complete(
                        await item.execute_activity("work", task_queue=queue, start_to_close_timeout=timeout)
                    )
            lose_workflow_task()
            if fails:
                raise ApplicationError("sold out")
            return "served"
        finally:
            self._answered = True

    @workflow.query
    def slowly(self) -> str:
        time.sleep(ANSWER_SECONDS)
        return "here"


@pytest.mark.parametrize("fails", [False, True])
async def test_an_answer_that_follows_a_write_outlives_a_query(
    dev_server: EmbeddedTemporal, fails: bool
) -> None:
    ledger, queue, calls = InMemoryLedger(), f"queue-{uuid4()}", f"calls-{uuid4()}"
    may_end = asyncio.Event()

    @activity.defn
    async def work() -> str:
        await may_end.wait()
        return "done"

    client = await Client.connect(dev_server.address)
    handle: WorkflowHandle[Any, Any] = await client.start_workflow(
        "Desk", id=queue, task_queue=queue, task_timeout=TASK_TIMEOUT
    )
    # It comes with the start: after a workflow task that is lost on a busy machine, it would be refused.
    serving = await update_that_waits(handle, "serve", calls, fails)
    async with tasks_on(dev_server.address, [], [work], ledger=ledger, task_queue=calls):
        async with tasks_on(dev_server.address, [Desk], [], ledger=ledger, task_queue=queue):
            await comes_to(handle, "activity_task_scheduled_event_attributes")
        may_end.set()
        await comes_to(handle, "activity_task_completed_event_attributes")
        look = asyncio.create_task(handle.query("slowly", rpc_timeout=timedelta(minutes=1)))
        await asyncio.sleep(1)
        async with tasks_on(dev_server.address, [Desk], [], ledger=ledger, task_queue=queue):
            assert await look == "here"
            if fails:
                with pytest.raises(WorkflowUpdateFailedError):
                    await serving
            else:
                assert await serving == "served"
            assert await handle.result() == "closed"
    replayer = Replayer(workflows=[Desk], plugins=[TasquencerPlugin(InMemoryLedger())])
    await replayer.replay_workflow(await handle.fetch_history())


@workflow.defn(sandboxed=False)
class Early:
    """Does its work in a handler, which may come before the workflow's own code has begun."""

    def __init__(self) -> None:
        self._served = ""

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: self._served != "")
        return self._served

    @workflow.signal
    async def serve(self, how: str) -> None:
        self._served = await (self._attempt() if how == "attempt" else self._adopted())

    @workflow.update
    async def order(self, how: str) -> str:
        await self.serve(how)
        return self._served

    async def _attempt(self) -> str:
        async for item in (task := Task(recipe=RetryRecipe(max_retries=0))).attempts("once"):
            async with item:
                timeout = timedelta(minutes=1)
                item.complete(await item.execute_activity("serving", start_to_close_timeout=timeout))
        return str(task.result())

    async def _adopted(self) -> str:
        served = await workflow.execute_activity("adopted", start_to_close_timeout=timedelta(minutes=1))
        return str(served)


@activity.defn
async def serving() -> str:
    return "attempt"


@activity.defn
async def adopted() -> str:
    return "adopted"


async def signal_with_start(tasks: Tasks, how: str) -> None:
    queue = tasks.task_queue
    await tasks.client.start_workflow(
        "Early", id=queue, task_queue=queue, start_signal="serve", start_signal_args=[how]
    )


async def update_with_start(tasks: Tasks, how: str) -> None:
    queue = tasks.task_queue
    start = WithStartWorkflowOperation[Any, Any](
        "Early", id=queue, task_queue=queue, id_conflict_policy=WorkflowIDConflictPolicy.FAIL
    )
    answer = tasks.client.execute_update_with_start_workflow("order", how, start_workflow_operation=start)
    assert await asyncio.wait_for(answer, PATIENCE_SECONDS) == how


@pytest.mark.parametrize("how", ["attempt", "adopted"])
@pytest.mark.parametrize("begin", [signal_with_start, update_with_start])
async def test_a_handler_that_comes_with_the_start_has_its_work_items(
    dev_server: EmbeddedTemporal, begin: Callable[[Tasks, str], Awaitable[None]], how: str
) -> None:
    adopting = ["adopted"]
    async with tasks_on(dev_server.address, [Early], [serving, adopted], adopt_activities=adopting) as tasks:
        await begin(tasks, how)
        handle = tasks.client.get_workflow_handle(tasks.task_queue)
        assert await asyncio.wait_for(handle.result(), PATIENCE_SECONDS) == how
        (item,) = await tasks.ledger.work_items_of(handle.id)
        assert item.state is WorkItemState.COMPLETED
        plugins = [TasquencerPlugin(InMemoryLedger(), adopt_activities=adopting)]
        await Replayer(workflows=[Early], plugins=plugins).replay_workflow(await handle.fetch_history())


async def reset(client: Client, handle: WorkflowHandle[Any, Any]) -> None:
    """Reset the workflow to its first workflow task, with the updates that came later."""
    end = next(
        event.event_id
        for event in (await handle.fetch_history()).events
        if event.HasField("workflow_task_completed_event_attributes")
    )
    await client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=handle.id),
            workflow_task_finish_event_id=end,
            request_id=str(uuid4()),
        )
    )


async def test_a_handler_that_comes_with_the_start_after_a_reset_has_its_work_item(
    dev_server: EmbeddedTemporal,
) -> None:
    ledger, queue = InMemoryLedger(), f"queue-{uuid4()}"
    async with tasks_on(dev_server.address, [Early], [serving], ledger=ledger, task_queue=queue) as tasks:
        client = tasks.client
        first = await client.start_workflow("Early", id=queue, task_queue=queue)
        await comes_to(first, "workflow_task_completed_event_attributes")
    await reset(client, first)
    again = client.get_workflow_handle(queue)
    ordering = await update_that_waits(again, "order", "attempt")
    async with tasks_on(dev_server.address, [Early], [serving], ledger=ledger, task_queue=queue):
        assert await asyncio.wait_for(ordering, PATIENCE_SECONDS) == "attempt"
    (item,) = await ledger.work_items_of(queue)
    assert item.state is WorkItemState.COMPLETED


@pytest.mark.parametrize("how", ["attempt", "adopted"])
async def test_an_update_that_a_reset_brings_again_makes_a_request_of_its_own(
    dev_server: EmbeddedTemporal, how: str
) -> None:
    adopting = ["adopted"]
    async with tasks_on(dev_server.address, [Early], [serving, adopted], adopt_activities=adopting) as tasks:
        await update_with_start(tasks, how)
        first = tasks.client.get_workflow_handle(tasks.task_queue)
        assert await first.result() == how
        await reset(tasks.client, first)
        again = tasks.client.get_workflow_handle(tasks.task_queue)
        assert await asyncio.wait_for(again.result(), PATIENCE_SECONDS) == how
        items = await tasks.ledger.work_items_of(first.id)
    assert len({item.id for item in items}) == 2
    assert {item.state for item in items} == {WorkItemState.COMPLETED}
