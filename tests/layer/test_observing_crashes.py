"""What becomes of observed attempts whose worker is killed, or whose workflow is reset or ends first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.worker import Worker

from tasquencer import Task
from tasquencer.core.observed import is_observed
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import Ledger
from tasquencer.sql import SqlLedger
from tasquencer.temporal import TasquencerPlugin
from tasquencer.temporal.reconciling import Reconciler
from tests.layer.applications import working
from tests.layer.observed import Scripted, Works
from tests.layer.observing_worker import observing_worker
from tests.support.patience import eventually

TIMEOUTS = [
    ({"heartbeat": 6, "limit": 60}, "worker_lost"),
    ({"limit": 6}, "timed_out"),
]
"""They hold for every attempt, also for the one that is to end well."""


@dataclass(frozen=True)
class Killed:
    """A ledger in a file, and workers in processes."""

    server: EmbeddedTemporal
    client: Client
    ledger: SqlLedger
    database: str
    queue: str

    async def worker(self, *, hangs: bool = False) -> asyncio.subprocess.Process:
        return await observing_worker(self.server.address, self.queue, self.database, hangs=hangs)

    async def rows(self, task_id: str, *states: str) -> list[WorkItem]:
        async def probe() -> bool:
            return [row.state.value for row in await self.ledger.work_items_of(task_id)] == list(states)

        await eventually(probe, f"work items {states}")
        return await self.ledger.work_items_of(task_id)

    async def reconcile(self) -> None:
        await Reconciler(self.client, self.ledger, grace=timedelta(0)).page()


@pytest.fixture
async def killed(dev_server: EmbeddedTemporal, tmp_path: Path) -> AsyncIterator[Killed]:
    database = f"sqlite:///{tmp_path / 'ledger.db'}"
    async with SqlLedger(database) as ledger:
        client = await Client.connect(dev_server.address)
        yield Killed(dev_server, client, ledger, database, f"killed-{uuid4()}")


@asynccontextmanager
async def ended(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.crash
@pytest.mark.parametrize(("limits", "kind"), TIMEOUTS, ids=["heartbeat", "start to close"])
async def test_the_next_attempt_settles_that_of_a_killed_worker(
    killed: Killed, limits: dict[str, int], kind: str
) -> None:
    async with ended(await killed.worker(hangs=True)) as _:
        handle = await killed.client.start_workflow(
            "Works", args=["work", 1, limits], id=f"works-{uuid4()}", task_queue=killed.queue
        )
        await killed.rows(handle.id, "started")
    async with ended(await killed.worker()):
        assert await handle.result() == 2
        first, second = await killed.rows(handle.id, "failed", "completed")
    assert first.failure is not None and first.failure.kind == kind and first.failure.outcome_unknown
    assert first.worker != second.worker and first.lineage == second.lineage
    assert first.ended_at is not None and first.ended_at <= second.created_at


@pytest.mark.crash
async def test_an_attempt_without_a_work_item_leaves_none_before_it_open(killed: Killed) -> None:
    async with ended(await killed.worker(hangs=True)):
        handle = await killed.client.start_workflow(
            "Works",
            args=["work", 1, {"heartbeat": 6, "limit": 60}],
            id=f"works-{uuid4()}",
            task_queue=killed.queue,
        )
        await killed.rows(handle.id, "started")
    unseen = Scripted(*["hang"] * 9)  # while it stops, its worker may take one more attempt
    async with Worker(killed.client, task_queue=killed.queue, activities=[unseen.work]):
        await unseen.started.wait()
    async with ended(await killed.worker()):
        assert await handle.result() == 2
        first, last = await killed.rows(handle.id, "failed", "completed")
    assert unseen.attempts[0] == 2
    assert (first.attempt, last.attempt, first.lineage) == (0, unseen.attempts[-1], last.lineage)
    assert first.failure is not None and first.failure.kind == "worker_lost" and first.failure.outcome_unknown
    assert first.ended_at is not None and first.ended_at <= last.created_at


@pytest.mark.crash
@pytest.mark.parametrize(("limits", "kind"), TIMEOUTS, ids=["heartbeat", "start to close"])
@pytest.mark.parametrize("standalone", [False, True], ids=["in a workflow", "standalone"])
async def test_the_reconciler_settles_the_last_attempt_of_a_killed_worker(
    killed: Killed, limits: dict[str, int], kind: str, standalone: bool
) -> None:
    name = f"works-{uuid4()}"
    async with ended(await killed.worker(hangs=True)):
        if standalone:
            heartbeat = limits.get("heartbeat")
            waiting: Any = await killed.client.start_activity(
                "work",
                1,
                id=name,
                task_queue=killed.queue,
                start_to_close_timeout=timedelta(seconds=limits["limit"]),
                heartbeat_timeout=timedelta(seconds=heartbeat) if heartbeat else None,
                retry_policy=RetryPolicy(maximum_attempts=1),
            )
            task_id = f"activity:{name}"
        else:
            waiting = await killed.client.start_workflow(
                "Works", args=["work", 1, limits | {"attempts": 1}], id=name, task_queue=killed.queue
            )
            task_id = name
        await killed.rows(task_id, "started")
        await killed.reconcile()
        await killed.rows(task_id, "started")  # it is under way
    async with ended(await killed.worker()):
        with pytest.raises(Exception, match=r"failed|timed out|timeout"):
            await waiting.result()
        await killed.reconcile()
        (row,) = await killed.rows(task_id, "failed")
    assert row.failure is not None and row.failure.kind == kind


@asynccontextmanager
async def observed(
    server: EmbeddedTemporal, ledger: Ledger, scripted: Scripted, *workflows: type
) -> AsyncIterator[tuple[Client, str]]:
    plugin = TasquencerPlugin(ledger, observe_activities=["*"])
    client = await Client.connect(server.address, plugins=[plugin])
    async with working(client, [scripted.work], workflows=[Works, *workflows]) as queue:
        yield client, queue


async def test_after_a_reset_the_new_run_has_work_items_of_its_own(killed: Killed) -> None:
    scripted = Scripted("return", "hang")
    async with observed(killed.server, killed.ledger, scripted) as (client, queue):
        limits = {"times": 2, "heartbeat": 30}
        handle = await client.start_workflow(
            Works.run, args=["work", 1, limits], id=f"works-{uuid4()}", task_queue=queue
        )
        before = await killed.rows(handle.id, "completed", "started")
        await eventually(scripted.is_over, "the second activity to hang")
        history = await handle.fetch_history()
        first_task = next(
            event.event_id
            for event in history.events
            if event.HasField("workflow_task_completed_event_attributes")
        )
        await client.workflow_service.reset_workflow_execution(
            ResetWorkflowExecutionRequest(
                namespace=client.namespace,
                workflow_execution=WorkflowExecution(workflow_id=handle.id),
                reason="once more",
                workflow_task_finish_event_id=first_task,
                request_id=str(uuid4()),
            )
        )
        await client.get_workflow_handle(handle.id).result()

        async def has_ended() -> bool:
            await killed.reconcile()
            return all(row.state.is_terminal for row in await killed.ledger.work_items_of(handle.id))

        await eventually(has_ended, "no open work item")
        rows = await killed.ledger.work_items_of(handle.id)
    old, new = [[row for row in rows if (row.run_id == before[0].run_id) is own] for own in (True, False)]
    assert [row.state.value for row in old] == ["completed", "canceled"]
    assert [row.state.value for row in new] == ["completed", "completed"]
    assert len({row.id for row in rows}) == 4


@workflow.defn
class Leaves:
    """A task that ends while an activity of its own is under way."""

    def __init__(self) -> None:
        self._task = Task()
        self._may_end = False

    @workflow.run
    async def run(self) -> None:
        workflow.start_activity("work", 1, start_to_close_timeout=timedelta(seconds=60))
        async for work_item in self._task.attempts({"wait": True}):
            async with work_item:
                await workflow.wait_condition(lambda: self._may_end)
                work_item.complete("done")

    @workflow.signal
    def end(self) -> None:
        self._may_end = True


async def test_a_task_that_ends_does_not_settle_what_its_worker_still_carries_out(killed: Killed) -> None:
    held = asyncio.Event()

    class Held(Scripted):
        @activity.defn(name="work")
        async def work(self, value: Any) -> Any:
            while not held.is_set():  # also if the server pushes a cancel when the workflow ends
                with contextlib.suppress(asyncio.CancelledError):
                    await held.wait()
            return value

    async with observed(killed.server, killed.ledger, Held(), Leaves) as (client, queue):
        handle = await client.start_workflow("Leaves", id=f"leaves-{uuid4()}", task_queue=queue)
        await killed.rows(handle.id, "started", "started")
        await handle.signal("end")
        try:
            await handle.result()
            rows = await killed.ledger.work_items_of(handle.id)
            assert {row.state for row in rows if is_observed(row.id)} == {WorkItemState.STARTED}
        finally:
            held.set()
        rows = await killed.rows(handle.id, "completed", "completed")
        (observed_row,) = [row for row in rows if is_observed(row.id)]
        assert (await killed.ledger.transitions(observed_row.id))[-1].actor == "temporal"
