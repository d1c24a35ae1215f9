"""Tasks that had no chance to settle their work items, and the reconciler that settles those."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio import workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest, ResetWorkflowExecutionRequest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from tasquencer import RetryRecipe, WorkItem, WorkItemState
from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import LedgerUnavailable
from tasquencer.core.work_item import Transition
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.ledger.contract import OpenWorkItem, Place
from tasquencer.ledger.reconciliation import Cause
from tasquencer.temporal import Task
from tasquencer.temporal.reconciling import RECONCILER, Reconciler, Reconciliation
from tasquencer.testing import InMemoryLedger
from tests.support.calls import GONE, Hang, ScriptedCalls
from tests.support.patience import eventually
from tests.support.tasks import Tasks, failure_of_task, history, tasks_on
from workflows.ai_agent import AiAgentTask
from workflows.reconcile_ledger import ReconcileLedger

Handle = WorkflowHandle[Any, Any]

INITIALIZED, STARTED, CANCELED = WorkItemState.INITIALIZED, WorkItemState.STARTED, WorkItemState.CANCELED
ASK = {"prompt": "?", "heartbeat_timeout_seconds": 60}
LONG_BACKOFF = {"prompt": "?", "retry": {"initial_interval_seconds": 3600}}
NO_GRACE = timedelta(0)


# Outside the sandbox, which compiles this module once more for each run. Python 3.11 sometimes fails at that
# while another thread compiles.
@workflow.defn(sandboxed=False)
class WaitForSomebody:
    """Nothing in it ends before Temporal's own timeouts do."""

    @workflow.run
    async def run(self) -> Any:
        task = Task(recipe=RetryRecipe(max_retries=0))
        async for work_item in task.attempts("well?"):
            async with work_item:
                work_item.complete(await work_item.outcome())
        return task.result()


@asynccontextmanager
async def scene(server: str, *script: Any, ledger: InMemoryLedger | None = None) -> AsyncIterator[Tasks]:
    calls = ScriptedCalls(*script)
    workflows = [AiAgentTask, WaitForSomebody, ReconcileLedger]
    async with tasks_on(server, workflows, [calls.generate], ledger=ledger) as tasks:
        yield tasks


async def in_state(tasks: Tasks, handle: Handle, state: WorkItemState) -> WorkItem:
    """The task's last work item, once it is in this state."""

    async def probe() -> WorkItem | None:
        items = await tasks.work_items(handle)
        return items[-1] if items and items[-1].state is state else None

    return await eventually(probe, f"a work item that is {state}")


async def reconcile(tasks: Tasks, **request: object) -> Reconciliation:
    """Run the workflow, without a period of grace."""
    return await tasks.client.execute_workflow(
        "ReconcileLedger",
        {"grace_seconds": 0, **request},
        id=f"reconcile-{uuid4()}",
        task_queue=tasks.task_queue,
        result_type=Reconciliation,
    )


async def decided(tasks: Tasks) -> Reconciliation:
    """Reconcile until all is decided: a run that a reset made may be too busy to answer at once."""

    async def probe() -> Reconciliation | None:
        found = await reconcile(tasks)
        return None if found.undecided else found

    return await eventually(probe, "all to be decided")


def settled(**causes: int) -> Reconciliation:
    """What came of it where nothing but this was open."""
    counts = {Cause(name): count for name, count in causes.items()}
    return Reconciliation(open_work_items=sum(causes.values()), settled=counts)


async def the_end_of(tasks: Tasks, item: WorkItem) -> Transition:
    return (await tasks.ledger.transitions(item.id))[-1]


async def was_settled(tasks: Tasks, handle: Handle, previous: WorkItemState, reason: str) -> None:
    """The task's last work item was, and so was its AI job if it has one."""
    item = (await tasks.work_items(handle))[-1]
    step = await the_end_of(tasks, item)
    assert (step.previous_state, step.next_state) == (previous, CANCELED)
    assert (step.actor, step.reason) == (RECONCILER, reason)
    assert (item.state, item.ended_at) == (CANCELED, step.at)
    for job in (await tasks.ledger.domain_records("ai_jobs", [item.id])).values():
        assert job["status"] == "canceled"


