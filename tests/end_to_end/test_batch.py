"""A batch and the worker process: killed in the middle, and limited in its calls."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import WorkflowHandle

from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.sql import SqlLedger
from tasquencer.temporal.batch_calls import BEGIN, END, FOLLOW, LOAD
from tests.end_to_end.stage import Stage
from tests.support.answers import ok, slow, status
from tests.support.batches import filled_batch
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ScriptedProvider
from tests.support.tasks import called_at, comes_to

STARTED = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED

IMPATIENT = {"heartbeat_timeout_seconds": 15, "retry": {"initial_interval_seconds": 0}}
"""A call of a killed worker is soon given up, and none that is only slow."""


async def start(stage: Stage, prompts: list[str], **request: Any) -> WorkflowHandle[Any, Any]:
    batch_id = f"batch-{uuid4()}"
    async with SqlLedger(f"sqlite:///{stage.ledger_file}") as ledger:
        await filled_batch(ledger.batches, batch_id, prompts, **IMPATIENT)
    return await stage.client.start_workflow("AiBatchTask", request, id=batch_id, task_queue=stage.task_queue)


async def test_a_batch_survives_the_death_of_its_worker(dev_server: EmbeddedTemporal, tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(40)]
    async with ScriptedProvider(then=slow("yes", pause_seconds=0.02)) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        batch = await start(stage, prompts, concurrency=5)
        async with stage.worker() as worker:

            async def some_are_answered() -> bool:
                return len(provider.requests) >= 12

            await eventually(some_are_answered, "a dozen requests")
            worker.kill()
        async with stage.worker():
            result = await asyncio.wait_for(batch.result(), PATIENCE_SECONDS)
        requests = len(provider.requests)
    assert (result["rows"], result["completed"]) == (40, 40)
    async with SqlLedger(f"sqlite:///{stage.ledger_file}") as ledger:
        items = await ledger.work_items(WorkItemFilter(limit=1000))
        counts = await ledger.batches.counts(batch.id)
    assert (counts.completed, counts.pending) == (40, 0)
    assert all(item.state.is_terminal for item in items)
    completed = [item for item in items if item.state is WorkItemState.COMPLETED]
    assert len({item.task_id for item in completed}) == len(completed) == 40
    lost = len(items) - len(completed)
    assert lost <= 5  # what was under way
    assert len(completed) <= requests <= len(items)


async def test_a_worker_that_stops_does_not_wait_for_tasks_that_sleep(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    """Another run of the batch has started the task, so only Temporal can say how it ended."""
    request = {"prompt": "sleeper", "retry": {"initial_interval_seconds": 3600}}
    async with ScriptedProvider([status(503)], then=ok("awake")) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        batch_id = f"batch-{uuid4()}"
        async with SqlLedger(f"sqlite:///{stage.ledger_file}") as ledger:
            await filled_batch(ledger.batches, batch_id, [request])
        async with stage.worker() as worker:
            first = await stage.client.start_workflow("AiBatchTask", id=batch_id, task_queue=stage.task_queue)
            task: WorkflowHandle[Any, Any] = stage.client.get_workflow_handle(f"{batch_id}/row-0")
            await stage.work_item(task, 1, WorkItemState.INITIALIZED)
            await comes_to(task, "timer_started_event_attributes")  # it sleeps, and no write is open
            await first.terminate()
            batch = await stage.client.start_workflow("AiBatchTask", id=batch_id, task_queue=stage.task_queue)

            async def is_followed() -> bool:
                pending = (await batch.describe()).raw_description.pending_activities
                return any(one.activity_type.name == FOLLOW and one.state == STARTED for one in pending)

            await eventually(is_followed, "the task is followed")
            worker.send(signal.SIGTERM)
            assert await worker.wait(timeout_seconds=PATIENCE_SECONDS) == 0
        async with stage.worker():
            await task.execute_update("retry_now", {"actor": "anna"})
            assert (await asyncio.wait_for(batch.result(), PATIENCE_SECONDS))["completed"] == 1


async def test_a_limit_of_calls_a_second_is_for_calls(dev_server: EmbeddedTemporal, tmp_path: Path) -> None:
    """What the batch does itself uses none of it for a row: recording is local to the worker."""
    async with ScriptedProvider(then=ok("yes")) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        async with stage.worker("--calls-per-second", "4"):
            batch = await start(stage, [f"prompt {number}" for number in range(24)], concurrency=10)
            assert (await asyncio.wait_for(batch.result(), PATIENCE_SECONDS))["completed"] == 24
        rows = [stage.client.get_workflow_handle(f"{batch.id}/row-{number}") for number in range(24)]
        given_out = [await called_at(row) for row in rows]
    assert max(given_out) - min(given_out) > timedelta(seconds=2.5)  # at least 6 of one partition: 4 s
    events = (await batch.fetch_history()).events
    scheduled = [event.activity_task_scheduled_event_attributes.activity_type.name for event in events]
    assert {name for name in scheduled if name} == {BEGIN, LOAD, END}
    assert scheduled.count(LOAD) < 5  # a page of rows each
