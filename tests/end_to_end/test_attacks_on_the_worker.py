"""Attacks on the worker as people run it: `worker.py` as a process, a real Temporal server, a provider."""

from __future__ import annotations

import asyncio
import dataclasses
import zlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from temporalio import workflow
from temporalio.api.common.v1 import Header, Payload, Payloads, WorkflowType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import StartWorkflowExecutionRequest
from temporalio.client import ActivityFailureError, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from tasquencer.core.carried import CarriedLineage, CarriedTask
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.sql import SqlLedger
from tasquencer.temporal.headers import pack
from tasquencer.temporal.wire import json_payload
from tests.end_to_end.stage import Stage
from tests.poison.test_hostile_answers import ENDLESS
from tests.poison.test_memory import MOST_GROWTH, peak_bytes
from tests.support.answers import Answer, ok, stall, status
from tests.support.batches import filled_batch
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ProviderRequest, ScriptedProvider
from tests.support.tasks import failure_of_task
from tests.workflows.test_authority import CALLS

BURST = 40
"""Requests that arrive together."""

MOST_WRITTEN = 5_000
"""Bytes of a ledger's file, and of a history, for one short attempt."""


HOSTILE_OUTPUTS = {name: (schema, text) for name, schema, text in ENDLESS}
"""By prompt: the schema asked for, and what the model answers."""


def script(request: ProviderRequest) -> Answer:
    if request.prompt == "fail":
        return status(503)
    if request.prompt in HOSTILE_OUTPUTS:
        return ok(HOSTILE_OUTPUTS[request.prompt][1])
    return stall() if request.prompt == "wait" else ok("Hi")