async def reset(tasks: Tasks, handle: Handle, run_id: str, after: str) -> Handle:
    """Reset the task to the workflow task after the first event with these attributes; the new run."""
    run = tasks.client.get_workflow_handle(handle.id, run_id=run_id)

    async def point() -> int | None:
        events = iter(await history(run))
        found = any(event.WhichOneof("attributes") == after for event in events)
        ends = (
            event.event_id for event in events if event.HasField("workflow_task_completed_event_attributes")
        )
        return next(ends, None) if found else None

    finished = await eventually(point, f"a workflow task after {after}")
    made = await tasks.client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace="default",
            workflow_execution=WorkflowExecution(workflow_id=handle.id, run_id=run_id),
            reason="a test",
            workflow_task_finish_event_id=finished,
            request_id=str(uuid4()),
        )
    )
    return tasks.client.get_workflow_handle(handle.id, run_id=made.run_id)


# Each cause


async def test_a_task_that_was_terminated_in_a_call_is_settled_with_the_reason(
    dev_server: EmbeddedTemporal,
) -> None:
    async with scene(dev_server.address, Hang()) as tasks:
        handle = await tasks.start("AiAgentTask", ASK)
        await in_state(tasks, handle, STARTED)
        await handle.terminate(reason="the wrong\ncustomer")
        assert await reconcile(tasks) == settled(terminated=1)
        await was_settled(tasks, handle, STARTED, "the task was terminated: the wrong customer")


async def test_a_task_that_was_terminated_in_the_backoff_is_settled(dev_server: EmbeddedTemporal) -> None:
    async with scene(dev_server.address, GONE) as tasks:
        handle = await tasks.start("AiAgentTask", LONG_BACKOFF)
        await in_state(tasks, handle, INITIALIZED)
        before = (await tasks.work_items(handle))[0]
        await handle.terminate(reason="enough")
        assert await reconcile(tasks) == settled(terminated=1)
        await was_settled(tasks, handle, INITIALIZED, "the task was terminated: enough")
        assert (await tasks.work_items(handle))[0] == before


async def test_a_task_that_ran_into_temporal_s_timeout_is_settled(dev_server: EmbeddedTemporal) -> None:
    async with scene(dev_server.address) as tasks:
        handle = await tasks.client.start_workflow(
            "WaitForSomebody",
            id=f"times-out-{uuid4()}",
            task_queue=tasks.task_queue,
            run_timeout=timedelta(seconds=8),
        )
        await in_state(tasks, handle, STARTED)
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        assert await reconcile(tasks) == settled(timed_out=1)
        await was_settled(tasks, handle, STARTED, "the task ran into Temporal's timeout")


async def test_a_task_that_was_deleted_is_settled(dev_server: EmbeddedTemporal) -> None:
    async with scene(dev_server.address, Hang()) as tasks:
        handle = await tasks.start("AiAgentTask", ASK)
        await in_state(tasks, handle, STARTED)
        await tasks.client.workflow_service.delete_workflow_execution(
            DeleteWorkflowExecutionRequest(
                namespace="default", workflow_execution=WorkflowExecution(workflow_id=handle.id)
            )
        )

        async def is_gone() -> bool:
            try:
                await handle.describe()
            except RPCError as error:
                return error.status is RPCStatusCode.NOT_FOUND
            return False

        await eventually(is_gone, "the task to be deleted")
        # It may be another namespace's, until it is as old as retention.
        assert await reconcile(tasks) == Reconciliation(open_work_items=1, undecided=1)
        assert await reconcile(tasks, forgotten_after_seconds=0) == settled(unknown=1)
        await was_settled(tasks, handle, STARTED, "Temporal no longer has this task")


