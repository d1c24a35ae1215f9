"""The updates `pause_task` and `resume_task`: while a task is paused, no further attempt starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from temporalio import workflow
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import Replayer

from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.temporal import TasquencerPlugin, ask
from tasquencer.temporal.pausing import PAUSED
from tasquencer.testing import InMemoryLedger, ScriptedCalls as Answers
from tests.support.calls import GONE, Hang, ScriptedCalls
from tests.support.patience import eventually
from tests.support.tasks import Tasks, failure_of_task, tasks_on
from tests.workflows.adopted_runs import open_shop
from tests.workflows.test_operators import BY_ANNA, NO_BACKOFF, Handle, act, refusal
from tests.workflows.test_reset import of_run, reset_to
from workflows.ai_agent import AiAgentTask

INITIALIZED, STARTED = WorkItemState.INITIALIZED, WorkItemState.STARTED
COMPLETED, FAILED, CANCELED = WorkItemState.COMPLETED, WorkItemState.FAILED, WorkItemState.CANCELED
QUIET_SECONDS = 0.5


@workflow.defn
class ActivityThenAsk:
    """Makes no `Task`. It has an adopted activity, and then asks."""

    @workflow.run
    async def run(self) -> list[str]:
        found = await workflow.execute_activity(
            "hang",
            result_type=str,
            start_to_close_timeout=timedelta(seconds=120),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=10)),
        )
        return [found, await ask("What is it?")]


@asynccontextmanager
async def paused(
    server: EmbeddedTemporal, **options: Any
) -> AsyncIterator[tuple[Tasks, Handle, ScriptedCalls]]:
    """A task that was paused in its first call, which has failed since: its retry is held back."""
    calls = ScriptedCalls(Hang())
    async with tasks_on(server.address, [AiAgentTask], [calls.generate]) as tasks:
        handle = await tasks.start("AiAgentTask", {**NO_BACKOFF, **options})
        await calls.under_way.wait()
        (item,) = await tasks.work_items(handle)
        await handle.execute_update("pause_task", BY_ANNA)
        await act(handle, "fail_work_item", item.id)
        await states_become(tasks, handle, FAILED, INITIALIZED)
        yield tasks, handle, calls


async def states_become(tasks: Tasks, handle: Handle, *states: WorkItemState) -> None:
    async def there() -> bool:
        return [item.state for item in await tasks.work_items(handle)] == list(states)

    await eventually(there, f"work items that are {states}")


async def test_no_attempt_starts_until_the_task_is_resumed(dev_server: EmbeddedTemporal) -> None:
    async with paused(dev_server) as (tasks, handle, calls):
        await asyncio.sleep(QUIET_SECONDS)
        assert (len(calls.calls), (await tasks.work_items(handle))[-1].state) == (1, INITIALIZED)
        pause = (await (await handle.describe()).memo())[PAUSED]
        assert (pause["actor"], pause["reason"]) == ("anna", "I know better")
        assert (await handle.execute_update("resume_task", BY_ANNA)) == {"paused": None}
        await handle.result()
        first, second = await tasks.work_items(handle)
        assert (await (await handle.describe()).memo()).get(PAUSED) is None
    assert (second.state, [call.work_item_id for call in calls.calls]) == (COMPLETED, [first.id, second.id])


async def test_a_call_under_way_continues_and_its_outcome_counts(dev_server: EmbeddedTemporal) -> None:
    calls = ScriptedCalls(Hang())
    async with tasks_on(dev_server.address, [AiAgentTask], [calls.generate]) as tasks:
        handle = await tasks.start("AiAgentTask", NO_BACKOFF)
        await calls.under_way.wait()
        (item,) = await tasks.work_items(handle)
        await handle.execute_update("pause_task", BY_ANNA)
        assert calls.canceled == []
        await act(handle, "complete_work_item", item.id)
        assert (await handle.result())["text"] == "from a person"


async def test_what_makes_no_sense_is_refused(dev_server: EmbeddedTemporal) -> None:
    async with paused(dev_server) as (_, handle, _):
        said = [
            await refusal(handle.execute_update("pause_task", BY_ANNA)),
            await refusal(handle.execute_update("retry_now", BY_ANNA)),
        ]
        await handle.execute_update("resume_task", BY_ANNA)
        await handle.result()
    assert [one.split(" since ")[0] for one in said] == ["ActionRefused: the task is paused by anna"] * 2
    assert said[1].endswith("resume it first")


async def test_resume_without_a_pause_is_refused(dev_server: EmbeddedTemporal) -> None:
    calls = ScriptedCalls(Hang())
    async with tasks_on(dev_server.address, [AiAgentTask], [calls.generate]) as tasks:
        handle = await tasks.start("AiAgentTask", NO_BACKOFF)
        await calls.under_way.wait()
        said = await refusal(handle.execute_update("resume_task", BY_ANNA))
        await handle.terminate()
    assert said == "ActionRefused: the task is not paused"


async def test_a_paused_task_can_be_canceled(dev_server: EmbeddedTemporal) -> None:
    async with paused(dev_server) as (tasks, handle, _):
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as caught:
            await handle.result()
        await states_become(tasks, handle, FAILED, CANCELED)
    assert isinstance(caught.value.cause, CancelledError)


async def test_an_attempt_that_is_held_back_can_be_canceled(dev_server: EmbeddedTemporal) -> None:
    async with paused(dev_server) as (tasks, handle, _):
        await act(handle, "cancel_work_item", (await tasks.work_items(handle))[-1].id)
        error = await failure_of_task(handle)
        await states_become(tasks, handle, FAILED, CANCELED)
    assert isinstance(error, ApplicationError)


async def test_a_pause_does_not_stop_the_deadline(dev_server: EmbeddedTemporal) -> None:
    # The deadline leaves a busy machine time to pause the task first.
    async with paused(dev_server, deadline_seconds=12) as (tasks, handle, calls):
        error = await failure_of_task(handle)
        await states_become(tasks, handle, FAILED, CANCELED)
    assert (error.type, len(calls.calls)) == ("DeadlineExceeded", 1)


async def test_a_pause_outlives_the_run_and_the_worker() -> None:
    often = {"limit.historyCount.suggestContinueAsNew": 5}
    answers, ledger = asyncio.Event(), InMemoryLedger()

    async def waits(_: str) -> None:
        calls.under_way.set()
        await answers.wait()

    calls = ScriptedCalls(GONE, before=waits)
    async with embedded_temporal(ui=False, dynamic_config=often) as server:
        async with tasks_on(server.address, [AiAgentTask], [calls.generate], ledger=ledger) as tasks:
            handle = await tasks.start("AiAgentTask", NO_BACKOFF)
            await calls.under_way.wait()
            await handle.execute_update("pause_task", BY_ANNA)
            answers.set()
            latest = tasks.client.get_workflow_handle(handle.id)

            async def is_paused_again() -> bool:
                present = await latest.describe()
                return present.run_id != handle.result_run_id and PAUSED in await present.memo()

            await eventually(is_paused_again, "the pause in the next run")
        queue = tasks.task_queue
        async with tasks_on(
            server.address, [AiAgentTask], [calls.generate], ledger=ledger, task_queue=queue
        ) as tasks:
            await asyncio.sleep(QUIET_SECONDS)
            assert len(calls.calls) == 1
            await latest.execute_update("resume_task", BY_ANNA)
            await latest.result()
            first, second = await tasks.work_items(latest)
    assert [call.work_item_id for call in calls.calls] == [first.id, second.id]


async def test_a_pause_outlives_a_reset(dev_server: EmbeddedTemporal) -> None:
    async with paused(dev_server) as (tasks, handle, calls):
        started = [
            event.event_id
            async for event in handle.fetch_history_events()
            if event.HasField("workflow_task_started_event_attributes")
        ]
        again = await reset_to(tasks, handle, started[-1])

        async def is_held() -> bool:
            items = of_run(await tasks.work_items(again), again)
            return bool(items) and items[-1].state is INITIALIZED

        await eventually(is_held, "the work item of the new run")
        await asyncio.sleep(QUIET_SECONDS)
        assert len(calls.calls) == 1
        await again.execute_update("resume_task", BY_ANNA)
        await again.result()


async def test_a_pause_holds_adopted_activities_and_calls_of_ask(dev_server: EmbeddedTemporal) -> None:
    ledger, answers = InMemoryLedger(), Answers(["a moon"])
    plugin = TasquencerPlugin(ledger, calls=answers, adopt_activities=["*"])
    client = await Client.connect(dev_server.address, plugins=[plugin])
    async with open_shop(client, workflows=[ActivityThenAsk]) as (queue, shop):
        tasks = Tasks(client, queue, ledger)
        handle = await tasks.start("ActivityThenAsk")
        await states_become(tasks, handle, STARTED)

        async def made() -> bool:
            return "hang" in shop.made

        await eventually(made, "the call, which is recorded before it is made")
        await handle.execute_update("pause_task", BY_ANNA)
        await act(handle, "fail_work_item", (await tasks.work_items(handle))[-1].id)
        await states_become(tasks, handle, FAILED, INITIALIZED)
        await asyncio.sleep(QUIET_SECONDS)
        assert (shop.made["hang"], (await tasks.work_items(handle))[-1].state) == (1, INITIALIZED)
        assert "paused by anna" in await details(handle)
        await handle.execute_update("resume_task", BY_ANNA)
        await states_become(tasks, handle, FAILED, STARTED)
        assert "paused" not in await details(handle)

        await handle.execute_update("pause_task", BY_ANNA)
        await act(handle, "complete_work_item", (await tasks.work_items(handle))[-1].id, result="Io")
        await states_become(tasks, handle, FAILED, COMPLETED, INITIALIZED)
        await asyncio.sleep(QUIET_SECONDS)
        assert (answers.jobs, (await tasks.work_items(handle))[-1].state) == ([], INITIALIZED)
        assert "paused by anna" in await details(handle)
        await handle.execute_update("resume_task", BY_ANNA)
        assert await handle.result() == ["Io", "a moon"]
        replayer = Replayer(workflows=[ActivityThenAsk], plugins=[TasquencerPlugin(InMemoryLedger())])
        await replayer.replay_workflow(await handle.fetch_history())


async def details(handle: Handle) -> str:
    metadata = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    return metadata.current_details.replace("\u00a0", " ")
