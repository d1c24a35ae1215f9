"""Actions from outside, on the real dev server: every action in every state of a work item."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import WorkflowHandle, WorkflowUpdateFailedError, WorkflowUpdateStage
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from tasquencer import RetryRecipe, Task, absorb_failures
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tests.support.calls import ANSWER, GONE, Hang, ScriptedCalls, Step
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.tasks import Tasks, comes_to, failure_of_task, history, tasks_on
from workflows.ai_agent import AiAgentTask

Handle = WorkflowHandle[Any, Any]

LONG_BACKOFF = {"prompt": "?", "retry": {"initial_interval_seconds": 3600}}
NO_BACKOFF = {"prompt": "?", "retry": {"initial_interval_seconds": 0}}
BY_ANNA = {"actor": "anna", "reason": "I know better"}


@asynccontextmanager
async def task_in(
    server: EmbeddedTemporal, state: str, request: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Tasks, Handle, WorkItem, ScriptedCalls]]:
    """A task whose last work item is in this state."""
    calls = ScriptedCalls(Hang() if state == "started" else GONE)
    async with tasks_on(server.address, [AiAgentTask], [calls.generate]) as tasks:
        handle = await tasks.start("AiAgentTask", request or LONG_BACKOFF)

        async def probe() -> WorkItem | None:
            items = await tasks.work_items(handle)
            return items[-1] if items and items[-1].state == state else None

        item = await eventually(probe, f"a work item that is {state}")
        if state == "started":
            await calls.under_way.wait()
        try:
            yield tasks, handle, item, calls
        finally:
            with contextlib.suppress(RPCError):  # it has ended already
                await handle.terminate()


async def act(handle: Handle, action: str, work_item_id: str | None, **more: object) -> Any:
    """Send the update as any client would: one JSON object."""
    payload = {**BY_ANNA, **({"work_item_id": work_item_id} if work_item_id else {}), **more}
    if action == "complete_work_item":
        payload = {"result": {"text": "from a person"}, **payload}
    return await handle.execute_update(action, payload)


async def refusal(doing: Awaitable[Any]) -> str:
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await doing
    assert isinstance(caught.value.cause, ApplicationError)
    return f"{caught.value.cause.type}: {caught.value.cause.message}"


OPEN_ACTIONS = {
    ("initialized", "retry_now"): "completed",
    ("initialized", "cancel_work_item"): "canceled",
    ("started", "complete_work_item"): "completed",
    ("started", "fail_work_item"): "failed",
    ("started", "cancel_work_item"): "canceled",
}
STATES = ["initialized", "started"]
ACTIONS = ["retry_now", "complete_work_item", "fail_work_item", "cancel_work_item"]


@pytest.mark.parametrize(("state", "action"), OPEN_ACTIONS)
async def test_an_action_that_the_state_allows_leads_to_its_state(
    dev_server: EmbeddedTemporal, state: str, action: str
) -> None:
    async with task_in(dev_server, state) as (tasks, handle, item, calls):
        await act(handle, action, None if action == "retry_now" else item.id)

        async def ended() -> WorkItem | None:
            found = next(one for one in await tasks.work_items(handle) if one.id == item.id)
            return found if found.state.is_terminal else None

        found = await eventually(ended, "the work item to end")
        log = await tasks.ledger.transitions(item.id)
        if state == "started":
            await eventually(lambda: _true(calls.canceled == [item.id]), "the call to be stopped")
    assert found.state == OPEN_ACTIONS[state, action]
    by_anna = next(step for step in log if step.actor == "anna")
    assert "I know better" in (by_anna.reason or "")
    assert by_anna.next_state == ("started" if action == "retry_now" else OPEN_ACTIONS[state, action])


@pytest.mark.parametrize(("state", "action"), OPEN_ACTIONS)
async def test_the_answer_to_an_action_comes_with_an_event(
    dev_server: EmbeddedTemporal, state: str, action: str
) -> None:
    """The SDK loses an answer that a replay gives at the result of a write: the task would stand still."""
    async with task_in(dev_server, state) as (_, handle, item, _):
        await act(handle, action, None if action == "retry_now" else item.id)
        events = (await handle.fetch_history()).events
    answer = next(
        one for one in events if one.HasField("workflow_execution_update_completed_event_attributes")
    )
    ends = [one.event_id for one in events if one.HasField("workflow_task_completed_event_attributes")]
    before, end = [known for known in ends if known < answer.event_id][-2:]
    news = [one for one in events[before:end] if one.HasField("timer_fired_event_attributes")]
    started = [events[one.timer_fired_event_attributes.started_event_id - 1] for one in news]
    assert any(b"look for news" in one.user_metadata.summary.data for one in started)


async def _true(value: bool) -> bool:
    return value


@pytest.mark.parametrize(
    ("state", "action"),
    [(state, action) for state in STATES for action in ACTIONS if (state, action) not in OPEN_ACTIONS],
)
async def test_an_action_that_the_state_forbids_is_refused_and_changes_nothing(
    dev_server: EmbeddedTemporal, state: str, action: str
) -> None:
    async with task_in(dev_server, state) as (tasks, handle, item, _):
        before = await tasks.work_items(handle)
        said = await refusal(act(handle, action, None if action == "retry_now" else item.id))
        assert await tasks.work_items(handle) == before
    assert said.startswith("ActionRefused: ")
    assert f"is {state}" in said


async def test_an_action_on_an_ended_work_item_says_since_when_and_how_it_ended(
    dev_server: EmbeddedTemporal,
) -> None:
    async with task_in(dev_server, "initialized") as (tasks, handle, _, _calls):
        first, _ = await tasks.work_items(handle)
        said = [await refusal(act(handle, action, first.id)) for action in ACTIONS[1:]]
    assert first.ended_at is not None
    for one in said:
        assert "first try is failed since" in one
        assert f"{first.ended_at:%Y-%m-%d %H:%M:%S} UTC (unreachable: connection refused)" in one


@pytest.mark.parametrize("action", ACTIONS[1:])
async def test_an_unknown_work_item_is_refused(dev_server: EmbeddedTemporal, action: str) -> None:
    async with task_in(dev_server, "started") as (_, handle, _, _calls):
        assert "has no work item 'nobody'" in await refusal(act(handle, action, "nobody"))


@pytest.mark.parametrize(
    ("action", "payload", "says"),
    [
        ("retry_now", {}, "actor"),
        ("retry_now", {"actor": ""}, "actor"),
        ("fail_work_item", {"actor": "anna"}, "work_item_id"),
        ("cancel_work_item", {"actor": "anna", "work_item_id": "x", "sudo": True}, "sudo"),
        ("complete_work_item", {"actor": "anna", "work_item_id": "ID", "result": "text"}, 'such as {"text"'),
        ("complete_work_item", {"actor": "anna", "work_item_id": "ID", "result": {"text": ""}}, "result"),
        ("complete_work_item", {"actor": "anna", "work_item_id": "ID", "result": {"text": "a", "b": 1}}, "b"),
        (
            "complete_work_item",
            {"actor": "anna", "work_item_id": "ID", "result": {"text": "a", "input_tokens": 2**63}},
            "input_tokens",
        ),
        ("complete_work_item", {"actor": "anna", "work_item_id": "ID", "result": {"text": "a\x00"}}, "NUL"),
        ("fail_work_item", {"actor": "anna", "work_item_id": "ID", "reason": "r" * 3000}, "reason"),
    ],
)
async def test_a_wrong_payload_is_refused_and_names_the_field(
    dev_server: EmbeddedTemporal, action: str, payload: dict[str, object], says: str
) -> None:
    async with task_in(dev_server, "started") as (_, handle, item, _calls):
        known = {key: item.id if value == "ID" else value for key, value in payload.items()}
        said = await refusal(handle.execute_update(action, known))
    assert said.startswith("InvalidRequest: ")
    assert says in said


async def test_retry_now_is_recorded_as_the_operator_s(dev_server: EmbeddedTemporal) -> None:
    async with task_in(dev_server, "initialized") as (tasks, handle, item, _):
        assert await act(handle, "retry_now", None) == {"work_item_ids": [item.id]}
        result = await handle.result()
        _, second = await tasks.work_items(handle)
    assert result["attempts"] == 2
    assert second.delay_reason == "operator"
    assert second.delay_seconds < 60
    assert second.started_at == second.not_before


@pytest.mark.usefixtures("no_write_is_slow")  # the timer of the wait starts at once
async def test_a_wait_that_is_over_ends_by_itself_though_its_timer_is_late(
    dev_server: EmbeddedTemporal,
) -> None:
    """The server fires a timer up to a second late, so `retry_now` finds the wait still there. Then the timer
    of the wait and the one that brings news fire in one workflow task, as a rule."""
    request = {"prompt": "?", "retry": {"initial_interval_seconds": 0.2}}
    calls = ScriptedCalls(*(step for _ in range(10) for step in (GONE, ANSWER)))
    async with tasks_on(dev_server.address, [AiAgentTask], [calls.generate]) as tasks:
        for _ in range(10):
            handle = await tasks.start("AiAgentTask", request)

            async def probe(handle: Handle = handle) -> WorkItem | None:
                items = await tasks.work_items(handle)
                return items[1] if len(items) > 1 else None

            second = await eventually(probe, "a retry")
            await comes_to(handle, "timer_started_event_attributes")
            (wait,) = [one for one in await history(handle) if one.HasField("timer_started_event_attributes")]
            due = wait.event_time.ToDatetime(UTC) + timedelta(seconds=second.delay_seconds)
            await asyncio.sleep((due - datetime.now(UTC)).total_seconds() + 0.15)
            with pytest.raises((WorkflowUpdateFailedError, RPCError)) as refused:
                await act(handle, "retry_now", None)
            await handle.result()
            _, second = await tasks.work_items(handle)
            start = (await tasks.ledger.transitions(second.id))[1]
            assert (second.delay_reason, second.delay_seconds, start.actor) == ("backoff", 0.2, "task")
            told = [event.WhichOneof("attributes") for event in (await handle.fetch_history()).events]
            if ["timer_fired_event_attributes"] * 2 in [told[n : n + 2] for n in range(len(told))]:
                assert "no attempt is waiting" in str(refused.value.__cause__)
                return
    pytest.fail("in none of ten tries did both timers fire in one workflow task")


async def test_a_result_by_hand_completes_the_task(dev_server: EmbeddedTemporal) -> None:
    async with task_in(dev_server, "started") as (_, handle, item, _calls):
        assert await act(handle, "complete_work_item", item.id) == {
            "work_item_id": item.id,
            "state": "completed",
        }
        result = await handle.result()
    assert (result["text"], result["work_item_id"]) == ("from a person", item.id)


async def test_after_a_failure_by_hand_the_recipe_decides(dev_server: EmbeddedTemporal) -> None:
    async with task_in(dev_server, "started", NO_BACKOFF) as (tasks, handle, item, _):
        await act(handle, "fail_work_item", item.id)
        result = await handle.result()
        first, _second = await tasks.work_items(handle)
    assert result["attempts"] == 2
    assert first.failure is not None
    assert (first.failure.kind, first.failure.message) == ("operator", "failed by anna: I know better")


@pytest.mark.parametrize("state", ["initialized", "started"])
async def test_a_canceled_work_item_is_a_signal_and_the_default_policy_fails_the_task(
    dev_server: EmbeddedTemporal, state: str
) -> None:
    async with task_in(dev_server, state) as (_, handle, item, _calls):
        await act(handle, "cancel_work_item", item.id)
        error = await failure_of_task(handle)
    assert error.type == "TaskFailed"
    assert "canceled by anna: I know better" in error.message


async def test_of_two_operators_one_wins_and_the_other_is_told(dev_server: EmbeddedTemporal) -> None:
    async with task_in(dev_server, "started", {"prompt": "?", "max_retries": 0}) as (tasks, handle, item, _):
        outcomes = await asyncio.gather(
            act(handle, "complete_work_item", item.id),
            act(handle, "complete_work_item", item.id),
            return_exceptions=True,
        )
        log = await tasks.ledger.transitions(item.id)
    assert sorted(isinstance(outcome, Exception) for outcome in outcomes) == [False, True]
    assert [step.next_state for step in log] == ["initialized", "started", "completed"]


async def test_the_same_update_id_acts_once(dev_server: EmbeddedTemporal) -> None:
    async with task_in(dev_server, "initialized") as (tasks, handle, item, _):
        twice = [await handle.execute_update("retry_now", BY_ANNA, id="once") for _ in range(2)]
        log = await tasks.ledger.transitions(item.id)
    assert twice[0] == twice[1] == {"work_item_ids": [item.id]}
    assert sum(step.actor == "anna" for step in log) == 1


async def test_actions_in_quick_succession_never_make_two_outcomes(dev_server: EmbeddedTemporal) -> None:
    script: list[Step] = [Hang(), GONE]
    calls = ScriptedCalls(*script * 4)
    async with tasks_on(dev_server.address, [AiAgentTask], [calls.generate]) as tasks:
        handle = await tasks.start("AiAgentTask", {**NO_BACKOFF, "max_retries": 20})
        tried: list[Callable[[str], Awaitable[Any]]] = [
            lambda known: act(handle, "fail_work_item", known),
            lambda known: act(handle, "complete_work_item", known),
            lambda known: act(handle, "cancel_work_item", known),
        ]
        while (await handle.describe()).close_time is None:
            items = await tasks.work_items(handle)
            if items:
                await asyncio.gather(*(one(items[-1].id) for one in tried), return_exceptions=True)
        for item in await tasks.work_items(handle):
            states = [step.next_state for step in await tasks.ledger.transitions(item.id)]
            assert sum(state.is_terminal for state in states) == 1
            assert states[-1] is item.state is not WorkItemState.STARTED


@activity.defn
async def work(lineage: str) -> str:
    if lineage == "left":
        raise ApplicationError("it fails", type="broken")
    return lineage


@workflow.defn(sandboxed=False)
class LeavesARetry:
    """Leaves a retry behind with `break`, and then has work for several runs."""

    def __init__(self) -> None:
        in_an_hour = RetryRecipe(max_retries=1, initial_interval=timedelta(hours=1))
        self._task = Task(recipe=in_an_hour, policy=absorb_failures(), concurrency=1)
        self._may_go = workflow.info().continued_run_id is not None

    @workflow.run
    async def run(self) -> bool:
        await self._attempt("left")
        await workflow.wait_condition(lambda: self._may_go)
        for number in range(10):
            await self._attempt(f"work-{number}")
        return workflow.info().continued_run_id is not None

    async def _attempt(self, lineage: str) -> None:
        async for item in self._task.attempts(lineage, lineage=lineage):
            async with item:
                timeout = timedelta(minutes=1)
                item.complete(await item.execute_activity(work, lineage, start_to_close_timeout=timeout))
            break

    @workflow.signal
    def go(self) -> None:
        self._may_go = True


async def test_retry_now_of_a_retry_that_the_code_has_left_does_not_keep_the_task_from_its_next_run() -> None:
    often = {"limit.historyCount.suggestContinueAsNew": 30}
    async with (
        embedded_temporal(ui=False, dynamic_config=often) as server,
        tasks_on(server.address, [LeavesARetry], [work]) as tasks,
    ):
        handle = await tasks.start("LeavesARetry")

        async def left() -> WorkItem | None:
            return next((item for item in await tasks.work_items(handle) if item.attempt == 1), None)

        retry = await eventually(left, "the retry that the code has left")
        accepted = WorkflowUpdateStage.ACCEPTED
        acting = await handle.start_update("retry_now", BY_ANNA, wait_for_stage=accepted)
        await handle.signal("go")
        assert await asyncio.wait_for(handle.result(), PATIENCE_SECONDS), "there was no new run"
        assert await acting.result() == {"work_item_ids": [retry.id]}
        started = (await tasks.ledger.transitions(retry.id))[1]
    assert (started.next_state, started.actor) == (WorkItemState.STARTED, "anna")
