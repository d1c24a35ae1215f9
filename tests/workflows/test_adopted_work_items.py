"""Work items of adopted activities: what operators do with them, and what keeps them true."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio import workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import Replayer

from tasquencer.core.work_item import DelayReason, WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.temporal import Task, TasquencerPlugin
from tasquencer.temporal.histories import Histories
from tasquencer.temporal.projection import rebuild, verify
from tasquencer.temporal.reconciling import Reconciler
from tasquencer.testing import InMemoryLedger
from tests.support.encryption import ENCRYPTED, encrypting, payloads_in
from tests.support.patience import eventually
from tests.workflows.adopted_runs import Handle, end_of, open_shop
from tests.workflows.adopted_scenarios import Order, Shop, told

LIMIT = timedelta(seconds=120)
LONG = RetryPolicy(initial_interval=timedelta(hours=1), maximum_attempts=3)
SHORT = RetryPolicy(initial_interval=timedelta(milliseconds=10), maximum_attempts=2)


@workflow.defn
class OneCall:
    """Makes one call and returns what came of it, or its error."""

    @workflow.run
    async def run(self, kind: str, args: list[Any], policy: str = "long") -> Any:
        try:
            return await workflow.execute_activity(
                kind,
                args=args,
                start_to_close_timeout=LIMIT,
                retry_policy=LONG if policy == "long" else SHORT,
                result_type=Order if kind == "order" else str,
            )
        except ActivityError as error:
            return told(error)


@workflow.defn
class Again:
    """Continues as new while an activity of it runs."""

    @workflow.run
    async def run(self, is_last: bool = False) -> str:
        handle = workflow.start_activity("hang", start_to_close_timeout=LIMIT)
        await workflow.sleep(0.5)
        if not is_last:
            workflow.continue_as_new(True)
        handle.cancel()
        return "done"


@workflow.defn
class WithATask:
    """Has a task of its own, whose failure its other activities outlive."""

    def __init__(self) -> None:
        self._task = Task()

    @workflow.run
    async def run(self) -> Any:
        beside = workflow.start_activity(
            "hang", start_to_close_timeout=LIMIT, result_type=str, retry_policy=LONG
        )
        async for item in self._task.attempts("job", lineage="main"):
            async with item:
                item.complete(await item.execute_activity("fatal", start_to_close_timeout=LIMIT))
        try:
            self._task.check()
        except ApplicationError as error:
            failed = error.type
        return [failed, await beside]


async def work_items(ledger: InMemoryLedger, handle: Handle) -> list[WorkItem]:
    return await ledger.work_items(WorkItemFilter(task_id=handle.id, oldest_first=True))


async def in_state(
    ledger: InMemoryLedger, handle: Handle, state: WorkItemState, attempt: int = 0
) -> WorkItem:
    """The work item of this attempt, once it is in this state."""

    async def found() -> WorkItem | None:
        items = await work_items(ledger, handle)
        return next((item for item in items if (item.state, item.attempt) == (state, attempt)), None)

    return await eventually(found, f"attempt {attempt} {state}")


async def called(activities: Shop, kind: str, times: int) -> None:
    async def probe() -> bool:
        return activities.made.get(kind, 0) >= times

    await eventually(probe, f"{kind} to be called")


async def begin(client: Client, queue: str, kind: str, *args: Any, policy: str = "long") -> Handle:
    return await client.start_workflow(
        OneCall.run, args=[kind, list(args), policy], id=f"{kind}-{uuid4()}", task_queue=queue
    )


async def act(handle: Handle, name: str, **action: Any) -> Any:
    return await handle.execute_update(name, {"actor": "ann", **action})


@pytest.fixture
async def shop(dev_server: EmbeddedTemporal) -> Any:
    """A client, a queue with a worker that adopts, its ledger and the application's activities."""
    ledger = InMemoryLedger()
    client = await Client.connect(
        dev_server.address, plugins=[TasquencerPlugin(ledger, adopt_activities=["*"])]
    )
    async with open_shop(client, workflows=[OneCall, Again, WithATask]) as (queue, activities):
        yield client, queue, ledger, activities


