"""A query changes nothing: not what a task does next, not what a replay makes of it, not the ledger."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

from temporalio import activity, workflow
from temporalio.api.enums.v1 import EventType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import PollWorkflowTaskQueueRequest
from temporalio.client import Client, WorkflowHandle, WorkflowQueryFailedError
from temporalio.service import RPCError
from temporalio.worker import Replayer

from tasquencer import RetryRecipe, Task, TasquencerPlugin, absorb_failures
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.testing import InMemoryLedger
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.tasks import Tasks, comes_to, tasks_on

COMPLETED, SCHEDULED = (
    EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED,
    EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED,
)
QUICKLY = RetryRecipe(max_retries=3, initial_interval=timedelta(milliseconds=20), backoff_coefficient=1)


@activity.defn
async def sometimes(text: str) -> str:
    """Fails at its first two tries; quick or slow as its text says."""
    number = int(activity.info().activity_id[-2:], 16)
    await asyncio.sleep(0.005 + number % 30 / 1000)
    if number % 3:
        raise RuntimeError("not this time")
    return text


@workflow.defn(sandboxed=False)
class SideBySide:
    """Several lineages at once, as a fan-out or an agent has them."""

    @workflow.run
    async def run(self, lineages: int) -> int:
        task = Task(recipe=QUICKLY, policy=absorb_failures())

        async def carry_out(name: str) -> None:
            async for work_item in task.attempts(name, lineage=name):
                async with work_item:
                    work_item.complete(
                        await work_item.execute_activity(
                            sometimes, name, start_to_close_timeout=timedelta(seconds=30)
                        )
                    )

        await asyncio.gather(*(carry_out(f"lineage-{number}") for number in range(lineages)))
        return lineages


@workflow.defn(sandboxed=False)
class Backoff:
    """One failure, a wait, one success."""

    @workflow.run
    async def run(self, seconds: float, queue: str | None = None) -> str:
        task = Task(recipe=RetryRecipe(max_retries=1, initial_interval=timedelta(seconds=seconds)))
        async for work_item in task.attempts("once"):
            async with work_item:
                work_item.complete(
                    await work_item.execute_activity(
                        "first_fails",
                        work_item.attempt,
                        task_queue=queue,
                        start_to_close_timeout=timedelta(seconds=30),
                    )
                )
        return str(task.result())


@activity.defn
async def first_fails(attempt: int) -> str:
    if attempt == 0:
        raise RuntimeError("the first one fails")
    return "done"


@asynccontextmanager
async def looked_at(handles: list[WorkflowHandle[Any, Any]], pause: float) -> AsyncIterator[None]:
    """Queries of each task, one after the other, for as long as the block takes."""

    async def look(handle: WorkflowHandle[Any, Any]) -> None:
        while True:
            with contextlib.suppress(RPCError, WorkflowQueryFailedError):
                await handle.query("work_items", rpc_timeout=timedelta(seconds=5))
            await asyncio.sleep(pause)

    looks = [asyncio.create_task(look(handle)) for handle in handles]
    try:
        yield
    finally:
        for one in looks:
            one.cancel()
        await asyncio.gather(*looks, return_exceptions=True)


async def results(handles: list[WorkflowHandle[Any, Any]]) -> list[Any]:
    """The tasks' results. Fails with the ids of the tasks that stand still after the deadline."""
    ends = {asyncio.create_task(handle.result()): handle for handle in handles}
    _, pending = await asyncio.wait(ends, timeout=PATIENCE_SECONDS)
    for end in pending:
        end.cancel()
    stuck = [ends[end].id for end in pending]
    assert not stuck, f"waited {PATIENCE_SECONDS:g} s in vain for the end of {', '.join(stuck)}"
    return [await end for end in ends]


