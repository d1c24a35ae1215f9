"""Other time limits of a task than that of the call: the queue, the deadline, Temporal's own timeouts."""

from __future__ import annotations

from datetime import timedelta

from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.support.calls import SLOW_DOWN, Hang, ScriptedCalls
from tests.support.tasks import failure_of_task, tasks_on, tasks_on_skipped_time
from workflows.ai_agent import AiAgentTask


async def test_a_call_that_no_worker_picks_up_fails_as_not_picked_up_and_is_retried(
    dev_server: EmbeddedTemporal,
) -> None:
    async with tasks_on(dev_server.address, [AiAgentTask], []) as tasks:
        request = {"prompt": "?", "queue_timeout_seconds": 1, "max_retries": 1}
        error, handle = await tasks.failure("AiAgentTask", request)
        items = await tasks.work_items(handle)
    assert error.type == "RetriesExhausted"
    assert [item.failure and item.failure.kind for item in items] == ["not_picked_up"] * 2


async def test_a_call_that_waits_for_a_worker_ends_with_the_deadline(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, [AiAgentTask], []) as tasks:
        error, handle = await tasks.failure("AiAgentTask", {"prompt": "?", "deadline_seconds": 15})
        (item,) = await tasks.work_items(handle)
    assert error.type == "DeadlineExceeded"
    assert item.state is WorkItemState.FAILED


async def test_a_task_ends_before_temporal_s_own_timeout_and_settles_its_work_items() -> None:
    calls = ScriptedCalls(SLOW_DOWN, Hang())
    async with tasks_on_skipped_time([AiAgentTask], [calls.generate]) as tasks:
        handle = await tasks.client.start_workflow(
            "AiAgentTask",
            {"prompt": "?", "retry": {"initial_interval_seconds": 3600}, "max_retries": 5},
            id="ends-in-time",
            task_queue=tasks.task_queue,
            execution_timeout=timedelta(minutes=10),
        )
        error = await failure_of_task(handle)
        items = await tasks.work_items(handle)
    assert error.type == "DeadlineExceeded"
    assert [item.state for item in items] == [WorkItemState.FAILED]