async def test_what_a_lost_worker_wrote_and_the_task_never_knew_of_is_settled(
    dev_server: EmbeddedTemporal,
) -> None:
    async with scene(dev_server.address) as tasks:
        _, handle = await tasks.run("AiAgentTask", ASK)
        (known,) = await tasks.work_items(handle)
        lost = known.model_copy(
            update={"id": str(uuid4()), "lineage": "lost", "state": INITIALIZED, "result": None}
            | {"started_at": None, "ended_at": None, "worker": None}
        )
        step = Transition(
            work_item_id=lost.id,
            sequence=0,
            previous_state=None,
            next_state=INITIALIZED,
            at=lost.created_at,
            actor="task",
        )
        await tasks.ledger.record([LedgerEntry(transition=step, work_item=lost)])
        assert await reconcile(tasks) == settled(ended=1)
        assert (await the_end_of(tasks, lost)).reason == "the task ended without it"
        assert known in await tasks.work_items(handle)


async def test_what_a_reset_has_left_behind_is_settled_once_the_new_run_has_replaced_it(
    dev_server: EmbeddedTemporal,
) -> None:
    async with scene(dev_server.address, GONE, Hang()) as tasks:
        handle = await tasks.start("AiAgentTask", LONG_BACKOFF)
        old, again = await reset_in_the_backoff(tasks, handle)
        assert await decided(tasks) == Reconciliation(open_work_items=1)
        assert (await tasks.work_items(handle))[-1] == old

        await again.execute_update("retry_now", {"actor": "anna"})
        fresh = await in_state(tasks, handle, STARTED)
        assert await decided(tasks) == Reconciliation(open_work_items=2, settled={Cause.RESET: 1})
        step = await the_end_of(tasks, old)
        assert (step.next_state, step.reason) == (CANCELED, "a reset left this attempt behind")
        assert (await in_state(tasks, handle, STARTED)).id == fresh.id
        await again.terminate()


async def reset_in_the_backoff(tasks: Tasks, handle: Handle) -> tuple[WorkItem, Handle]:
    """The work item that waits, and the new run: it sleeps the same backoff, and lists it for so long."""
    old = await in_state(tasks, handle, INITIALIZED)
    await handle.signal("nothing")  # for a later point to reset to
    again = await reset(tasks, handle, old.run_id, "workflow_execution_signaled_event_attributes")
    await eventually(lambda: lists(again, old.id), "the new run to list the old work item")
    return old, again


async def lists(run: Handle, work_item_id: str) -> bool:
    return any(row["id"] == work_item_id for row in await run.query("work_items"))


async def test_what_a_reset_to_the_begin_has_left_behind_is_settled_while_the_new_run_goes_on(
    dev_server: EmbeddedTemporal,
) -> None:
    async with scene(dev_server.address, Hang(), Hang()) as tasks:
        handle = await tasks.start("AiAgentTask", ASK)
        old = await in_state(tasks, handle, STARTED)
        again = await reset(tasks, handle, old.run_id, "workflow_execution_started_event_attributes")

        async def a_new_one() -> bool:
            return any(item.run_id == again.run_id for item in await tasks.work_items(handle))

        await eventually(a_new_one, "the new run to begin")
        assert (await decided(tasks)).settled == {Cause.RESET: 1}
        assert (await the_end_of(tasks, old)).reason == "a reset left this attempt behind"
        (fresh,) = [item for item in await tasks.work_items(handle) if item.run_id == again.run_id]
        assert not fresh.state.is_terminal
        await again.terminate()