async def test_tasks_that_are_looked_at_end_and_replay(dev_server: EmbeddedTemporal) -> None:
    ledger, queue = InMemoryLedger(), f"queue-{uuid4()}"
    client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(ledger)])
    handles: list[WorkflowHandle[Any, Any]] = [
        await client.start_workflow(SideBySide.run, 6, id=f"looked-at-{uuid4()}", task_queue=queue)
        for _ in range(10)
    ]
    async with looked_at(handles, pause=0.1):  # ten queries a second, as documented
        for _ in range(3):  # the worker is replaced while the tasks run
            async with tasks_on(
                dev_server.address, [SideBySide], [sometimes], ledger=ledger, task_queue=queue
            ):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.5):
                        await asyncio.gather(*(handle.result() for handle in handles))
        async with tasks_on(dev_server.address, [SideBySide], [sometimes], ledger=ledger, task_queue=queue):
            assert await results(handles) == [6] * len(handles)
    replayer = Replayer(workflows=[SideBySide], plugins=[TasquencerPlugin(InMemoryLedger())])
    for handle in handles:
        await replayer.replay_workflow(await handle.fetch_history())
        items = await ledger.work_items(WorkItemFilter(task_id=handle.id, limit=1000))
        assert all(item.state.is_terminal for item in items)


class SlowLedger(InMemoryLedger):
    """Takes its time for each write."""

    async def record_and_find_open(self, *given: Any, **named: Any) -> Any:
        await asyncio.sleep(0.03)
        return await super().record_and_find_open(*given, **named)

    async def record(self, *given: Any, **named: Any) -> Any:
        await asyncio.sleep(0.03)
        return await super().record(*given, **named)


async def test_a_query_does_not_end_a_workflow_task_before_its_write(dev_server: EmbeddedTemporal) -> None:
    ends: list[tuple[int, int]] = []
    async with tasks_on(dev_server.address, [SideBySide], [sometimes], ledger=SlowLedger()) as tasks:
        while len(ends) <= 50:  # on a busy machine more events share a workflow task
            handles = [await tasks.start("SideBySide", 3) for _ in range(8)]
            async with looked_at(handles, pause=0.03):
                assert await results(handles) == [3] * len(handles)
            for handle in handles:
                kinds = [event.event_type for event in (await handle.fetch_history()).events]
                ends += [pair for pair in pairwise(kinds) if pair[0] == COMPLETED]
    # A few may still do so, because the SDK has to learn of the write's end. Without the wait it is a third.
    assert ends.count((COMPLETED, SCHEDULED)) <= len(ends) / 20


async def test_a_query_that_waits_for_a_worker_while_a_backoff_ends_starts_nothing_early(
    dev_server: EmbeddedTemporal,
) -> None:
    ledger, queue = InMemoryLedger(), f"queue-{uuid4()}"
    seconds = 3.0
    async with tasks_on(
        dev_server.address, [Backoff], [first_fails], ledger=ledger, task_queue=queue
    ) as tasks:
        handles = [await tasks.start("Backoff", seconds) for _ in range(8)]

        async def all_wait() -> bool:
            items = [await ledger.work_items_of(handle.id) for handle in handles]
            return all(len(found) == 2 for found in items)

        await eventually(all_wait, "a retry of each task")
    looks = [
        asyncio.create_task(handle.query("work_items", rpc_timeout=timedelta(seconds=30)))
        for handle in handles
        for _ in range(3)
    ]
    await asyncio.sleep(seconds + 1)  # the timers fire while no worker is there
    async with tasks_on(
        dev_server.address, [Backoff], [first_fails], ledger=ledger, task_queue=queue
    ) as tasks:
        await asyncio.gather(*looks, return_exceptions=True)
        assert await results(handles) == ["done"] * len(handles)
        for handle in handles:
            _, second = await ledger.work_items_of(handle.id)
            assert second.started_at is not None
            assert second.started_at >= second.not_before


