"""Queries that reach a new worker before the workflow task does, after a workflow task without news.

A workflow task that also carries a query ends before its write to the ledger does. The result of the write
comes with the next workflow task. A replay delivers it with the first one, and nothing with the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, FailureError
from temporalio.worker import Replayer

from tasquencer import RetryRecipe, Task, TasquencerPlugin
from tasquencer.core.actions import TRY_AGAIN
from tasquencer.core.entries import LedgerEntry
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.testing import InMemoryLedger
from tests.support.held_ledgers import HeldLedger
from tests.support.patience import PATIENCE_SECONDS
from tests.support.tasks import Tasks, comes_to, tasks_on, update_that_waits

BACKOFF = timedelta(seconds=5)
ANSWER_SECONDS = 0.4
"""How long the slow query takes: longer than the write that begins with it."""


@workflow.defn(sandboxed=False)
class SlowToAnswer:
    """One failure, a backoff, one success. Its query takes a while."""

    @workflow.run
    async def run(self, queue: str) -> str:
        task = Task(recipe=RetryRecipe(max_retries=1, initial_interval=BACKOFF))
        async for work_item in task.attempts("once"):
            async with work_item:
                work_item.complete(
                    await work_item.execute_activity(
                        "first_fails",
                        work_item.attempt,
                        task_queue=queue,
                        start_to_close_timeout=timedelta(seconds=60),
                    )
                )
        return str(task.result())

    @workflow.query
    def slowly(self) -> str:
        time.sleep(ANSWER_SECONDS)
        return "here"


async def test_a_query_after_a_workflow_task_that_delivers_nothing_starts_nothing_early(
    dev_server: EmbeddedTemporal,
) -> None:
    ledger, queue, calls = InMemoryLedger(), f"queue-{uuid4()}", f"calls-{uuid4()}"
    may_fail = asyncio.Event()

    @activity.defn
    async def first_fails(attempt: int) -> str:
        if attempt == 0:
            await may_fail.wait()
            raise RuntimeError("the first one fails")
        return "done"

    def worker() -> AbstractAsyncContextManager[Tasks]:
        return tasks_on(dev_server.address, [SlowToAnswer], [], ledger=ledger, task_queue=queue)

    async with tasks_on(dev_server.address, [], [first_fails], ledger=ledger, task_queue=calls):
        async with worker() as tasks:
            handles = [await tasks.start("SlowToAnswer", calls) for _ in range(4)]
            for handle in handles:
                await comes_to(handle, "activity_task_scheduled_event_attributes")
        may_fail.set()
        for handle in handles:
            await comes_to(handle, "activity_task_failed_event_attributes")
        answers = [
            asyncio.create_task(handle.query("slowly", rpc_timeout=timedelta(seconds=60)))
            for handle in handles
        ]
        await asyncio.sleep(1)
        async with worker():
            assert await asyncio.gather(*answers) == ["here"] * len(handles)
            for handle in handles:
                await comes_to(handle, "timer_started_event_attributes")
        looks = [
            asyncio.create_task(handle.query("work_items", rpc_timeout=timedelta(seconds=60)))
            for handle in handles
            for _ in range(3)
        ]
        for handle in handles:
            await comes_to(handle, "timer_fired_event_attributes")
        async with worker():
            await asyncio.gather(*looks, return_exceptions=True)
            assert await asyncio.gather(*(handle.result() for handle in handles)) == ["done"] * len(handles)
    for handle in handles:
        _, second = await ledger.work_items_of(handle.id)
        assert second.started_at is not None
        assert second.started_at >= second.not_before


@workflow.defn(sandboxed=False)
class Child:
    """Does nothing for a long time."""

    @workflow.run
    async def run(self) -> None:
        await workflow.sleep(3600)


@workflow.defn(sandboxed=False)
class Cuts:
    """Cancels what it has just started, when a local activity ends."""

    def __init__(self) -> None:
        self._task = Task()

    @workflow.run
    async def run(self, what: str) -> str:
        started: asyncio.Task[Any]
        seconds = timedelta(seconds=20)
        match what:
            case "timer":
                started = asyncio.create_task(workflow.sleep(3600))
            case "activity":
                started = workflow.start_activity(endless, schedule_to_close_timeout=seconds)
            case _:
                child = workflow.execute_child_workflow(Child.run, id=f"{workflow.info().workflow_id}/child")
                started = asyncio.create_task(child)
        await workflow.execute_local_activity("note", start_to_close_timeout=seconds)
        started.cancel()
        with contextlib.suppress(asyncio.CancelledError, FailureError):
            await started
        return "done"

    @workflow.query
    def slowly(self) -> str:
        time.sleep(ANSWER_SECONDS)
        return "here"


@activity.defn
async def note() -> None:
    await asyncio.sleep(ANSWER_SECONDS / 2)


@activity.defn
async def endless() -> None:
    while True:
        activity.heartbeat()
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("what", ["timer", "activity", "child"])
async def test_a_cancel_of_what_has_just_begun_replays(
    dev_server: EmbeddedTemporal, what: str, looks: bool
) -> None:
    queue = f"queue-{uuid4()}"
    client = await Client.connect(dev_server.address)
    handle: WorkflowHandle[Any, Any] = await client.start_workflow("Cuts", what, id=queue, task_queue=queue)
    look = asyncio.create_task(handle.query("slowly", rpc_timeout=timedelta(seconds=60))) if looks else None
    await asyncio.sleep(0.3 if looks else 0)
    async with tasks_on(dev_server.address, [Cuts, Child], [note, endless], task_queue=queue):
        if look is not None:
            assert await look == "here"
        assert await asyncio.wait_for(handle.result(), PATIENCE_SECONDS) == "done"
    replayer = Replayer(workflows=[Cuts, Child], plugins=[TasquencerPlugin(InMemoryLedger())])
    await replayer.replay_workflow(await handle.fetch_history())


async def hold_the_first_write(address: str, queue: str) -> None:
    """Work, and say so when the first write of a task is under way. It never ends."""

    async def wanted(entries: Sequence[LedgerEntry]) -> bool:
        return True

    ledger = HeldLedger(wanted, committed=False)
    async with tasks_on(address, [SlowToAnswer], [], ledger=ledger, task_queue=queue):
        await ledger.gate.wait_until_reached()
        os.write(1, b"held\n")
        await asyncio.Event().wait()


async def test_an_update_after_a_lost_workflow_task_without_commands_leaves_a_history_that_replays(
    dev_server: EmbeddedTemporal,
) -> None:
    queue = f"queue-{uuid4()}"

    @activity.defn
    async def first_fails(attempt: int) -> str:
        return "done"

    client = await Client.connect(dev_server.address)
    handle: WorkflowHandle[Any, Any] = await client.start_workflow(
        "SlowToAnswer", queue, id=queue, task_queue=queue, task_timeout=timedelta(seconds=1)
    )
    look = asyncio.create_task(handle.query("slowly", rpc_timeout=timedelta(seconds=60)))
    mortal = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, dev_server.address, queue, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await look == "here"  # and so ends the first workflow task, before its write
            assert mortal.stdout is not None
            assert await mortal.stdout.readline() == b"held\n"
    finally:
        mortal.kill()
        await mortal.wait()
    pausing = await update_that_waits(handle, "pause_task", {"actor": "anna"})
    await comes_to(handle, "workflow_task_timed_out_event_attributes")
    async with tasks_on(dev_server.address, [SlowToAnswer], [first_fails], task_queue=queue):
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await pausing
        assert isinstance(refused.value.cause, ApplicationError)
        assert refused.value.cause.type == TRY_AGAIN
        assert await handle.result() == "done"
    replayer = Replayer(workflows=[SlowToAnswer], plugins=[TasquencerPlugin(InMemoryLedger())])
    await replayer.replay_workflow(await handle.fetch_history())


if __name__ == "__main__":
    asyncio.run(hold_the_first_write(*sys.argv[1:]))
