"""Temporal's own commands for activities (`temporal activity pause` …), on an AI call of a real server's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import PauseActivityRequest, ResetActivityRequest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import CancelledError
from temporalio.worker import Worker

from tasquencer import Task
from tasquencer.ai import AiCalls
from tasquencer.ai.provider.client import make_client
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import TasquencerPlugin, pauses
from tasquencer.testing import InMemoryLedger
from tests.activities.calling import KEY
from tests.support import answers
from tests.support.answers import Answer, Hold
from tests.support.calls import Freeze, ScriptedCalls
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ScriptedProvider
from tests.support.tasks import Tasks, comes_to, executable, history, tasks_on
from workflows.ai_agent import AiAgentTask

ASK = {"prompt": "?", "retry": {"initial_interval_seconds": 0}}
MORE_ATTEMPTS = ("update-options", "--retry-maximum-attempts", "5", "--retry-initial-interval", "1s")
COMPLETED, FAILED, CANCELED = WorkItemState.COMPLETED, WorkItemState.FAILED, WorkItemState.CANCELED


@dataclass
class Scene:
    """A task whose AI call an operator acts on."""

    server: EmbeddedTemporal
    tasks: Tasks
    provider: ScriptedProvider
    worker: Worker
    pauses_seen: asyncio.Queue[str]
    handle: WorkflowHandle[Any, Any] = field(init=False)

    async def call_under_way(self, **options: Any) -> None:
        self.handle = await self.tasks.start("AiAgentTask", {**ASK, **options})
        await self.provider.wait_for_requests(1)

    async def command(self, name: str, *options: str) -> None:
        """Run `temporal activity …` on the call that is pending."""
        item = (await self.work_items())[-1]
        await command(self.server, self.handle.id, item.id, name, *options)

    async def pause(self) -> None:
        """Pause the call, and return once its worker has seen that."""
        await self.command("pause")
        await asyncio.wait_for(self.pauses_seen.get(), PATIENCE_SECONDS)

    async def work_items(self) -> list[WorkItem]:
        return await self.tasks.work_items(self.handle)

    @property
    def keys(self) -> list[str | None]:
        return [request.idempotency_key for request in self.provider.requests]


async def command(server: EmbeddedTemporal, task: str, work_item_id: str, name: str, *options: str) -> None:
    program = await asyncio.create_subprocess_exec(
        executable("temporal"),
        "activity",
        name,
        *("--workflow-id", task, "--activity-id", work_item_id, "--address", server.address, *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await program.communicate()
    assert program.returncode == 0, said.decode()


@asynccontextmanager
async def scene(
    server: EmbeddedTemporal, script: Sequence[Answer], *, grace_period: timedelta = timedelta(0)
) -> AsyncIterator[Scene]:
    ledger, queue = InMemoryLedger(), f"queue-{uuid4()}"
    seen: asyncio.Queue[str] = asyncio.Queue()
    known = pauses._while_paused

    async def noted(*args: Any) -> Any:
        seen.put_nowait(activity.info().activity_id)
        return await known(*args)

    async with (
        ScriptedProvider(list(script), then=answers.ok("second")) as provider,
        make_client(api_key=KEY, base_url=provider.base_url) as model,
    ):
        calls = AiCalls(model, "tiny-1", heartbeat_interval=timedelta(seconds=0.05))
        client = await Client.connect(server.address, plugins=[TasquencerPlugin(ledger, calls=calls)])
        worker = Worker(
            client,
            task_queue=queue,
            workflows=[AiAgentTask],
            max_heartbeat_throttle_interval=timedelta(seconds=0.05),
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
            graceful_shutdown_timeout=grace_period,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pauses, "_while_paused", noted)
            async with worker:
                yield Scene(server, Tasks(client, queue, ledger), provider, worker, seen)


async def test_a_paused_call_keeps_its_outcome(server_without_pushes: EmbeddedTemporal) -> None:
    hold = Hold()
    async with scene(server_without_pushes, [answers.stall(hold)]) as now:
        await now.call_under_way()
        await now.pause()
        hold.release()
        result = await now.handle.result()
        (item,) = await now.work_items()
    assert (result["text"], item.state, now.keys) == ("Hello!", COMPLETED, [item.id])


async def test_a_paused_call_that_fails_is_retried_by_the_recipe(
    server_without_pushes: EmbeddedTemporal,
) -> None:
    hold = Hold()
    async with scene(server_without_pushes, [answers.stall(hold, answers.status(503))]) as now:
        await now.call_under_way()
        await now.pause()
        hold.release()
        result = await now.handle.result()
        first, second = await now.work_items()
    assert first.failure is not None
    assert (first.failure.kind, second.state, result["text"]) == ("provider_error", COMPLETED, "second")
    assert now.keys == [first.id, second.id]


async def test_a_call_that_was_paused_and_unpaused_is_one_request(
    server_without_pushes: EmbeddedTemporal,
) -> None:
    hold = Hold()
    async with scene(server_without_pushes, [answers.stall(hold)]) as now:
        await now.call_under_way()
        await now.pause()
        await now.command("unpause")
        hold.release()
        await now.handle.result()
        (item,) = await now.work_items()
    assert (item.state, now.keys) == (COMPLETED, [item.id])


async def test_a_paused_call_is_still_canceled_with_its_task(server_without_pushes: EmbeddedTemporal) -> None:
    async with scene(server_without_pushes, [answers.stall()]) as now:
        await now.call_under_way()
        await now.pause()
        await now.handle.cancel()
        with pytest.raises(WorkflowFailureError) as caught:
            await now.handle.result()
        request = await now.provider.wait_for_end(0)
        (item,) = await now.work_items()
    assert isinstance(caught.value.cause, CancelledError)
    assert (request.client_left, item.state) == (True, CANCELED)


async def test_a_worker_that_stops_ends_its_paused_call_with_the_grace_period(
    server_without_pushes: EmbeddedTemporal,
) -> None:
    async with scene(server_without_pushes, [answers.stall()], grace_period=timedelta(seconds=0.2)) as now:
        await now.call_under_way()
        await now.pause()
        await asyncio.wait_for(now.worker.shutdown(), PATIENCE_SECONDS)
        await comes_to(now.handle, "activity_task_failed_event_attributes")
        events = await history(now.handle)
        await now.handle.terminate()
    (failed,) = (event for event in events if event.HasField("activity_task_failed_event_attributes"))
    told = failed.activity_task_failed_event_attributes.failure.application_failure_info
    assert (told.type, told.non_retryable, len(now.keys)) == ("worker_shutdown", True, 1)


RESETS: dict[str, list[tuple[str, ...]]] = {
    "reset": [("reset",)],
    "paused": [("pause",), ("reset",)],
    "kept paused": [("pause",), ("reset", "--keep-paused")],
    "with more attempts": [MORE_ATTEMPTS, ("reset", "--clear-heartbeat-details")],
}


@pytest.mark.parametrize("commands", RESETS.values(), ids=RESETS)
async def test_a_reset_ends_the_attempt_and_the_recipe_makes_the_next(
    server_without_pushes: EmbeddedTemporal, commands: list[tuple[str, ...]]
) -> None:
    async with scene(server_without_pushes, [answers.stall()]) as now:
        await now.call_under_way()
        for one in commands:
            if one == ("pause",):
                await now.pause()
            else:
                await now.command(*one)
        result = await now.handle.result()
        first, second = await now.work_items()
        request = await now.provider.wait_for_end(0)
    assert first.failure is not None
    assert (first.state, first.failure.kind, first.failure.outcome_unknown) == (FAILED, "operator", True)
    assert "reset" in first.failure.message
    assert (second.state, result["text"], request.client_left) == (COMPLETED, "second", True)
    assert now.keys == [first.id, second.id]


async def test_where_cancels_are_pushed_the_next_heartbeat_brings_a_pause_and_a_reset(
    dev_server: EmbeddedTemporal,
) -> None:
    async with scene(dev_server, [answers.stall()]) as now:
        await now.call_under_way(heartbeat_timeout_seconds=12)  # a heartbeat every 4 s, which may be late
        await now.pause()
        await now.command("reset")
        await now.handle.result()
        first, second = await now.work_items()
    assert first.failure is not None
    assert (first.failure.kind, second.state, now.keys) == ("operator", COMPLETED, [first.id, second.id])


async def test_pause_and_reset_by_any_client(server_without_pushes: EmbeddedTemporal) -> None:
    async with scene(server_without_pushes, [answers.stall()]) as now:
        await now.call_under_way()
        (item,) = await now.work_items()
        client = now.tasks.client
        where: dict[str, Any] = {
            "namespace": client.namespace,
            "execution": WorkflowExecution(workflow_id=now.handle.id),
            "id": item.id,
        }
        await client.workflow_service.pause_activity(PauseActivityRequest(**where))
        await asyncio.wait_for(now.pauses_seen.get(), PATIENCE_SECONDS)
        await client.workflow_service.reset_activity(ResetActivityRequest(**where))
        await now.handle.result()
        first, second = await now.work_items()
    assert first.failure is not None
    assert (first.failure.kind, second.state, now.keys) == ("operator", COMPLETED, [first.id, second.id])


@pytest.mark.parametrize("is_paused", [False, True])
async def test_fail_ends_the_attempt_with_the_given_reason(
    server_without_pushes: EmbeddedTemporal, is_paused: bool
) -> None:
    async with scene(server_without_pushes, [answers.stall()]) as now:
        await now.call_under_way()
        if is_paused:
            await now.pause()
        await now.command("fail", "--reason", "it hangs")
        await now.handle.result()
        first, second = await now.work_items()
        transition = (await now.tasks.ledger.transitions(first.id))[-1]
        request = await now.provider.wait_for_end(0)
    assert first.failure is not None
    assert (first.failure.kind, first.failure.transient, second.state) == ("operator", True, COMPLETED)
    assert first.failure.message.endswith(": it hangs")
    assert (transition.reason, transition.actor.split(":")[0]) == ("it hangs", "temporal-cli")
    assert (first.worker, request.client_left) == (second.worker, True)
    assert now.keys == [first.id, second.id]


@pytest.mark.parametrize("is_paused", [False, True])
async def test_complete_ends_the_attempt_with_the_given_answer(
    server_without_pushes: EmbeddedTemporal, is_paused: bool
) -> None:
    async with scene(server_without_pushes, [answers.stall()]) as now:
        await now.call_under_way()
        if is_paused:
            await now.pause()
        await now.command("complete", "--result", '{"text": "from a person"}')
        result = await now.handle.result()
        (item,) = await now.work_items()
        request = await now.provider.wait_for_end(0)
    assert (result["text"], item.state, request.client_left) == ("from a person", COMPLETED, True)
    assert now.keys == [item.id]


@pytest.mark.parametrize("commands", [[("pause",), ("unpause",)], [("reset",)], [MORE_ATTEMPTS]])
async def test_what_is_done_to_a_call_in_the_queue_costs_no_attempt(
    server_without_pushes: EmbeddedTemporal, commands: list[tuple[str, ...]]
) -> None:
    async with tasks_on(server_without_pushes.address, [AiAgentTask], []) as tasks:
        handle = await tasks.start("AiAgentTask", ASK)
        await comes_to(handle, "activity_task_scheduled_event_attributes")
        (item,) = await tasks.work_items(handle)
        for name, *options in commands:
            await command(server_without_pushes, handle.id, item.id, name, *options)
        async with (
            ScriptedProvider([answers.ok()]) as provider,
            make_client(api_key=KEY, base_url=provider.base_url) as model,
        ):
            calls = AiCalls(model, "tiny-1")
            plugin = TasquencerPlugin(tasks.ledger, calls=calls)
            client = await Client.connect(server_without_pushes.address, plugins=[plugin])
            async with Worker(client, task_queue=tasks.task_queue, workflows=[AiAgentTask]):
                await handle.result()
        (item,) = await tasks.work_items(handle)
    assert (item.state, [request.idempotency_key for request in provider.requests]) == (COMPLETED, [item.id])


async def test_a_lost_worker_brings_no_second_run_though_there_are_more_attempts(
    server_without_pushes: EmbeddedTemporal,
) -> None:
    calls, server = ScriptedCalls(Freeze()), server_without_pushes
    async with tasks_on(server.address, [AiAgentTask], []) as tasks:
        handle = await tasks.start("AiAgentTask", {**ASK, "heartbeat_timeout_seconds": 3})
        await comes_to(handle, "activity_task_scheduled_event_attributes")
        (item,) = await tasks.work_items(handle)
        await command(server, handle.id, item.id, *MORE_ATTEMPTS)  # before the call can be lost
        async with tasks_on(server.address, [], [calls.generate], task_queue=tasks.task_queue):
            await handle.result()
        first, second = await tasks.work_items(handle)
    assert first.failure is not None
    assert (first.failure.kind, second.state) == ("worker_lost", COMPLETED)
    assert [call.work_item_id for call in calls.calls] == [first.id, second.id]


class OwnCalls:
    """An activity that fails the first time, once it is let go."""

    def __init__(self) -> None:
        self.hold = Hold()
        self.runs: list[str] = []

    @activity.defn(name="own_work")
    async def work(self) -> str:
        self.runs.append(activity.info().activity_id)
        if len(self.runs) > 1:
            return "done"
        await self.hold.wait()
        raise ValueError("wrong")


@workflow.defn(name="OwnWork")
class OwnWork:
    def __init__(self) -> None:
        self._task = Task()

    @workflow.run
    async def run(self) -> Any:
        async for work_item in self._task.attempts("something"):
            async with work_item:
                done = await work_item.execute_activity(
                    "own_work", result_type=str, start_to_close_timeout=timedelta(minutes=1)
                )
                work_item.complete(done)
        return self._task.result()


@pytest.mark.parametrize("commands", [[MORE_ATTEMPTS], [("pause",), ("unpause",)]])
async def test_an_activity_of_ones_own_runs_once_for_each_work_item(
    server_without_pushes: EmbeddedTemporal, commands: list[tuple[str, ...]]
) -> None:
    own = OwnCalls()
    async with tasks_on(server_without_pushes.address, [OwnWork], [own.work]) as tasks:
        handle = await tasks.start("OwnWork")

        async def runs() -> bool:
            return bool(own.runs)

        await eventually(runs, "the first run")
        (item,) = await tasks.work_items(handle)
        held, *after = commands
        await command(server_without_pushes, handle.id, item.id, *held)
        own.hold.release()
        if after:
            await settles(handle)
        for one in after:
            await command(server_without_pushes, handle.id, item.id, *one)
        assert await handle.result() == "done"
        first, second = await tasks.work_items(handle)
    assert first.failure is not None
    assert (first.failure.kind, second.state) == ("operator", COMPLETED)
    assert own.runs == [first.id, second.id]


async def settles(handle: WorkflowHandle[Any, Any]) -> None:
    """Return once the pending activity has failed and waits for its next run."""

    async def probe() -> bool:
        pending = (await handle.describe()).raw_description.pending_activities
        return any(one.HasField("last_failure") for one in pending)

    await eventually(probe, "the failure of the paused activity")