async def test_what_an_attempt_was_given_and_came_to_is_kept(shop: Any) -> None:
    client, queue, ledger, _ = shop
    handle = await begin(client, queue, "flaky", 1, "done", policy="short")
    assert await handle.result() == "done"
    first, second = await work_items(ledger, handle)
    assert (first.task_id, first.task_type, first.lineage) == (handle.id, "OneCall", "flaky #1")
    assert first.payload == second.payload == {"adopted": "flaky", "arguments": [1, "done"]}
    assert first.failure is not None
    assert (first.failure.kind, first.failure.message) == ("Flaky", "failure 1")
    assert (second.attempt, second.delay_reason, second.result) == (1, DelayReason.BACKOFF, "done")
    assert second.delay_seconds == pytest.approx(0.01)
    assert first.worker
    assert first.ended_at is not None
    assert second.not_before >= first.ended_at + timedelta(milliseconds=10)
    events = (await handle.fetch_history()).events
    scheduled = [
        event.activity_task_scheduled_event_attributes
        for event in events
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    assert [one.activity_id for one in scheduled] == [first.id, second.id]
    assert {one.retry_policy.maximum_attempts for one in scheduled} == {1}


async def test_retry_now_ends_the_backoff(shop: Any) -> None:
    client, queue, ledger, _ = shop
    handle = await begin(client, queue, "flaky", 1, "done")
    waiting = await in_state(ledger, handle, WorkItemState.INITIALIZED, 1)
    assert waiting.delay_seconds == 3600
    assert await act(handle, "retry_now") == {"work_item_ids": [waiting.id]}
    assert await handle.result() == "done"
    last = (await work_items(ledger, handle))[-1]
    assert (last.delay_reason, last.state) == (DelayReason.OPERATOR, WorkItemState.COMPLETED)


async def test_complete_converts_the_result_or_says_why_not(shop: Any) -> None:
    client, queue, ledger, _ = shop
    handle = await begin(client, queue, "hang")
    item = await in_state(ledger, handle, WorkItemState.STARTED)
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await act(handle, "complete_work_item", work_item_id=item.id, result={"no": "text"})
    assert isinstance(refused.value.cause, ApplicationError)
    assert refused.value.cause.type == "InvalidRequest"
    assert "activity 'hang' returns str" in refused.value.cause.message
    assert (await work_items(ledger, handle))[0].state is WorkItemState.STARTED
    await act(handle, "complete_work_item", work_item_id=item.id, result="by ann")
    assert await handle.result() == "by ann"
    (done,) = await work_items(ledger, handle)
    assert (done.state, done.result) == (WorkItemState.COMPLETED, "by ann")
    assert (await ledger.transitions(done.id))[-1].actor == "ann"


async def test_fail_is_a_failure_that_the_policy_retries(shop: Any) -> None:
    client, queue, ledger, activities = shop
    handle = await begin(client, queue, "hang", policy="short")
    for attempt in range(2):
        item = await in_state(ledger, handle, WorkItemState.STARTED, attempt)
        await called(activities, "hang", attempt + 1)  # the ledger has the start before the call
        await act(handle, "fail_work_item", work_item_id=item.id, reason="too slow")
    error, cause = await handle.result()
    assert (error["class"], error["retry_state"]) == ("ActivityError", "4")
    assert (cause["type"], cause["message"]) == ("operator", "operator: failed by ann: too slow")
    assert activities.made["hang"] == 2
    kinds = [item.failure.kind for item in await work_items(ledger, handle) if item.failure is not None]
    assert kinds == ["operator", "operator"]


@pytest.mark.parametrize("state", [WorkItemState.STARTED, WorkItemState.INITIALIZED])
async def test_cancel_is_a_canceled_activity(shop: Any, state: WorkItemState) -> None:
    client, queue, ledger, _ = shop
    waits = state is WorkItemState.INITIALIZED
    handle = await begin(client, queue, "flaky", 9) if waits else await begin(client, queue, "hang")
    item = await in_state(ledger, handle, state, int(waits))
    await act(handle, "cancel_work_item", work_item_id=item.id)
    assert [one["class"] for one in await handle.result()] == ["ActivityError", "CancelledError"]
    assert (await work_items(ledger, handle))[-1].state is WorkItemState.CANCELED


async def test_the_workflow_lists_its_work_items_and_shows_them(shop: Any) -> None:
    client, queue, ledger, _ = shop
    handle = await begin(client, queue, "flaky", 9)
    waiting = await in_state(ledger, handle, WorkItemState.INITIALIZED, 1)
    listed = await handle.query("work_items")
    assert [(row["lineage"], row["state"]) for row in listed] == [
        ("flaky #1", "failed"),
        ("flaky #1", "initialized"),
    ]
    assert listed[1]["id"] == waiting.id
    metadata = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    assert "retry 1 of 2" in metadata.current_details.replace("\u00a0", " ")
    await handle.terminate()


async def test_the_reconciler_settles_what_a_terminated_workflow_leaves_open(shop: Any) -> None:
    client, queue, ledger, _ = shop
    handle = await begin(client, queue, "hang")
    await in_state(ledger, handle, WorkItemState.STARTED)
    await handle.terminate(reason="enough")
    await Reconciler(client, ledger, grace=timedelta(0)).page()
    (item,) = await work_items(ledger, handle)
    assert item.state is WorkItemState.CANCELED


async def test_the_histories_tell_the_same_and_rebuild_the_ledger(shop: Any) -> None:
    client, queue, ledger, _ = shop
    for failures in (1, 9):
        handle = await begin(client, queue, "flaky", failures, policy="short")
        await end_of(handle)
        history = await Histories(client, [OneCall]).read(handle.id)
        assert history is not None
        found = await verify(history, ledger)
        assert (found.work_items, found.differences, found.gaps) == (2, [], [])
        other = InMemoryLedger()
        rebuilt = await rebuild(history, other)
        assert (len(rebuilt.work_items), rebuilt.refused) == (2, [])
        expected = [item.model_copy(update={"worker": None}) for item in await work_items(ledger, handle)]
        got = [item.model_copy(update={"worker": None}) for item in await work_items(other, handle)]
        assert got == expected


async def test_continuing_as_new_leaves_nothing_open(shop: Any) -> None:
    client, queue, ledger, _ = shop
    handle = await client.start_workflow(Again.run, id=f"again-{uuid4()}", task_queue=queue)
    assert await handle.result() == "done"
    first, second = await work_items(ledger, handle)
    assert first.run_id != second.run_id
    assert {first.state, second.state} == {WorkItemState.CANCELED}
    transitions = await ledger.transitions(first.id)
    assert transitions[-1].reason == "the workflow continued as new"


async def test_a_task_of_the_workflow_neither_counts_nor_ends_them(shop: Any) -> None:
    client, queue, ledger, _ = shop
    handle = await client.start_workflow(WithATask.run, id=f"task-{uuid4()}", task_queue=queue)
    await in_state(ledger, handle, WorkItemState.FAILED)
    item = await in_state(ledger, handle, WorkItemState.STARTED)
    assert {row["lineage"] for row in await handle.query("work_items")} == {"main", "hang #1"}
    await act(handle, "complete_work_item", work_item_id=item.id, result="by ann")
    assert await handle.result() == ["NotRetryable", "by ann"]
    states = {one.lineage: one.state.value for one in await work_items(ledger, handle)}
    assert states == {"main": "failed", "hang #1": "completed"}
    assert await ledger.supersessions([item.id]) == {}


async def test_a_reset_makes_another_work_item_and_no_second_call(shop: Any) -> None:
    client, queue, ledger, _ = shop
    handle = await begin(client, queue, "hang")
    item = await in_state(ledger, handle, WorkItemState.STARTED)
    await handle.signal("nobody-listens")  # brings the workflow task to which it is reset

    async def point_after_the_call() -> int | None:
        events = (await handle.fetch_history()).events
        signaled = [
            event.event_id
            for event in events
            if event.HasField("workflow_execution_signaled_event_attributes")
        ]
        points = [
            event.event_id
            for event in events
            if signaled
            and event.event_id > signaled[-1]
            and event.HasField("workflow_task_completed_event_attributes")
        ]
        return points[0] if points else None

    point = await eventually(point_after_the_call, "a workflow task after the signal")
    made = await client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace="default",
            workflow_execution=WorkflowExecution(
                workflow_id=handle.id, run_id=handle.first_execution_run_id or ""
            ),
            reason="a test",
            workflow_task_finish_event_id=point,
            request_id=handle.id,
        )
    )
    run = client.get_workflow_handle(handle.id, run_id=made.run_id)

    async def fresh() -> WorkItem | None:
        items = await work_items(ledger, handle)
        return next(
            (one for one in items if one.run_id == made.run_id and one.state is WorkItemState.STARTED), None
        )

    other = await eventually(fresh, "a work item of the new run")
    assert other.id != item.id
    await act(run, "complete_work_item", work_item_id=other.id, result="done")
    assert await run.result() == "done"