@dataclasses.dataclass(frozen=True)
class AttackedStage(Stage):
    """A stage with one worker.

    Attributes:
        worker_pid: The worker's process.
    """

    worker_pid: int


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(
    dev_server: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[AttackedStage]:
    """A stage whose worker runs for all tests of this module."""
    async with ScriptedProvider(script) as provider:
        made = await Stage.on(dev_server, provider, tmp_path_factory.mktemp("attacks"))
        async with made.worker() as worker:
            yield AttackedStage(**vars(made), worker_pid=worker.pid)


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


LARGE = "a" * 200_000
REPEATED = {"max_retries": 1_000, "retry": {"initial_interval_seconds": 0, "retry_on": "any"}}


@pytest.mark.parametrize(
    ("workflow_type", "asked"),
    [
        ("AiAgentTask", {"prompt": LARGE}),
        ("AiFanOutTask", {"prompts": [LARGE]}),
        ("ReviewedDraft", {"prompt": LARGE}),
    ],
)
async def test_a_large_request_cannot_be_written_a_thousand_times(
    stage: Stage, workflow_type: str, asked: dict[str, Any]
) -> None:
    more = {"max_revisions": 0} if workflow_type == "ReviewedDraft" else {}
    error = await failure_of_task(await start(stage, workflow_type, asked | REPEATED | more))
    assert error.type == "InvalidRequest"
    assert "max_retries: 1,001 attempts at a request of 200," in error.message


async def test_retries_without_a_pause_write_little(stage: Stage) -> None:
    before = stage.ledger_file.stat().st_size
    task = await start(stage, "AiAgentTask", {"prompt": "fail"} | REPEATED | {"max_retries": 99})
    await asyncio.wait_for(failure_of_task(task), PATIENCE_SECONDS)
    assert len(await stage.work_items(task)) == 100
    written = stage.ledger_file.stat().st_size - before
    assert written < 100 * MOST_WRITTEN
    info = (await task.describe()).raw_description.workflow_execution_info
    assert info.history_size_bytes < 100 * MOST_WRITTEN


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


async def test_a_batch_believes_nothing_that_a_client_carries_into_it(stage: Stage) -> None:
    outcome = {"position": 0, "row_id": "row-0", "state": "completed", "work_item_id": "w", "cost_usd": 999}
    carried = {"counts": {"pending": 1}, "cursor": 0, "open": [], "unrecorded": [outcome]}
    error = await failure_of_task(await start(stage, "AiBatchTask", {"carried": carried}))
    assert error.type == "InvalidRequest"
    assert "has no rows in the ledger" in error.message


async def start_on_a_schedule(stage: Stage, header: Payload) -> WorkflowHandle[Any, Any]:
    """Start a task every second with a header that claims to come from the run before."""
    name = f"attack-{uuid4()}"
    (prompt,) = await stage.client.data_converter.encode([{"prompt": "Hello?"}])
    request = StartWorkflowExecutionRequest(
        namespace=stage.client.namespace,
        workflow_id=name,
        workflow_type=WorkflowType(name="AiAgentTask"),
        task_queue=TaskQueue(name=stage.task_queue),
        input=Payloads(payloads=[prompt]),
        cron_schedule="@every 1s",
        workflow_task_timeout=Duration(seconds=int(PATIENCE_SECONDS)),
        request_id=str(uuid4()),
        header=Header(fields={"tasquencer-task": header}),
    )
    await stage.client.workflow_service.start_workflow_execution(request)
    return stage.client.get_workflow_handle(name)


async def test_a_task_does_not_take_over_what_a_client_says_that_it_carries(stage: Stage) -> None:
    victim = await stage.start("wait")
    item = await stage.work_item(victim, 0, WorkItemState.STARTED)
    forged = CarriedTask(
        lineages={"main": CarriedLineage(recipe=RetryRecipe())},
        work_items=[item],
        payloads={},
        sequences={item.id: 1},
    )
    attacker = await start_on_a_schedule(stage, pack(json_payload(forged)))

    async def three_runs() -> bool:
        return len(await stage.work_items(attacker)) >= 3

    await eventually(three_runs, "three runs of the attacker's task")
    await attacker.terminate()
    (found,) = await stage.work_items(victim)
    assert found == item
    await victim.cancel()


@pytest.mark.parametrize("what", ["values", "a gigabyte"])
async def test_a_header_that_unpacks_to_gigabytes_costs_little(stage: AttackedStage, what: str) -> None:
    bomb = b'{"x":[' + b"[]," * 5_000_000 + b"0]}" if what == "values" else b" " * 2**30
    packed = zlib.compressobj(9)
    pieces = [packed.compress(bomb[at : at + 2**20]) for at in range(0, len(bomb), 2**20)]
    data = b"".join(pieces) + packed.flush()
    encoding = {"encoding": b"tasquencer/zlib", "packed": b"json/plain"}
    before = peak_bytes(stage.worker_pid)
    attacker = await start_on_a_schedule(stage, Payload(metadata=encoding, data=data))

    async def refused() -> bool:
        events = [event async for event in attacker.fetch_history_events()]
        return any(event.HasField("workflow_task_failed_event_attributes") for event in events)

    await eventually(refused, "the second run to refuse its header")
    await still_works(stage)
    await attacker.terminate()
    assert peak_bytes(stage.worker_pid) - before < MOST_GROWTH


@pytest.mark.parametrize("attack", HOSTILE_OUTPUTS)
async def test_a_schema_without_end_holds_up_no_other_task(stage: Stage, attack: str) -> None:
    schema, _ = HOSTILE_OUTPUTS[attack]
    request = {"prompt": attack, "output_schema": schema, "max_retries": 0, "attempt_timeout_seconds": 10}
    task = await start(stage, "AiAgentTask", request)
    await still_works(stage)
    error = await asyncio.wait_for(failure_of_task(task), PATIENCE_SECONDS)
    assert error.type in ("NotRetryable", "RetriesExhausted"), error
    await still_works(stage)


@pytest.mark.parametrize("name", CALLS)
async def test_an_activity_that_is_executed_without_a_workflow_does_nothing(stage: Stage, name: str) -> None:
    """As `temporal activity execute` does."""
    requests = len(stage.provider.requests)
    with pytest.raises(ActivityFailureError) as caught:
        await stage.client.execute_activity(
            name,
            args=CALLS[name],
            id=f"attack-{uuid4()}",
            task_queue=stage.task_queue,
            start_to_close_timeout=timedelta(seconds=20),
            retry_policy=RetryPolicy(maximum_attempts=1),
        )
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == "NotAllowed"
    assert len(stage.provider.requests) == requests
    async with SqlLedger(f"sqlite:///{stage.ledger_file}") as ledger:
        assert await ledger.work_items_of("somebody-elses") == []