async def test_after_a_reset_nothing_is_decided_while_no_worker_answers(
    dev_server: EmbeddedTemporal,
) -> None:
    async with scene(dev_server.address, GONE, Hang()) as tasks:
        handle = await tasks.start("AiAgentTask", LONG_BACKOFF)
        old, again = await reset_in_the_backoff(tasks, handle)
    page, done = await Reconciler(tasks.client, tasks.ledger, grace=NO_GRACE).page()
    assert (page.found, done) == (Reconciliation(open_work_items=1, undecided=1), [])
    assert (await tasks.work_items(handle))[-1] == old
    await again.terminate()


@pytest.mark.usefixtures("no_write_is_slow")  # a new run is due after the second attempt, whose wait is long
async def test_a_chain_of_runs_is_left_alone_until_it_ends(dev_server: EmbeddedTemporal) -> None:
    often = {"limit.historyCount.suggestContinueAsNew": 20}
    async with (
        embedded_temporal(ui=False, dynamic_config=often) as server,
        scene(server.address, *[GONE] * 20) as tasks,
    ):
        retry = {"initial_interval_seconds": 0.05, "backoff_coefficient": 1000}
        handle = await tasks.start("AiAgentTask", {"prompt": "?", "max_retries": 20, "retry": retry})
        chain = tasks.client.get_workflow_handle(handle.id)

        async def carried() -> WorkItem | None:
            items, latest = await tasks.work_items(handle), await chain.describe()
            last = items[-1] if items else None
            return last if last and last.state is INITIALIZED and last.run_id != latest.run_id else None

        last = await eventually(carried, "a work item to be carried into a new run")
        assert await reconcile(tasks) == Reconciliation(open_work_items=1)
        await chain.terminate(reason="enough")
        assert await reconcile(tasks) == settled(terminated=1)
        assert (await the_end_of(tasks, last)).reason == "the task was terminated: enough"


# What it leaves alone


async def test_tasks_under_way_are_left_alone(dev_server: EmbeddedTemporal) -> None:
    async with scene(dev_server.address, GONE, Hang()) as tasks:
        waiting = await tasks.start("AiAgentTask", LONG_BACKOFF)
        before = [await in_state(tasks, waiting, INITIALIZED)]
        calling = await tasks.start("AiAgentTask", ASK)
        before.append(await in_state(tasks, calling, STARTED))
        assert await reconcile(tasks) == Reconciliation(open_work_items=2)
        assert [(await tasks.work_items(handle))[-1] for handle in (waiting, calling)] == before
        await waiting.terminate()
        await calling.terminate()


async def test_nothing_is_touched_within_the_period_of_grace(dev_server: EmbeddedTemporal) -> None:
    async with scene(dev_server.address, Hang()) as tasks:
        handle = await tasks.start("AiAgentTask", ASK)
        item = await in_state(tasks, handle, STARTED)
        await handle.terminate()
        assert (await reconcile(tasks, grace_seconds=60)).settled == {}
        assert await tasks.work_items(handle) == [item]


async def test_a_dry_run_tells_and_changes_nothing(dev_server: EmbeddedTemporal) -> None:
    async with scene(dev_server.address, Hang()) as tasks:
        handle = await tasks.start("AiAgentTask", ASK)
        item = await in_state(tasks, handle, STARTED)
        await handle.terminate(reason="enough")
        page, would = await Reconciler(tasks.client, tasks.ledger, grace=NO_GRACE, dry_run=True).page()
        assert page.found == settled(terminated=1)
        assert [(one.work_item_id, one.reason) for one in would] == [
            (item.id, "the task was terminated: enough")
        ]
        assert await tasks.work_items(handle) == [item]


async def test_a_namespace_that_does_not_exist_is_no_proof_of_anything(dev_server: EmbeddedTemporal) -> None:
    async with scene(dev_server.address, Hang()) as tasks:
        handle = await tasks.start("AiAgentTask", ASK)
        item = await in_state(tasks, handle, STARTED)
        elsewhere = await Client.connect(dev_server.address, namespace="nowhere")
        with pytest.raises(RPCError, match="Namespace nowhere is not found"):
            await Reconciler(elsewhere, tasks.ledger, grace=NO_GRACE).page()
        assert await tasks.work_items(handle) == [item]
        await handle.terminate()