@pytest.mark.parametrize("wanted", [None, True], ids=["by default", "if wanted"])
async def test_a_codec_hides_payloads_from_the_ledger(
    dev_server: EmbeddedTemporal, wanted: bool | None
) -> None:
    ledger = InMemoryLedger()
    client = await Client.connect(dev_server.address, data_converter=encrypting)
    plugin = TasquencerPlugin(ledger, adopt_activities=["*"], record_payloads=wanted)
    async with open_shop(client, plugins=[plugin], workflows=[OneCall]) as (queue, _):
        handle = await begin(client, queue, "flaky", 1, "secret", policy="short")
        assert await handle.result() == "secret"
    items = await work_items(ledger, handle)
    kept = {"adopted": "flaky", "arguments": [1, "secret"]} if wanted else {"adopted": "flaky"}
    assert [item.payload for item in items] == [kept, kept]
    assert items[-1].result == ("secret" if wanted else None)
    history = await handle.fetch_history()
    for event in history.events:
        for path, payload in payloads_in(event):
            assert payload.metadata["encoding"] == ENCRYPTED, path
    told_of = await Histories(client, [OneCall]).read(handle.id)
    assert told_of is not None
    assert (await verify(told_of, ledger)).differences == []
    replayer = Replayer(
        workflows=[OneCall], plugins=[TasquencerPlugin(InMemoryLedger())], data_converter=encrypting
    )
    await replayer.replay_workflow(history)


async def test_many_workflows_side_by_side(shop: Any) -> None:
    client, queue, _, _ = shop
    handles = [await begin(client, queue, "flaky", 0, str(number)) for number in range(20)]
    assert await asyncio.gather(*(end_of(handle) for handle in handles)) == [
        str(number) for number in range(20)
    ]
