"""On the real dev server: cancellation, lost workers, outages of the ledger, bugs, continue-as-new."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowQueryFailedError
from temporalio.exceptions import CancelledError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from tasquencer import LedgerConflict, LedgerEntry, LedgerUnavailable, WorkItemFilter, WorkItemState
from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.job import AiJob
from tasquencer.ai.request import MAXIMUM_REQUEST_BYTES
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.temporal import Task, TasquencerPlugin, bookkeeping, data_converter
from tasquencer.testing import InMemoryLedger
from tests.support.calls import ANSWER, GONE, SLOW_DOWN, Freeze, Hang, ScriptedCalls, Step
from tests.support.held_ledgers import FallingLedger, leading_to
from tests.support.patience import eventually
from tests.support.tasks import Tasks, comes_to, failure_of_task, history, tasks_on
from tests.workflows.test_other_tasks import HugeResult, huge
from workflows.ai_agent import AiAgentTask

LONG_BACKOFF = {"prompt": "?", "retry": {"initial_interval_seconds": 3600}}
NO_BACKOFF = {"initial_interval_seconds": 0}


def running(server: EmbeddedTemporal, calls: ScriptedCalls, ledger: InMemoryLedger | None = None):  # type: ignore[no-untyped-def]
    return tasks_on(server.address, [AiAgentTask], [calls.generate], ledger=ledger)


async def canceled(handle: WorkflowHandle[Any, Any]) -> None:
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, CancelledError)


async def waiting_work_item(tasks: Tasks, handle: WorkflowHandle[Any, Any]) -> Any:
    async def probe() -> Any:
        items = await tasks.work_items(handle)
        return items[-1] if items and items[-1].state is WorkItemState.INITIALIZED else None

    return await eventually(probe, "a work item in its backoff")


async def test_the_next_attempt_is_recorded_with_its_plan_before_the_sleep(
    dev_server: EmbeddedTemporal,
) -> None:
    async with running(dev_server, ScriptedCalls(SLOW_DOWN)) as tasks:
        handle = await tasks.start("AiAgentTask", LONG_BACKOFF)
        item = await waiting_work_item(tasks, handle)
        (listed,) = [one for one in await handle.query("work_items") if one["id"] == item.id]
        await handle.terminate()
    assert (item.attempt, item.delay_seconds, item.delay_reason) == (1, 3600, "backoff")
    assert listed["state"] == "initialized"
    assert listed["not_before"] == item.not_before.isoformat().replace("+00:00", "Z")


async def test_the_current_details_show_a_table_of_the_work_items(dev_server: EmbeddedTemporal) -> None:
    async with running(dev_server, ScriptedCalls(SLOW_DOWN)) as tasks:
        handle = await tasks.start("AiAgentTask", LONG_BACKOFF)
        await waiting_work_item(tasks, handle)
        metadata = await handle.query("__temporal_workflow_metadata")
        await handle.terminate()
    shown = metadata.current_details.replace("\u00a0", " ")
    assert "| first try   | ✗ failed: **rate_limited**<br>429 from the provider   | none   |" in shown
    assert "| retry 1 of 3   | … waits until" in shown


async def test_cancelling_in_the_call_cancels_the_activity_and_the_work_item(
    dev_server: EmbeddedTemporal,
) -> None:
    calls = ScriptedCalls(Hang())
    async with running(dev_server, calls) as tasks:
        handle = await tasks.start("AiAgentTask", {"prompt": "?"})
        await calls.under_way.wait()
        await handle.cancel()
        await canceled(handle)
        (item,) = await tasks.work_items(handle)
        log = await tasks.ledger.transitions(item.id)
    assert calls.canceled == [item.id]
    assert [step.next_state for step in log] == ["initialized", "started", "canceled"]
    assert log[-1].reason == "the task was canceled"


async def test_cancelling_in_the_backoff_cancels_the_waiting_work_item_and_starts_nothing(
    dev_server: EmbeddedTemporal,
) -> None:
    calls = ScriptedCalls(SLOW_DOWN)
    async with running(dev_server, calls) as tasks:
        handle = await tasks.start("AiAgentTask", LONG_BACKOFF)
        await waiting_work_item(tasks, handle)
        await handle.cancel()
        await canceled(handle)
        items = await tasks.work_items(handle)
    assert [item.state for item in items] == [WorkItemState.FAILED, WorkItemState.CANCELED]
    assert items[1].started_at is None
    assert len(calls.calls) == 1


async def test_cancelling_before_any_worker_runs_leaves_no_open_work_item(
    dev_server: EmbeddedTemporal,
) -> None:
    ledger = InMemoryLedger()
    async with tasks_on(dev_server.address, [AiAgentTask], [ScriptedCalls().generate]) as elsewhere:
        handle = await elsewhere.client.start_workflow(
            "AiAgentTask", {"prompt": "?"}, id="canceled-early", task_queue="not-polled-yet"
        )
        await handle.cancel()
    calls = ScriptedCalls()
    async with tasks_on(
        dev_server.address, [AiAgentTask], [calls.generate], ledger=ledger, task_queue="not-polled-yet"
    ):
        await canceled(handle)
    assert [item.state for item in await ledger.work_items(WorkItemFilter())] in (
        [],
        [WorkItemState.CANCELED],
    )
    assert calls.calls == []


async def test_a_silent_worker_is_a_lost_worker_and_the_attempt_counts(dev_server: EmbeddedTemporal) -> None:
    async with running(dev_server, ScriptedCalls(Freeze())) as tasks:
        result, handle = await tasks.run(
            "AiAgentTask", {"prompt": "?", "heartbeat_timeout_seconds": 10, "retry": NO_BACKOFF}
        )
        first, _ = await tasks.work_items(handle)
    assert result["attempts"] == 2
    assert first.failure is not None
    assert (first.failure.kind, first.failure.outcome_unknown) == ("worker_lost", True)


async def test_an_answer_beyond_temporal_s_payload_limit_is_too_large(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, [HugeResult], [huge]) as tasks:
        error, handle = await tasks.failure("HugeResult")
        (item,) = await tasks.work_items(handle)
    assert error.type == "NotRetryable"
    assert item.failure is not None
    assert item.failure.kind == "too_large"


@pytest.mark.parametrize("outcome", [ANSWER, GONE], ids=["an answer", "a failure"])
async def test_a_look_at_a_task_that_was_terminated_writes_nothing(
    dev_server: EmbeddedTemporal, monkeypatch: pytest.MonkeyPatch, outcome: Step
) -> None:
    """For a query a worker replays the run. Decisions that its last workflow task did not reach stay open."""
    monkeypatch.setattr(bookkeeping, "_OLD", timedelta(0))  # each write asks whether the run is open
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def wait(_: str) -> None:
        begun.set()
        await may_end.wait()

    calls, ledger, queue = ScriptedCalls(outcome, before=wait), InMemoryLedger(), f"queue-{uuid4()}"
    client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(ledger)])
    tasks = Tasks(client, queue, ledger)

    def decides() -> Worker:
        return Worker(client, task_queue=queue, workflows=[AiAgentTask], no_remote_activities=True)

    async with Worker(client, task_queue=queue, activities=[calls.generate]):
        async with decides():
            handle = await tasks.start("AiAgentTask", {"prompt": "?"})
            await begun.wait()
        may_end.set()  # with nobody there who would take note of it
        ended = "completed" if outcome is ANSWER else "failed"
        await comes_to(handle, f"activity_task_{ended}_event_attributes")
        await handle.terminate()
        before = await tasks.work_items(handle)

        async def answered() -> Any:
            with suppress(WorkflowQueryFailedError):  # while the server does not say how the run stands
                return await handle.query("work_items")
            return None

        async with decides():
            (listed,) = await eventually(answered, "an answer")
        assert await tasks.work_items(handle) == before
    (item,) = before
    assert (listed["id"], listed["state"]) == (item.id, "started")
    assert item.state is WorkItemState.STARTED


class UnreliableLedger(InMemoryLedger):
    """Raises the given errors before it works, one for each call from the `first` on."""

    def __init__(self, *errors: Exception, first: int = 0) -> None:
        super().__init__()
        self.errors = list(errors)
        self._first = first
        self._calls = 0

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        self._calls += 1
        if self._calls > self._first and self.errors:
            raise self.errors.pop(0)
        await super().record(entries)


@pytest.mark.parametrize("first", [0, 1, 2, 3])
async def test_an_outage_of_the_ledger_pauses_the_task_and_burns_no_attempt(
    dev_server: EmbeddedTemporal, first: int
) -> None:
    outage = [LedgerUnavailable("a database", "connection refused")] * 4
    ledger = UnreliableLedger(*outage, first=first)
    calls = ScriptedCalls(GONE)
    async with running(dev_server, calls, ledger) as tasks:
        result, handle = await tasks.run("AiAgentTask", {"prompt": "?", "retry": NO_BACKOFF})
        items = await tasks.work_items(handle)
    assert ledger.errors == []
    assert result["attempts"] == len(items) == len(calls.calls) == 2


async def test_cancelling_while_the_ledger_is_down_settles_the_work_item_once_it_is_back(
    dev_server: EmbeddedTemporal,
) -> None:
    ledger = FallingLedger(leading_to(WorkItemState.INITIALIZED))
    async with running(dev_server, ScriptedCalls(), ledger) as tasks:
        handle = await tasks.start("AiAgentTask", {"prompt": "?"})

        async def down() -> bool:
            return ledger.refused > 0

        await eventually(down, "the first write to fail")
        await handle.cancel()
        ledger.repair()
        await canceled(handle)
        items = await tasks.work_items(handle)
    # The cancel comes after the workflow task that waits for the ledger: a first call may be made.
    assert [item.attempt for item in items] == [0]
    assert items[0].state in (WorkItemState.CANCELED, WorkItemState.COMPLETED)


async def test_a_refusal_of_the_ledger_pauses_the_task_instead_of_failing_it(
    dev_server: EmbeddedTemporal,
) -> None:
    ledger = UnreliableLedger(*[LedgerConflict("some id", "planted")] * 2, first=1)
    async with running(dev_server, ScriptedCalls(), ledger) as tasks:
        result, handle = await tasks.run("AiAgentTask", {"prompt": "?"})
        refusals = [
            event.workflow_task_failed_event_attributes.failure.message
            for event in await history(handle)
            if event.HasField("workflow_task_failed_event_attributes")
        ]
    assert result["attempts"] == 1
    assert any("planted" in message for message in refusals)


@workflow.defn(name="Mended")
class Buggy:
    def __init__(self) -> None:
        self._task = Task()

    @workflow.run
    async def run(self) -> int:
        async for work_item in self._task.attempts("x"):
            async with work_item:
                raise ZeroDivisionError("a bug in the workflow's code")
        return len(self._task.work_items)


@workflow.defn(name="Mended")
class Mended:
    def __init__(self) -> None:
        self._task = Task()

    @workflow.run
    async def run(self) -> int:
        async for work_item in self._task.attempts("x"):
            async with work_item:
                work_item.complete("fine")
        return len(self._task.work_items)


async def test_a_bug_in_the_workflow_pauses_the_task_until_it_is_repaired_and_burns_no_attempt(
    dev_server: EmbeddedTemporal,
) -> None:
    ledger = InMemoryLedger()
    async with tasks_on(dev_server.address, [Buggy], [ScriptedCalls().generate], ledger=ledger) as tasks:
        handle: WorkflowHandle[Any, Any] = await tasks.client.start_workflow(
            "Mended",
            id=f"Mended-{uuid4()}",
            task_queue=tasks.task_queue,
            task_timeout=timedelta(seconds=2),  # after a second failure the server waits for so long
        )

        async def stuck() -> bool:
            return any(
                event.HasField("workflow_task_failed_event_attributes") for event in await history(handle)
            )

        await eventually(stuck, "the workflow task to fail")
        queue = tasks.task_queue
    async with tasks_on(
        dev_server.address, [Mended], [ScriptedCalls().generate], ledger=ledger, task_queue=queue
    ) as tasks:
        assert await handle.result() == 1
        (item,) = await tasks.work_items(handle)
    assert item.state is WorkItemState.COMPLETED


async def test_a_worker_without_the_plugin_says_what_is_missing(dev_server: EmbeddedTemporal) -> None:
    client = await Client.connect(dev_server.address, data_converter=data_converter)
    async with Worker(
        client, task_queue="bare", workflows=[AiAgentTask], workflow_runner=UnsandboxedWorkflowRunner()
    ):
        handle = await client.start_workflow("AiAgentTask", {"prompt": "?"}, id="bare", task_queue="bare")

        async def complaint() -> str | None:
            for event in await history(handle):
                if event.HasField("workflow_task_failed_event_attributes"):
                    return event.workflow_task_failed_event_attributes.failure.message
            return None

        message = await eventually(complaint, "the workflow task to fail")
        await handle.terminate()
    assert "TasquencerPlugin" in message


async def test_a_task_continues_as_new_and_its_attempts_go_on() -> None:
    async with embedded_temporal(
        ui=False, dynamic_config={"limit.historyCount.suggestContinueAsNew": 50}
    ) as server:
        calls = ScriptedCalls(*[GONE] * 30)
        async with running(server, calls) as tasks:
            result, handle = await tasks.run(
                "AiAgentTask", {"prompt": "?", "max_retries": 100, "retry": NO_BACKOFF}
            )
            items = await tasks.work_items(handle)
            first_run = await tasks.client.get_workflow_handle(
                handle.id, run_id=handle.first_execution_run_id
            ).describe()
            listed = await handle.query("work_items")
    assert result["attempts"] == 31
    assert [item.attempt for item in items] == list(range(31))
    assert len({item.run_id for item in items}) > 3
    assert {item.task_id for item in items} == {handle.id}
    assert first_run.status is not None and first_run.status.name == "CONTINUED_AS_NEW"
    assert [one["id"] for one in listed] == [item.id for item in items]
    assert [call.work_item_id for call in calls.calls] == [item.id for item in items]


async def test_the_bound_of_retries_holds_across_continue_as_new() -> None:
    async with embedded_temporal(
        ui=False, dynamic_config={"limit.historyCount.suggestContinueAsNew": 60}
    ) as server:
        calls = ScriptedCalls(*[GONE] * 100)
        async with running(server, calls) as tasks:
            handle = await tasks.start("AiAgentTask", {"prompt": "?", "max_retries": 25, "retry": NO_BACKOFF})
            error = await failure_of_task(handle)
    assert error.type == "RetriesExhausted"
    assert len(calls.calls) == 26


async def test_the_largest_request_continues_as_new() -> None:
    largest = "x" * (MAXIMUM_REQUEST_BYTES - 200)
    settings = {"limit.historyCount.suggestContinueAsNew": 60}
    async with (
        embedded_temporal(ui=False, dynamic_config=settings) as server,
        running(server, ScriptedCalls(*[GONE] * 6)) as tasks,
    ):
        result, handle = await tasks.run(
            "AiAgentTask", {"prompt": largest, "max_retries": 10, "retry": NO_BACKOFF}
        )
        items = await tasks.work_items(handle)
    assert result["attempts"] == 7
    assert len({item.run_id for item in items}) > 1
    assert {len(str(item.payload)) for item in items} == {len(str(items[0].payload))}


async def test_a_task_that_no_worker_takes_up_before_its_deadline_makes_no_call(
    dev_server: EmbeddedTemporal,
) -> None:
    client = await Client.connect(dev_server.address, data_converter=data_converter)
    handle = await client.start_workflow(
        "AiAgentTask", {"prompt": "?", "deadline_seconds": 0.5}, id="too-late", task_queue="too-late"
    )
    started = (await handle.describe()).start_time

    async def late() -> bool:
        return datetime.now(UTC) > started + timedelta(seconds=1)

    await eventually(late, "the deadline to pass")
    calls = ScriptedCalls()
    async with tasks_on(dev_server.address, [AiAgentTask], [calls.generate], task_queue="too-late") as tasks:
        error = await failure_of_task(handle)
        (item,) = await tasks.work_items(handle)
    assert error.type == "DeadlineExceeded"
    assert item.state is WorkItemState.CANCELED
    assert calls.calls == []


async def test_an_answer_that_meets_the_cancel_is_recorded_and_the_task_ends_canceled(
    dev_server: EmbeddedTemporal,
) -> None:
    # A deploy: the worker that decides is gone before its call ends, so that the next one sees the answer
    # and the cancel at once. The call has a worker of its own: one that stops may take a last workflow task.
    ledger, queue = InMemoryLedger(), "answer-meets-cancel"
    under_way, answer = asyncio.Event(), asyncio.Event()

    @activity.defn(name="generate")
    async def generate(job: AiJob) -> AiAnswer:
        under_way.set()
        await answer.wait()
        return ANSWER

    client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(ledger)])
    deciding = Worker(
        client,
        task_queue=queue,
        workflows=[AiAgentTask],
        no_remote_activities=True,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
    )
    async with Worker(client, task_queue=queue, activities=[generate]):
        async with deciding:
            handle = await client.start_workflow("AiAgentTask", {"prompt": "?"}, id=queue, task_queue=queue)
            await under_way.wait()
        answer.set()
        await comes_to(handle, "activity_task_completed_event_attributes")
    await handle.cancel()
    async with tasks_on(
        dev_server.address, [AiAgentTask], [generate], ledger=ledger, task_queue=queue
    ) as tasks:
        await canceled(handle)
        (item,) = await tasks.work_items(handle)
    assert item.state is WorkItemState.COMPLETED
    assert item.result is not None
