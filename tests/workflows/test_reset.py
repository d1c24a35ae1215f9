"""Tasks that somebody resets: what was open is done again as another work item, nothing is sent twice."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

from temporalio import activity, workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Replayer

from tasquencer import RetryRecipe, WorkItem, WorkItemState
from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.job import AiJob
from tasquencer.core.entries import LedgerEntry
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import Task, TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tests.support.calls import ANSWER, GONE, ScriptedCalls
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.tasks import Tasks, comes_to, history, tasks_on
from workflows.ai_agent import AiAgentTask
from workflows.ai_fan_out import AiFanOutTask

Handle = WorkflowHandle[Any, Any]


async def reset(tasks: Tasks, handle: Handle, is_the_point: Callable[[HistoryEvent], bool]) -> Handle:
    """Reset the task to the workflow task after the last such event; the new run."""
    events = await history(handle)
    last = max(event.event_id for event in events if is_the_point(event))
    point = next(
        event.event_id
        for event in events
        if event.event_id > last and event.HasField("workflow_task_started_event_attributes")
    )
    return await reset_to(tasks, handle, point)


async def reset_to(tasks: Tasks, handle: Handle, point: int) -> Handle:
    """Reset the task to the workflow task of this event; the new run."""
    made = await tasks.client.workflow_service.reset_workflow_execution(
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
    return tasks.client.get_workflow_handle(handle.id, run_id=made.run_id)


def of_run(items: list[WorkItem], handle: Handle) -> list[WorkItem]:
    return [item for item in items if item.run_id == handle.run_id]


async def replays(handle: Handle, *workflows: type) -> None:
    replayer = Replayer(workflows=workflows, plugins=[TasquencerPlugin(InMemoryLedger())])
    await replayer.replay_workflow(await handle.fetch_history())


async def test_a_backoff_that_is_done_again_starts_another_work_item(dev_server: EmbeddedTemporal) -> None:
    calls = ScriptedCalls(GONE, ANSWER, ANSWER.model_copy(update={"text": "43"}))
    request = {"prompt": "?", "retry": {"initial_interval_seconds": 0.2}}
    async with tasks_on(dev_server.address, [AiAgentTask], [calls.generate]) as tasks:
        _, handle = await tasks.run("AiAgentTask", request)
        before = await tasks.work_items(handle)
        again = await reset(tasks, handle, lambda event: event.HasField("timer_fired_event_attributes"))
        result = await again.result()
        items = await tasks.work_items(handle)
        steps = await tasks.ledger.transitions(items[-1].id)
        listed = await again.query("work_items")
        await replays(again, AiAgentTask)
    (fresh,) = of_run(items, again)
    assert items[:2] == before
    assert (fresh.attempt, fresh.state, fresh.delay_seconds) == (1, WorkItemState.COMPLETED, 0.2)
    assert fresh.started_at is not None
    assert before[0].ended_at is not None
    assert fresh.started_at >= before[0].ended_at + timedelta(seconds=0.2)
    assert steps[0].reason == "after a reset of the task"
    assert (result["text"], result["work_item_id"], result["attempts"]) == ("43", fresh.id, 2)
    assert [row["id"] for row in listed] == [before[0].id, fresh.id]
    assert Counter(call.work_item_id for call in calls.calls).most_common(1)[0][1] == 1


async def test_a_call_that_was_under_way_is_not_made_again_under_its_id(dev_server: EmbeddedTemporal) -> None:
    made: list[str] = []
    may_end = asyncio.Event()

    @activity.defn(name="generate")
    async def generate(job: AiJob) -> AiAnswer:
        made.append(activity.info().activity_id)
        while job.messages[0].content == "slow" and not may_end.is_set():
            activity.heartbeat()
            await asyncio.sleep(0.02)
        return ANSWER

    async with tasks_on(dev_server.address, [AiFanOutTask], [generate]) as tasks:
        handle = await tasks.start("AiFanOutTask", {"prompts": ["slow", "fast"]})

        async def one_is_done() -> bool:
            return any(item.state == "completed" for item in await tasks.work_items(handle))

        await eventually(one_is_done, "the fast one to complete")
        again = await reset(
            tasks, handle, lambda event: event.HasField("activity_task_completed_event_attributes")
        )

        async def three_calls() -> bool:
            return len(made) == 3

        await eventually(three_calls, "the slow one to be asked again")
        may_end.set()
        result = await again.result()
        items = await tasks.work_items(handle)
        await replays(again, AiFanOutTask)
    assert len(set(made)) == 3
    assert result["completed"] == 2
    (fresh,) = of_run(items, again)
    assert (fresh.lineage, fresh.attempt, fresh.state) == ("prompt-1", 0, WorkItemState.COMPLETED)
    assert result["results"][0]["work_item_id"] == fresh.id == made[-1]


@workflow.defn
class AskSomebody:
    """A call, then an answer from outside."""

    @workflow.run
    async def run(self) -> Any:
        task = Task(recipe=RetryRecipe(max_retries=0))
        job = AiJob.model_validate({"messages": [{"role": "user", "content": "?"}]})
        async for work_item in task.attempts(job, lineage="call"):
            async with work_item:
                answer = await work_item.execute_activity(
                    "generate", job, start_to_close_timeout=timedelta(minutes=1), result_type=AiAnswer
                )
                work_item.complete(answer)
        async for work_item in task.attempts("well?", lineage="question"):
            async with work_item:
                await workflow.sleep(timedelta(milliseconds=100))
                work_item.complete(await work_item.outcome())
        return task.result("question")


async def test_what_waits_for_the_outside_world_is_asked_again(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, [AskSomebody], [ScriptedCalls().generate]) as tasks:
        handle = await tasks.start("AskSomebody")

        async def waiting(run: Handle) -> str | None:
            listed = await run.query("work_items")
            return listed[-1]["id"] if listed and listed[-1]["state"] == "started" else None

        async def asked_first() -> str | None:
            fired = [event.HasField("timer_fired_event_attributes") for event in await history(handle)]
            return await waiting(handle) if any(fired) else None

        first = await eventually(asked_first, "the question")
        answered = {"actor": "anna", "work_item_id": first, "result": "yes"}
        await handle.execute_update("complete_work_item", answered)
        assert await handle.result() == "yes"
        again = await reset(tasks, handle, lambda event: event.HasField("timer_fired_event_attributes"))

        async def asked_again() -> str | None:
            found = await waiting(again)
            return found if found != first else None

        second = await eventually(asked_again, "the question, once more")
        await again.execute_update(
            "complete_work_item", {"actor": "ben", "work_item_id": second, "result": "no"}
        )
        assert await again.result() == "no"
        items = await tasks.work_items(handle)
        await replays(again, AskSomebody)
    assert [(item.id, item.result) for item in items if item.lineage == "question"] == [
        (first, "yes"),
        (second, "no"),
    ]


async def test_a_task_that_is_reset_to_its_begin_starts_anew(dev_server: EmbeddedTemporal) -> None:
    calls = ScriptedCalls(GONE)
    request = {"prompt": "?", "retry": {"initial_interval_seconds": 0}}
    async with tasks_on(dev_server.address, [AiAgentTask], [calls.generate]) as tasks:
        _, handle = await tasks.run("AiAgentTask", request)
        again = await reset(tasks, handle, lambda event: event.event_id == 1)
        result = await again.result()
        items = await tasks.work_items(handle)
    assert result["attempts"] == 1
    assert [item.attempt for item in of_run(items, again)] == [0]
    assert len({call.work_item_id for call in calls.calls}) == len(calls.calls) == 3


async def test_a_backoff_that_a_reset_has_left_behind_can_be_ended(dev_server: EmbeddedTemporal) -> None:
    request = {"prompt": "?", "retry": {"initial_interval_seconds": 600}}
    async with tasks_on(dev_server.address, [AiAgentTask], [ScriptedCalls(GONE).generate]) as tasks:
        handle = await tasks.start("AiAgentTask", request)

        await comes_to(handle, "timer_started_event_attributes")
        await handle.signal("nothing")  # nobody listens; it makes a workflow task to go back to

        async def signaled() -> bool:
            last = (await history(handle))[-1]
            return last.HasField("workflow_task_completed_event_attributes")

        await eventually(signaled, "its workflow task")
        again = await reset(
            tasks, handle, lambda event: event.HasField("workflow_execution_signaled_event_attributes")
        )
        ended = await asyncio.wait_for(again.execute_update("retry_now", {"actor": "anna"}), PATIENCE_SECONDS)
        result = await again.result()
        (fresh,) = of_run(await tasks.work_items(handle), again)
    # If it came with the first workflow task of the new run, it ended the wait of the old one.
    assert len(ended["work_item_ids"]) == 1
    assert (result["work_item_id"], fresh.delay_reason) == (fresh.id, "operator")


@workflow.defn(sandboxed=False)
class AsksSlowly:
    """One call. The record of its start ends while its query is being answered."""

    @workflow.run
    async def run(self) -> Any:
        task = Task()
        async for work_item in task.attempts("once"):
            async with work_item:
                work_item.complete(
                    await work_item.execute_activity("noted", start_to_close_timeout=timedelta(minutes=1))
                )
        return task.result()

    @workflow.query
    def look(self) -> str:
        LOOKED_AT.set()
        time.sleep(0.8)
        return "seen"


LOOKED_AT = threading.Event()


class WaitsForTheLook(InMemoryLedger):
    """A ledger that takes the first record while a query is being answered."""

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        while not LOOKED_AT.is_set():
            await asyncio.sleep(0.01)
        await super().record(entries)


async def test_a_start_that_an_abandoned_run_has_recorded_makes_no_call_in_the_next_one(
    dev_server: EmbeddedTemporal,
) -> None:
    """With a query, a workflow task can end before its code hears that the record was made."""
    LOOKED_AT.clear()
    made: list[str] = []

    @activity.defn
    async def noted() -> str:
        made.append(activity.info().activity_id)
        return "done"

    ledger, queue = WaitsForTheLook(), f"queue-{uuid4()}"
    client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(ledger)])
    handle: Handle = await client.start_workflow("AsksSlowly", id=f"asks-{uuid4()}", task_queue=queue)
    looking = asyncio.create_task(handle.query("look"))
    await asyncio.sleep(0.5)  # both wait for a worker
    async with tasks_on(dev_server.address, [AsksSlowly], [noted], ledger=ledger, task_queue=queue) as tasks:
        assert await handle.result() == "done"
        assert await looking == "seen"
        events = await history(handle)
        (call,) = [event for event in events if event.HasField("activity_task_scheduled_event_attributes")]
        (record, *_) = [event for event in events if event.HasField("marker_recorded_event_attributes")]
        completed = [
            event.event_id
            for event in events
            if event.HasField("workflow_task_completed_event_attributes")
            and record.event_id < event.event_id < call.event_id
        ]
        assert completed, "the workflow task did not end before its code heard of the record"
        again = await reset_to(tasks, handle, completed[0])
        assert await again.result() == "done"
        items = await tasks.work_items(handle)
        await replays(again, AsksSlowly)
    assert len(set(made)) == len(made) == 2
    assert [(item.id, item.attempt, item.state) for item in items] == [
        (known, 0, WorkItemState.COMPLETED) for known in made
    ]
