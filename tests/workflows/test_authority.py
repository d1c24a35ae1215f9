"""Only the task's own run may use the bookkeeping, not every client that can reach the task queue."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import Worker

from tasquencer import RetryRecipe, Task, TasquencerPlugin
from tasquencer.ai import AiCalls, AiJob, ChatMessage
from tasquencer.ai.provider.client import make_client
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal.batch_calls import BEGIN, END, LOAD
from tasquencer.testing import InMemoryBatches, InMemoryLedger
from tests.ledger.stories import Life
from tests.support import answers
from tests.support.provider import ScriptedProvider

KEY = "test-key"


@workflow.defn(sandboxed=False, name="Attacker")
class Attacker:
    """Calls an activity of another application's worker, with input of its own making."""

    @workflow.run
    async def run(self, queue: str, name: str, argument: Any) -> str:
        try:
            await workflow.execute_activity(
                name,
                args=argument,
                task_queue=queue,
                start_to_close_timeout=timedelta(seconds=20),
                activity_id="w0",
            )
        except ActivityError as error:
            return (error.cause.type if isinstance(error.cause, ApplicationError) else None) or "nothing told"
        return "it worked"


@workflow.defn(sandboxed=False)
class Honest:
    """A task that makes one AI call."""

    @workflow.run
    async def run(self) -> Any:
        task = Task(recipe=RetryRecipe(max_retries=0))
        job = AiJob(messages=[ChatMessage(role="user", content="Why?")])
        async for work_item in task.attempts(job):
            async with work_item:
                work_item.complete(
                    await work_item.execute_activity(
                        "generate", job, start_to_close_timeout=timedelta(seconds=20)
                    )
                )
        return task.result()


def forged() -> list[Any]:
    life = Life(id="w0", task_id="somebody-elses", run_id="their-run")
    return [[entry.model_dump(mode="json") for entry in [life.initialized(), life.started()]], None]


JOB = {"messages": [{"role": "user", "content": "Why?"}]}
BATCH = {"batch_id": "their-batch", "rows": [], "outcomes": [], "state": "canceled", "after": -1, "limit": 1}
CALLS: dict[str, list[Any]] = {
    "tasquencer.record": forged(),
    "generate": [JOB],
    "tasquencer.reconcile": [{"grace_seconds": 0, "forgotten_after_seconds": 0, "size": 10, "after": None}],
    BEGIN: ["their-batch"],
    LOAD: [BATCH],
    END: [BATCH],
}


@pytest.mark.parametrize("name", CALLS)
async def test_an_activity_that_somebody_else_calls_does_nothing(
    dev_server: EmbeddedTemporal, name: str
) -> None:
    ledger, queue, theirs = InMemoryLedger(), f"queue-{uuid4()}", f"queue-{uuid4()}"
    async with (
        ScriptedProvider([answers.ok()]) as provider,
        make_client(api_key=KEY, base_url=provider.base_url) as model,
    ):
        plugin = TasquencerPlugin(ledger, InMemoryBatches(ledger), calls=AiCalls(model, "tiny-1"))
        client = await Client.connect(dev_server.address, plugins=[plugin])
        attacker = await Client.connect(dev_server.address)
        async with (
            Worker(client, task_queue=queue, workflows=[Honest]),
            Worker(attacker, task_queue=theirs, workflows=[Attacker]),
        ):
            told = await attacker.execute_workflow(
                "Attacker",
                args=[queue, name, CALLS[name]],
                id=f"attack-{uuid4()}",
                task_queue=theirs,
            )
    assert told == "NotAllowed"
    assert provider.requests == []
    assert await ledger.work_items_of("somebody-elses") == []


async def test_a_task_makes_its_call(dev_server: EmbeddedTemporal) -> None:
    ledger, queue = InMemoryLedger(), f"queue-{uuid4()}"
    async with (
        ScriptedProvider([answers.ok("Because.")]) as provider,
        make_client(api_key=KEY, base_url=provider.base_url) as model,
    ):
        plugin = TasquencerPlugin(ledger, calls=AiCalls(model, "tiny-1"))
        client = await Client.connect(dev_server.address, plugins=[plugin])
        async with Worker(client, task_queue=queue, workflows=[Honest]):
            try:
                result = await client.execute_workflow("Honest", id=f"honest-{uuid4()}", task_queue=queue)
            except WorkflowFailureError as error:
                raise AssertionError(error.cause) from error
    assert result["text"] == "Because."
    assert len(provider.requests) == 1