async def test_a_task_that_was_terminated_before_it_decided_on_news_answers_its_query(
    dev_server: EmbeddedTemporal,
) -> None:
    ledger, queue = InMemoryLedger(), f"queue-{uuid4()}"
    may_fail = asyncio.Event()

    @activity.defn(name="first_fails")
    async def fails_late(attempt: int) -> str:
        if attempt:
            return "done"
        await may_fail.wait()
        raise RuntimeError("the first one fails")

    # The call has a worker of its own, so that none that decides is there when it fails.
    async with tasks_on(dev_server.address, [], [fails_late], ledger=ledger, task_queue=f"{queue}-calls"):
        async with tasks_on(dev_server.address, [Backoff], [], ledger=ledger, task_queue=queue) as tasks:
            handle = await tasks.start("Backoff", 1.0, f"{queue}-calls")
            await comes_to(handle, "activity_task_scheduled_event_attributes")
        may_fail.set()
        await comes_to(handle, "activity_task_failed_event_attributes")
    await handle.terminate()
    before = await ledger.work_items_of(handle.id)
    async with tasks_on(dev_server.address, [Backoff], [], ledger=ledger, task_queue=queue):
        for _ in range(2):
            listed = await handle.query("work_items", rpc_timeout=timedelta(seconds=20))
            assert [(row["attempt"], row["state"]) for row in listed] == [(0, "started")]
    assert await ledger.work_items_of(handle.id) == before


@workflow.defn(sandboxed=False)
class Pair:
    """Two lineages, whose activities run on another task queue."""

    @workflow.run
    async def run(self, queue: str) -> str:
        task = Task(recipe=QUICKLY, policy=absorb_failures())

        async def carry_out(name: str) -> None:
            async for work_item in task.attempts(name, lineage=name):
                async with work_item:
                    work_item.complete(
                        await work_item.execute_activity(
                            "once_allowed",
                            f"{name} {work_item.attempt}",
                            task_queue=queue,
                            start_to_close_timeout=timedelta(seconds=60),
                        )
                    )

        await asyncio.gather(carry_out("first"), carry_out("second"))
        return "done"


async def lose_a_workflow_task(client: Client, queue: str) -> None:
    """Take workflow tasks like a worker that dies, until one of them is not for a query only."""
    while True:
        taken = await client.workflow_service.poll_workflow_task_queue(
            PollWorkflowTaskQueueRequest(
                namespace=client.namespace, task_queue=TaskQueue(name=queue), identity="a worker that dies"
            )
        )
        if taken.started_event_id:
            return


async def test_a_query_with_a_workflow_task_that_another_worker_has_lost_leaves_no_decision(
    dev_server: EmbeddedTemporal,
) -> None:
    ledger, queue, calls = InMemoryLedger(), f"queue-{uuid4()}", f"calls-{uuid4()}"
    may_end = {name: asyncio.Event() for name in ("first", "second")}

    @activity.defn
    async def once_allowed(text: str) -> str:
        name, attempt = text.split()
        await may_end[name].wait()
        if attempt == "0":
            raise RuntimeError("the first one fails")
        return name

    def worker() -> AbstractAsyncContextManager[Tasks]:
        return tasks_on(dev_server.address, [Pair], [], ledger=ledger, task_queue=queue)

    async with tasks_on(dev_server.address, [], [once_allowed], ledger=ledger, task_queue=calls):
        async with worker() as tasks:
            handles = [
                await tasks.client.start_workflow(
                    "Pair", calls, id=f"pair-{uuid4()}", task_queue=queue, task_timeout=timedelta(seconds=5)
                )
                for _ in range(4)
            ]
            for handle in handles:
                await comes_to(handle, "activity_task_scheduled_event_attributes")
        looks = [
            asyncio.create_task(handle.query("work_items", rpc_timeout=timedelta(seconds=60)))
            for handle in handles
            for _ in range(6)
        ]
        await asyncio.sleep(1)  # the queries wait for a worker before there is a workflow task
        may_end["first"].set()
        client = await Client.connect(dev_server.address)
        async with asyncio.timeout(PATIENCE_SECONDS):
            for _ in handles:
                await lose_a_workflow_task(client, queue)
        may_end["second"].set()
        async with worker():
            assert await results(handles) == ["done"] * len(handles)
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)
    replayer = Replayer(workflows=[Pair], plugins=[TasquencerPlugin(InMemoryLedger())])
    for handle in handles:
        await replayer.replay_workflow(await handle.fetch_history())
