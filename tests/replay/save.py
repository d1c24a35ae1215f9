"""Record a history of each shape: `python -m tests.replay.save`.

Run it once for each release and commit what it adds. It keeps what is there: a recorded history is a
promise to the tasks that are under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from temporalio.client import Client, WorkflowFailureError

from tasquencer.devkit.temporal_server import embedded_temporal
from tasquencer.testing import InMemoryBatches, ScriptedCalls
from tests.replay.adopted import AdoptedShop, adopted_activities
from tests.replay.asked import AskingSideBySide, AskingTask, AskingWithTask
from tests.replay.followed import FollowedTask, FollowingTask
from tests.replay.shapes import Shape, remind, shapes, tool_activity
from tests.support.batches import filled_batch
from tests.support.tasks import tasks_on
from workflows.ai_agent import AiAgentTask
from workflows.ai_batch import AiBatchTask
from workflows.ai_fan_out import AiFanOutTask
from workflows.reviewed_draft import ReviewedDraft

WORKFLOWS = [
    AiAgentTask,
    AiFanOutTask,
    AiBatchTask,
    ReviewedDraft,
    FollowedTask,
    FollowingTask,
    AdoptedShop,
    AskingTask,
    AskingSideBySide,
    AskingWithTask,
]
HISTORIES = Path(__file__).parent / "histories"


class CallsOfTheShape(ScriptedCalls):
    """Lets workflows ask, while the worker's activities are those of the shape."""

    def __init__(self) -> None:
        super().__init__([])

    @property
    def activities(self) -> list[Callable[..., Awaitable[Any]]]:
        """None of its own."""
        return []


async def main() -> None:
    """Record what is missing."""
    async with embedded_temporal(
        ui=False, dynamic_config={"limit.historyCount.suggestContinueAsNew": 100}
    ) as server:
        for name, shape in shapes().items():
            if not list(HISTORIES.glob(f"{name}.*.json")):
                await record(server.address, name, shape)


async def record(server: str, name: str, shape: Shape) -> None:
    """Run the shape's task and save the history of each of its runs."""
    batches = InMemoryBatches(shape.ledger)
    async with tasks_on(
        server,
        WORKFLOWS,
        [shape.calls.generate, tool_activity(), remind, *adopted_activities()],
        ledger=shape.ledger,
        batches=batches,
        adopt_activities=["charge*"],
        calls=CallsOfTheShape(),
    ) as tasks:
        workflow_id = f"{shape.workflow}-{uuid4()}"
        await filled_batch(batches, workflow_id, shape.rows, **shape.defaults)
        handle = await tasks.client.start_workflow(
            shape.workflow,
            shape.request,
            id=workflow_id,
            task_queue=tasks.task_queue,
            start_delay=shape.start_delay or None,
        )
        if shape.meanwhile is not None:
            await shape.meanwhile(tasks, handle)
        with contextlib.suppress(WorkflowFailureError):
            await handle.result()
        runs = await _runs(tasks.client, handle.id)
        for number, run_id in enumerate(runs):
            history = await tasks.client.get_workflow_handle(handle.id, run_id=run_id).fetch_history()
            saved = json.dumps(_without_stack_traces(json.loads(history.to_json())), indent=1)
            (HISTORIES / f"{name}.{number}.json").write_text(saved + "\n")
    print(f"{name}: {len(runs)} run(s)")


def _without_stack_traces(part: Any) -> Any:
    """They name folders of the machine that recorded them; replay does not look at them."""
    if isinstance(part, dict):
        return {key: _without_stack_traces(value) for key, value in part.items() if key != "stackTrace"}
    return [_without_stack_traces(value) for value in part] if isinstance(part, list) else part


async def _runs(client: Client, workflow_id: str) -> list[str]:
    """The ids of a task's runs, oldest first."""
    runs: list[str] = []
    run_id = (await client.get_workflow_handle(workflow_id).describe()).run_id
    while run_id:
        runs.insert(0, run_id)
        first = await anext(client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history_events())
        run_id = first.workflow_execution_started_event_attributes.continued_execution_run_id
    return runs


if __name__ == "__main__":
    HISTORIES.mkdir(exist_ok=True)
    asyncio.run(main())