async def test_beside_tasks_under_way_it_never_settles_anything(dev_server: EmbeddedTemporal) -> None:
    async with scene(dev_server.address, *[GONE] * 20) as tasks:
        request = {"prompt": "?", "max_retries": 20, "retry": {"initial_interval_seconds": 0}}
        handles = [await tasks.start("AiAgentTask", request) for _ in range(20)]
        ending = asyncio.gather(*(handle.result() for handle in handles))
        looked_at = 0
        while not ending.done():
            page, done = await Reconciler(tasks.client, tasks.ledger, grace=NO_GRACE).page()
            looked_at += page.found.open_work_items
            assert done == []
            await asyncio.sleep(0)
        assert all(result["text"] == "42" for result in await ending)
        assert looked_at > 0


# Again, side by side, and on


async def test_run_twice_at_a_time_it_settles_once(dev_server: EmbeddedTemporal) -> None:
    async with scene(dev_server.address, *[GONE] * 12) as tasks:
        handles = [await tasks.start("AiAgentTask", LONG_BACKOFF) for _ in range(12)]
        for handle in handles:
            await in_state(tasks, handle, INITIALIZED)
            await handle.terminate()
        found = await asyncio.gather(*(reconcile(tasks, page_size=5) for _ in range(3)))
        assert sum(one.settled.get(Cause.TERMINATED, 0) for one in found) == 12
        for handle in handles:
            item = (await tasks.work_items(handle))[-1]
            states = [step.next_state for step in await tasks.ledger.transitions(item.id)]
            assert states == [INITIALIZED, CANCELED]
        assert await reconcile(tasks) == Reconciliation()


async def test_long_work_goes_on_in_a_new_run_from_where_it_was() -> None:
    often = {"limit.historyCount.suggestContinueAsNew": 25}
    async with (
        embedded_temporal(ui=False, dynamic_config=often) as server,
        scene(server.address, *[GONE] * 9) as tasks,
    ):
        handles = [await tasks.start("AiAgentTask", LONG_BACKOFF) for _ in range(9)]
        for handle in handles:
            await in_state(tasks, handle, INITIALIZED)
            await handle.terminate()
        run = await tasks.client.start_workflow(
            "ReconcileLedger",
            {"grace_seconds": 0, "page_size": 1},
            id="long",
            task_queue=tasks.task_queue,
            result_type=Reconciliation,
        )
        assert await run.result() == settled(terminated=9)
        last = await tasks.client.get_workflow_handle("long").describe()
        assert last.run_id != run.first_execution_run_id


class DownAtFirst(InMemoryLedger):
    """Cannot be read the first time."""

    asked = 0

    async def open_work_items(
        self, *, created_before: datetime, after: Place | None = None, limit: int = 1000
    ) -> list[OpenWorkItem]:
        """See the base class."""
        self.asked += 1
        if self.asked == 1:
            raise LedgerUnavailable("a database", "connection refused")
        return await super().open_work_items(created_before=created_before, after=after, limit=limit)


async def test_an_outage_of_the_ledger_is_waited_for(dev_server: EmbeddedTemporal) -> None:
    ledger = DownAtFirst()
    async with scene(dev_server.address, ledger=ledger) as tasks:
        assert await reconcile(tasks) == Reconciliation()
    assert ledger.asked == 2


async def test_a_wrong_input_fails_at_once_and_names_the_field(dev_server: EmbeddedTemporal) -> None:
    async with scene(dev_server.address) as tasks:
        for wrong, names in (({"grace": 3}, "grace: "), ({"page_size": 0}, "page_size: "), ([], "the input")):
            handle = await tasks.start("ReconcileLedger", wrong)
            error = await failure_of_task(handle)
            assert error.type == "InvalidRequest"
            assert error.message.startswith(names)
