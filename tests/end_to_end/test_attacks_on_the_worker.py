"""Attacks on the worker as people run it: `worker.py` as a process, a real Temporal server, a provider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from temporalio import workflow
from temporalio.client import WorkflowHandle
from temporalio.worker import Worker

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.sql import SqlLedger
from tests.end_to_end.stage import Stage
from tests.support.answers import Answer, ok
from tests.support.batches import filled_batch
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import ProviderRequest, ScriptedProvider
from tests.support.tasks import failure_of_task

BURST = 40
"""Requests that arrive together."""


def script(request: ProviderRequest) -> Answer:
    return ok("Hi")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(
    dev_server: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stage]:
    """A stage whose worker runs for all tests of this module."""
    async with ScriptedProvider(script) as provider:
        made = await Stage.on(dev_server, provider, tmp_path_factory.mktemp("attacks"))
        async with made.worker():
            yield made


async def start(stage: Stage, workflow: str, request: Any) -> WorkflowHandle[Any, Any]:
    return await stage.client.start_workflow(
        workflow, request, id=f"attack-{uuid4()}", task_queue=stage.task_queue
    )


async def still_works(stage: Stage) -> None:
    """Fails unless the worker does somebody else's task."""
    result = await asyncio.wait_for((await stage.start("Hello?")).result(), PATIENCE_SECONDS)
    assert result["text"] == "Hi"


def conversation(messages: int, values: int) -> dict[str, Any]:
    content = [{"type": "text", "text": "a", "more": [1] * values}]
    return {"messages": [{"role": "user", "content": content}] * messages}


TOO_MUCH: dict[str, tuple[str, dict[str, Any], str]] = {
    "many values in many messages": ("AiAgentTask", conversation(20, 24_000), "messages: the input has"),
    "a little in each message": ("AiAgentTask", conversation(2_000, 0), "messages: the input has"),
    "of everything a part": (
        "AiAgentTask",
        conversation(400, 10) | {"metadata": {f"k{n}": "v" for n in range(1_000)}},
        "metadata: the input has",
    ),
    "in a draft": ("ReviewedDraft", conversation(20, 24_000), "messages: the input has"),
    "in a field that does not exist": ("AiFanOutTask", {"prompts": ["a"], "x": [1] * 400_000}, "x: the inp"),
}


@pytest.mark.parametrize("attack", TOO_MUCH)
async def test_a_burst_of_requests_with_too_many_values_is_refused_while_other_tasks_continue(
    stage: Stage, attack: str
) -> None:
    workflow, request, says = TOO_MUCH[attack]
    before = len(stage.provider.requests)
    burst = [await start(stage, workflow, request) for _ in range(BURST)]
    await still_works(stage)
    errors = await asyncio.wait_for(asyncio.gather(*map(failure_of_task, burst)), PATIENCE_SECONDS)
    assert {error.type for error in errors} == {"InvalidRequest"}
    assert all(says in error.message for error in errors)
    assert len(stage.provider.requests) == before + 1


async def test_a_burst_of_the_largest_requests_is_carried_out_beside_other_tasks(stage: Stage) -> None:
    burst = [await start(stage, "AiAgentTask", conversation(700, 0)) for _ in range(BURST)]
    await still_works(stage)
    results = await asyncio.wait_for(asyncio.gather(*(task.result() for task in burst)), PATIENCE_SECONDS)
    assert [result["text"] for result in results] == ["Hi"] * BURST


@workflow.defn(sandboxed=False, name="AiAgentTask")
class ForgedTask:
    """Says that another task's work item is its own, at a price of its choice."""

    @workflow.run
    async def run(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"text": "mine", "work_item_id": request["system"], "attempts": 1, "cost_usd": 999.0}


@workflow.defn(sandboxed=False, name="AiBatchTask")
class ForgedBatch:
    """Takes the id of a batch to come, and starts the task of its first row on the attacker's queue."""

    @workflow.run
    async def run(self, request: dict[str, Any]) -> None:
        row = f"{workflow.info().workflow_id}/row-0"
        await workflow.execute_child_workflow("AiAgentTask", request, id=row)


@pytest.mark.parametrize("claims", ["another task's work item", "a work item that does not exist"])
@pytest.mark.parametrize("workflow_type", ["AiAgentTask", "AiBatchTask"])
async def test_a_row_s_task_that_somebody_else_has_started_is_not_believed(
    stage: Stage, workflow_type: str, claims: str
) -> None:
    secret = await stage.start("confidential")
    await secret.result()
    (item,) = await stage.work_items(secret)
    batch, queue = f"batch-{uuid4()}", f"theirs-{uuid4()}"
    request = {"prompt": "Why?", "system": item.id if claims.startswith("another") else "no such"}
    forged = f"{batch}/row-0" if workflow_type == "AiAgentTask" else batch
    async with Worker(stage.client, task_queue=queue, workflows=[ForgedTask, ForgedBatch]):
        await stage.client.execute_workflow(workflow_type, request, id=forged, task_queue=queue)
        async with SqlLedger(f"sqlite:///{stage.ledger_file}") as ledger:
            await filled_batch(ledger.batches, batch, [request, "Hello?"])
            ours = await stage.client.start_workflow("AiBatchTask", {}, id=batch, task_queue=stage.task_queue)
            result = await asyncio.wait_for(ours.result(), PATIENCE_SECONDS)
            (lost,) = await ledger.batches.unanswered(batch, after=-1, limit=9, most_bytes=2**20)
            answers = await ledger.batches.answers(
                batch, order="position", after=-1, limit=9, most_bytes=2**20
            )
    assert (result["completed"], result["failed"]) == (1, 1)
    assert result["cost_usd"] in (None, 0)
    assert lost.failure is not None and (lost.row_id, lost.failure.type) == ("row-0", "IdTaken")
    assert [answer.row_id for answer in answers] == ["row-1"]
