"""What a worker decided and wrote before it died, and what the next one makes of it.

The worker dies after the commit and before its workflow task ends: the ledger holds decisions that no
history knows. Meanwhile somebody cancels the task, or acts on its work item, or its deadline comes near.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio.client import Client

from tasquencer.core.work_item import DelayReason, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.sql import SqlLedger
from tasquencer.temporal.histories import Histories
from tasquencer.temporal.projection import verify
from tests.activities.calling import activities_for
from tests.support import answers
from tests.support.answers import Hold
from tests.support.dying_worker import DEAD, Orders, dying_worker
from tests.support.late_task import LateTask
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import Script, ScriptedProvider
from tests.support.tasks import comes_to, failure_of_task, tasks_on, update_that_waits
from tests.workflows.cancel.scene import (
    ASK,
    LONG_BACKOFF,
    NO_BACKOFF,
    Handle,
    Scene,
    cancel,
    ends_canceled,
)
from workflows.ai_agent import AiAgentTask
from workflows.ai_fan_out import AiFanOutTask

INITIALIZED = WorkItemState.INITIALIZED
STARTED = WorkItemState.STARTED
COMPLETED = WorkItemState.COMPLETED
FAILED = WorkItemState.FAILED
CANCELED = WorkItemState.CANCELED


@dataclass
class Stage:
    """A task whose worker is about to die, and what the next worker needs."""

    server: EmbeddedTemporal
    provider: ScriptedProvider
    database: str
    queue: str
    handle: Handle
    dying: asyncio.subprocess.Process

    async def death(self) -> None:
        """Wait until the worker has died as ordered."""
        assert await asyncio.wait_for(self.dying.wait(), PATIENCE_SECONDS) == DEAD

    async def passes(self, since_start: timedelta) -> None:
        """Wait until the task is so old."""
        begun = (await self.handle.describe()).start_time
        await asyncio.sleep((begun + since_start - datetime.now(UTC)).total_seconds())

    async def holds(self) -> None:
        """Wait until the first answer is written: its write is held, and what comes now comes together."""
        completed = WorkItemFilter(task_id=self.handle.id, states=frozenset({COMPLETED}))
        async with SqlLedger(self.database) as ledger:

            async def probe() -> bool:
                return bool(await ledger.work_items(completed))

            await eventually(probe, "the first answer in the ledger")

    @asynccontextmanager
    async def next_worker(self) -> AsyncIterator[Scene]:
        """Another worker on the same queue and ledger."""
        async with (
            activities_for(self.provider.base_url) as activities,
            tasks_on(
                self.server.address,
                [AiAgentTask, AiFanOutTask, LateTask],
                [activities.generate],
                ledger=SqlLedger(self.database),
                task_queue=self.queue,
            ) as tasks,
        ):
            yield Scene(tasks, self.provider)


@asynccontextmanager
async def stage(
    server: EmbeddedTemporal,
    folder: Path,
    script: Script,
    request: Mapping[str, Any],
    orders: Orders,
    task_timeout: timedelta = timedelta(seconds=2),
    workflow: str | None = None,
) -> AsyncIterator[Stage]:
    queue, database = f"queue-{uuid4()}", f"sqlite:///{folder / 'ledger.db'}"
    async with ScriptedProvider(script) as provider:
        dying = await dying_worker(server.address, provider.base_url, database, queue, orders)
        client = await Client.connect(server.address)
        handle: Handle = await client.start_workflow(
            workflow or ("AiFanOutTask" if "prompts" in request else "AiAgentTask"),
            request,
            id=queue,
            task_queue=queue,
            task_timeout=task_timeout,
        )
        try:
            yield Stage(server, provider, database, queue, handle, dying)
        finally:
            if dying.returncode is None:
                dying.kill()
                await dying.wait()


@pytest.mark.parametrize(
    ("request_", "state", "attempt"),
    [
        pytest.param(ASK, INITIALIZED, 0, id="at the first record"),
        pytest.param(LONG_BACKOFF, FAILED, 0, id="a failure and a long backoff"),
        pytest.param(NO_BACKOFF, FAILED, 0, id="a failure and no backoff"),
        pytest.param(NO_BACKOFF, STARTED, 1, id="the start of a retry"),
    ],
)
async def test_a_cancel_that_comes_meanwhile_leaves_nothing_open(
    dev_server: EmbeddedTemporal,
    tmp_path: Path,
    request_: Mapping[str, object],
    state: WorkItemState,
    attempt: int,
) -> None:
    failures = 0 if state is INITIALIZED else 1
    script = [answers.status(503)] * failures
    async with stage(dev_server, tmp_path, script, request_, Orders(state, attempt)) as scene:
        await scene.death()
        await cancel(scene.handle)
        async with scene.next_worker() as now:
            await ends_canceled(scene.handle)
            items = await now.work_items(scene.handle)
            steps = [(await now.tasks.ledger.transitions(item.id))[-1] for item in items]
            await now.nothing_begins(failures)
    assert [item.state for item in items[:failures]] == [FAILED] * failures
    assert {item.state for item in items[failures:]} <= {CANCELED}
    assert {step.reason for step in steps[failures:]} <= {"the task was canceled"}


async def test_a_cancel_before_the_first_work_item_begins_again_leaves_nothing_open(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    """The worker died after its first write. The next one is canceled where the code still sleeps."""
    dies = Orders(INITIALIZED)
    async with stage(dev_server, tmp_path, [], {}, dies, workflow="LateTask") as scene:
        await scene.death()
        await cancel(scene.handle)
        async with scene.next_worker() as now:
            await ends_canceled(scene.handle)
            (item,) = await now.work_items(scene.handle)
    assert item.state is CANCELED


ACTIONS = {
    "complete_work_item": (COMPLETED, {"result": {"text": "from a person"}}),
    "fail_work_item": (FAILED, {}),
    "cancel_work_item": (CANCELED, {}),
}


@pytest.mark.parametrize("action", ACTIONS)
async def test_an_action_whose_worker_dies_after_the_write_is_done_again_by_the_next(
    dev_server: EmbeddedTemporal, tmp_path: Path, action: str
) -> None:
    state, more = ACTIONS[action]
    request = ASK | {"max_retries": 0, "heartbeat_timeout_seconds": 60}
    async with stage(dev_server, tmp_path, [answers.stall()], request, Orders(state)) as scene:
        await scene.provider.wait_for_requests(1)
        (item,) = await _listed(scene.handle)
        payload = {"actor": "anna", "work_item_id": item["id"], **more}
        acting = asyncio.create_task(scene.handle.execute_update(action, payload))
        await scene.death()
        async with scene.next_worker() as now:
            assert (await asyncio.wait_for(acting, PATIENCE_SECONDS))["state"] == state
            (known,) = await now.work_items(scene.handle)
            steps = await now.tasks.ledger.transitions(known.id)
            await now.nothing_begins(1, within=0.5)
            await scene.handle.terminate()
    assert known.state is state
    assert [(step.next_state, step.actor) for step in steps[1:]] == [(STARTED, "task"), (state, "anna")]


async def test_an_outcome_that_was_written_counts_before_an_action_that_came_after(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with stage(dev_server, tmp_path, [answers.status(503)], LONG_BACKOFF, Orders(FAILED)) as scene:
        await scene.provider.wait_for_requests(1)
        item_id = scene.provider.requests[0].idempotency_key
        await scene.death()
        payload = {"actor": "anna", "work_item_id": item_id, "result": {"text": "from a person"}}
        acting = await update_that_waits(scene.handle, "complete_work_item", payload)
        async with scene.next_worker() as now:
            with pytest.raises(Exception, match="Workflow update failed") as refused:
                await acting
            first, second = await now.work_items(scene.handle)
            await cancel(scene.handle)
            await ends_canceled(scene.handle)
    assert "first try is failed since" in str(refused.value.__cause__)
    assert (first.state, second.state) == (FAILED, INITIALIZED)


async def test_an_action_that_was_written_counts_before_an_outcome_that_came_after(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    """The worker that dies made the call, too: that it is lost becomes known while nobody is there."""
    request = LONG_BACKOFF | {"heartbeat_timeout_seconds": 10}
    async with stage(dev_server, tmp_path, [answers.stall()], request, Orders(CANCELED)) as scene:
        await scene.provider.wait_for_requests(1)
        (item,) = await _listed(scene.handle)
        payload = {"actor": "anna", "work_item_id": item["id"]}
        acting = asyncio.create_task(scene.handle.execute_update("cancel_work_item", payload))
        await scene.death()
        await comes_to(scene.handle, "activity_task_timed_out_event_attributes")
        async with scene.next_worker() as now:
            assert (await asyncio.wait_for(acting, PATIENCE_SECONDS))["state"] == "canceled"
            error = await failure_of_task(scene.handle)
            (known,) = await now.work_items(scene.handle)
    assert (error.type, known.state) == ("TaskFailed", CANCELED)


async def test_an_outcome_that_was_written_counts_before_an_action_whose_turn_came_after(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    """The action was taken on before the outcome came, and would have been carried out after it."""
    hold = Hold()
    script = [answers.stall(hold, answers.status(503))]
    orders = Orders(FAILED, news_seconds=10)  # the outcome is there before the action's turn comes
    async with stage(dev_server, tmp_path, script, LONG_BACKOFF, orders) as scene:
        await scene.provider.wait_for_requests(1)
        (item,) = await _listed(scene.handle)
        payload = {"actor": "anna", "work_item_id": item["id"]}
        acting = asyncio.create_task(scene.handle.execute_update("cancel_work_item", payload))
        await comes_to(scene.handle, "workflow_execution_update_accepted_event_attributes")
        hold.release()
        await scene.death()
        await _news(scene.handle)
        async with scene.next_worker() as now:
            with pytest.raises(Exception, match="Workflow update failed") as refused:
                await acting
            first, second = await now.work_items(scene.handle)
            await cancel(scene.handle)
            await ends_canceled(scene.handle)
    assert "first try is failed since" in str(refused.value.__cause__)
    assert (first.state, second.state) == (FAILED, INITIALIZED)


async def test_a_start_that_was_written_counts_before_a_retry_now_that_came_after(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    """The wait was over, so there is no wait left to end."""
    request = ASK | {"retry": {"initial_interval_seconds": 0.5}}
    refusal = Hold()
    script = [answers.status(503), answers.stall(refusal, answers.ok())]
    async with stage(dev_server, tmp_path, script, request, Orders(STARTED, 1)) as scene:
        await scene.death()
        acting = await update_that_waits(scene.handle, "retry_now", {"actor": "anna"})
        async with scene.next_worker() as now:
            with pytest.raises(Exception, match="Workflow update failed") as refused:
                await acting
            refusal.release()
            await scene.handle.result()
            _, second = await now.work_items(scene.handle)
            steps = await now.tasks.ledger.transitions(second.id)
    assert "no attempt is waiting" in str(refused.value.__cause__)
    assert (second.delay_reason, second.delay_seconds) == (DelayReason.BACKOFF, 0.5)
    assert [(step.next_state, step.actor) for step in steps][1:] == [(STARTED, "task"), (COMPLETED, "task")]


async def test_a_retry_that_was_written_and_is_now_too_late_is_settled(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    request = ASK | {"deadline_seconds": 40, "retry": {"initial_interval_seconds": 20}}
    async with stage(dev_server, tmp_path, [answers.status(503)], request, Orders(FAILED)) as scene:
        await scene.death()
        await scene.passes(timedelta(seconds=21))  # so long nobody is there that 20 more are too many
        async with scene.next_worker() as now:
            error = await failure_of_task(scene.handle)
            first, second = await now.work_items(scene.handle)
            step = (await now.tasks.ledger.transitions(second.id))[-1]
    assert error.type == "DeadlineExceeded"
    assert (first.state, second.state) == (FAILED, CANCELED)
    assert step.reason == "the task ended without it"


async def test_an_outcome_gives_way_where_another_now_ends_the_task(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    """Two outcomes came together: of each a retry was recorded, and for both it is now too late."""
    answer, hold = Hold(), tmp_path / "both have failed"
    held = answers.stall(answer, answers.status(503))
    request = {
        "prompts": ["one", "two", "three"],
        "deadline_seconds": 60,
        "retry": {"initial_interval_seconds": 40},
        "policy": "until_exhausted",
    }
    async with stage(
        dev_server,
        tmp_path,
        [answers.ok(), held, held],
        request,
        Orders(FAILED, together=2, hold=str(hold)),
        task_timeout=timedelta(seconds=10),
    ) as scene:
        await scene.provider.wait_for_requests(3)
        await scene.holds()
        answer.release()

        async def all_have_ended() -> bool:
            return not (await scene.handle.describe()).raw_description.pending_activities

        await eventually(all_have_ended, "the end of all three calls")
        hold.touch()
        await scene.death()
        await scene.passes(timedelta(seconds=21))  # so long nobody is there that 40 more are too many
        async with scene.next_worker() as now:
            error = await failure_of_task(scene.handle)
            known = await now.work_items(scene.handle)
            listed = await _listed(scene.handle)
            told = await Histories(now.tasks.client, [AiFanOutTask]).read(scene.handle.id)
            assert told is not None
            verified = await verify(told, now.tasks.ledger)
            replaced = await now.tasks.ledger.supersessions([item.id for item in known])
    assert error.type == "DeadlineExceeded"
    assert (verified.differences, verified.gaps) == ([], [])
    states = Counter((item.attempt, item.state) for item in known)
    assert states == {(0, COMPLETED): 1, (0, FAILED): 1, (0, CANCELED): 1, (1, CANCELED): 2}
    given_up = next(item for item in known if (item.attempt, item.state) == (0, CANCELED))
    ((kept,),) = [found for key, found in replaced.items() if key == given_up.id]
    assert kept.held["transitions"][0]["next_state"] == "failed"  # type: ignore[index, call-overload]
    first_tries = {item.id: item.state for item in known if item.attempt == 0}
    assert {item["id"]: item["state"] for item in listed} == first_tries


async def test_outcomes_that_came_together_keep_their_order_though_a_cancel_came_after_them(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    """The second answer decided the task and canceled the call that failed after it."""
    late, later, hold = Hold(), Hold(), tmp_path / "both have ended"
    script = {
        "fails": [answers.stall(later, answers.status(503))],
        "answers": [answers.stall(late, answers.ok())],
        "answers at once": [answers.ok()],
    }
    request = {"prompts": list(script), "policy": {"name": "require_successes", "successes": 2}}
    async with stage(
        dev_server,
        tmp_path,
        script,
        request,
        Orders(CANCELED, hold=str(hold)),
        task_timeout=timedelta(seconds=10),
    ) as scene:
        await scene.provider.wait_for_requests(3)

        def calls(left: int) -> Callable[[], Awaitable[bool]]:
            async def probe() -> bool:
                described = await scene.handle.describe()
                return len(described.raw_description.pending_activities) == left

            return probe

        await scene.holds()
        late.release()
        await eventually(calls(1), "the end of the second call")
        later.release()
        await eventually(calls(0), "the end of the third call")
        hold.touch()
        await scene.death()
        await cancel(scene.handle)
        async with scene.next_worker() as now:
            await ends_canceled(scene.handle)
            known = await now.work_items(scene.handle)
            listed = await _listed(scene.handle)
    states = {item.id: item.state for item in known}
    assert Counter(states.values()) == {COMPLETED: 2, CANCELED: 1}
    assert {item["id"]: item["state"] for item in listed} == states


async def _listed(handle: Handle) -> list[dict[str, Any]]:
    async def probe() -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = await handle.query("work_items")
        return listed

    return await eventually(probe, "the list of work items")


async def _news(handle: Handle) -> None:
    """Return once the timer has fired by which an action looks for news."""

    async def probe() -> bool:
        kinds = [event.WhichOneof("attributes") for event in (await handle.fetch_history()).events]
        accepted = kinds.index("workflow_execution_update_accepted_event_attributes")
        return "timer_fired_event_attributes" in kinds[accepted:]

    await eventually(probe, "the timer of the action")
