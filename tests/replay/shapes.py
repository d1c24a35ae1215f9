"""The shapes of history that a release must be able to replay, and how to make one of each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.client import WorkflowHandle

from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.provider.redaction import Redactor
from tasquencer.ai.review import Reminder
from tasquencer.ai.tool_calls import OnToolFailure, ToolCall, ToolOptions
from tasquencer.ai.tools import ToolContext, ToolError, by_name
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.ledger.contract import Ledger
from tasquencer.temporal.supervision import Supervision
from tasquencer.temporal.tool_activity import ToolActivity
from tasquencer.testing import InMemoryLedger
from tests.support.calls import ANSWER, GONE, SLOW_DOWN, WRONG_KEY, Freeze, Hang, ScriptedCalls, Step
from tests.support.held_ledgers import HeldLedger, leading_to
from tests.support.patience import eventually
from tests.support.tasks import Tasks, history
from tests.workflows.test_reset import reset

Handle = WorkflowHandle[Any, Any]
Meanwhile = Callable[[Tasks, Handle], Awaitable[None]]


class Shape:
    """A history to record: what is asked, what the calls do, what happens meanwhile.

    `rows` are those of a batch, `retry` then is a default of theirs.
    `start_delay` is how long the first workflow task waits, so that something may come before it.
    """

    def __init__(
        self,
        *script: Step,
        workflow: str = "AiAgentTask",
        meanwhile: Meanwhile | None = None,
        start_delay: timedelta = timedelta(0),
        ledger: Ledger | None = None,
        rows: Sequence[str] = (),
        **request: object,
    ) -> None:
        self.workflow = workflow
        self.rows = rows
        self.defaults = {"retry": request.pop("retry")} if rows and "retry" in request else {}
        self.request = request if "prompts" in request or rows else {"prompt": "What is it?", **request}
        self.start_delay = start_delay
        self.ledger = ledger or InMemoryLedger()
        self.calls = ScriptedCalls(*script)
        self.meanwhile = meanwhile


TOLD = ToolOptions()
RETRIED = ToolOptions(max_retries=2, initial_interval_seconds=0)
FATAL = ToolOptions(on_failure=OnToolFailure.FAIL_TASK)
REMINDED = ToolOptions(requires_approval=True, reminder_seconds=0.1, reminder_activity="remind")
APPROVED = ToolOptions(requires_approval=True, reminder_seconds=3600)


UNFIT = Failure.of(FailureKind.INVALID_OUTPUT, "no number", output="many")


def calling(*calls: tuple[str, ToolOptions]) -> AiAnswer:
    """An answer that calls these tools."""
    called = [
        ToolCall(id=f"call-{number}", name=name, arguments="{}", options=options)
        for number, (name, options) in enumerate(calls)
    ]
    return ANSWER.model_copy(update={"text": "", "tool_calls": called})


def _turns_that_fail_first(turns: int) -> list[Step]:
    steps: list[Step] = []
    for _ in range(turns):
        steps += [calling(("look_up", RETRIED)), GONE]
    return steps


def tool_activity() -> Callable[..., Any]:
    """The activity `call_tool` with the tools of these shapes."""
    failed: set[str] = set()

    def look_up(context: ToolContext) -> str:
        """Fail at first."""
        if context.idempotency_key not in failed:
            failed.add(context.idempotency_key)
            raise ToolError("not today, as far as anybody knows, " * 3, retry=True)
        return "found"

    def refund() -> str:
        """Pay."""
        return "paid"

    async def wait() -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    supervision = Supervision(timedelta(milliseconds=50))
    return ToolActivity(by_name([look_up, refund, wait]), Redactor, supervision).call_tool


def _approving(lineage: str) -> Meanwhile:
    async def act(tasks: Tasks, handle: Handle) -> None:
        item = await _started(tasks, handle, lineage)
        payload = {"work_item_id": item.id, "actor": "anna", "result": {"decision": "approve"}}
        await handle.execute_update("complete_work_item", payload)

    return act


def _cancel_in(lineage: str) -> Meanwhile:
    async def act(tasks: Tasks, handle: Handle) -> None:
        await _started(tasks, handle, lineage)
        await handle.cancel()

    return act


@activity.defn
async def remind(reminder: Reminder) -> None:
    """Remind nobody."""


async def _refuse_after_the_reminder(tasks: Tasks, handle: Handle) -> None:
    item = await _started(tasks, handle, "turn-1/refund/approval")

    async def has_reminded() -> bool:
        scheduled = [event.activity_task_scheduled_event_attributes for event in await history(handle)]
        completed = [
            event.HasField("activity_task_completed_event_attributes") for event in await history(handle)
        ]
        return any(one.activity_type.name == "remind" for one in scheduled) and sum(completed) == 2

    await eventually(has_reminded, "the reminder")
    action = {"work_item_id": item.id, "actor": "anna", "reason": "wrong customer"}
    await handle.execute_update("cancel_work_item", action)


async def _cancel_at_once(tasks: Tasks, handle: Handle) -> None:
    await handle.cancel()


async def _cancel_in_the_call(tasks: Tasks, handle: Handle) -> None:
    await _state(tasks, handle, WorkItemState.STARTED)
    await handle.cancel()


async def _cancel_while_others_wait(tasks: Tasks, handle: Handle) -> None:
    async def probe() -> bool:
        return any(item.state is WorkItemState.STARTED for item in await tasks.work_items(handle))

    await eventually(probe, "a work item that is started")
    await handle.cancel()


async def _cancel_in_the_backoff(tasks: Tasks, handle: Handle) -> None:
    await _state(tasks, handle, WorkItemState.INITIALIZED)
    await handle.cancel()


def _cancel_in_the_record(ledger: HeldLedger) -> Meanwhile:
    async def act(tasks: Tasks, handle: Handle) -> None:
        await ledger.gate.wait_until_reached()
        await handle.cancel()
        ledger.gate.open()

    return act


async def _reset_in_the_backoff(tasks: Tasks, handle: Handle) -> None:
    await handle.result()
    again = await reset(tasks, handle, lambda event: event.HasField("timer_fired_event_attributes"))
    await again.result()


async def _reset_in_a_call(tasks: Tasks, handle: Handle) -> None:
    async def probe() -> bool:
        states = [item.state for item in await tasks.work_items(handle)]
        return states.count(WorkItemState.COMPLETED) == 1

    await eventually(probe, "one that has completed")
    again = await reset(
        tasks, handle, lambda event: event.HasField("activity_task_completed_event_attributes")
    )
    await again.result()


def _acting(update: str, state: WorkItemState) -> Meanwhile:
    async def act(tasks: Tasks, handle: Handle) -> None:
        await _state(tasks, handle, state)
        item = (await tasks.work_items(handle))[-1]
        payload: dict[str, object] = {"actor": "anna", "reason": "she knows better"}
        if update != "retry_now":
            payload["work_item_id"] = item.id
        if update == "complete_work_item":
            payload["result"] = {"text": "from a person"}
        await handle.execute_update(update, payload)

    return act


def _deciding(*decisions: dict[str, str]) -> Meanwhile:
    """Decides the reviews, one after the other."""

    async def act(tasks: Tasks, handle: Handle) -> None:
        for number, decision in enumerate(decisions, 1):
            item = await _waiting_review(tasks, handle, number)
            payload = {"work_item_id": item.id, "actor": "anna", "result": decision}
            await handle.execute_update("complete_work_item", payload)

    return act


async def _cancel_in_the_review(tasks: Tasks, handle: Handle) -> None:
    await _waiting_review(tasks, handle, 1)
    await handle.cancel()


async def _waiting_review(tasks: Tasks, handle: Handle, number: int) -> WorkItem:
    return await _started(tasks, handle, f"review-{number}")


async def _started(tasks: Tasks, handle: Handle, lineage: str) -> WorkItem:
    async def probe() -> WorkItem | None:
        for item in await tasks.work_items(handle):
            if item.lineage == lineage and item.state is WorkItemState.STARTED:
                return item
        return None

    return await eventually(probe, f"{lineage} to be started")


async def _pause_resume_and_cancel(tasks: Tasks, handle: Handle) -> None:
    async def running() -> bool:
        progress = await handle.query("progress")
        return progress is not None and bool(progress["running"] and progress["completed"])

    await eventually(running, "a row that has completed, and one under way")
    await handle.execute_update("pause", {"actor": "anna", "reason": "lunch"})
    await handle.execute_update("resume", {"actor": "anna"})
    await handle.cancel()


async def _state(tasks: Tasks, handle: Handle, state: WorkItemState) -> None:
    async def probe() -> bool:
        items = await tasks.work_items(handle)
        return bool(items) and items[-1].state is state

    await eventually(probe, f"a work item that is {state}")


def shapes() -> dict[str, Shape]:
    """By name, the name of its file. Never change a recorded shape: add another."""
    at_once = {"initial_interval_seconds": 0}
    rejection = {"decision": "reject", "comments": "Shorter."}
    approval = {"decision": "approve"}
    held = HeldLedger(leading_to(WorkItemState.STARTED), committed=False)
    return {
        "first_try": Shape(),
        "adopted": Shape(workflow="AdoptedShop"),
        "two_retries": Shape(SLOW_DOWN, GONE, retry={"initial_interval_seconds": 0.5, "jitter": 0.5}),
        "retries_exhausted": Shape(*[GONE] * 3, max_retries=2, retry=at_once),
        "not_retryable": Shape(WRONG_KEY),
        "deadline_exceeded": Shape(
            SLOW_DOWN.model_copy(update={"retry_after_seconds": 600.0}), deadline_seconds=60
        ),
        "invalid_request": Shape(max_retries=-1),
        "worker_lost": Shape(Freeze(), heartbeat_timeout_seconds=1, retry=at_once),
        "canceled_before_the_call": Shape(meanwhile=_cancel_at_once, start_delay=timedelta(seconds=1)),
        "canceled_in_the_record": Shape(ledger=held, meanwhile=_cancel_in_the_record(held)),
        "canceled_in_the_call": Shape(Hang(), meanwhile=_cancel_in_the_call),
        "canceled_in_the_backoff": Shape(
            GONE, retry={"initial_interval_seconds": 600}, meanwhile=_cancel_in_the_backoff
        ),
        "retried_now": Shape(
            GONE,
            retry={"initial_interval_seconds": 600},
            meanwhile=_acting("retry_now", WorkItemState.INITIALIZED),
        ),
        "completed_by_hand": Shape(Hang(), meanwhile=_acting("complete_work_item", WorkItemState.STARTED)),
        "failed_by_hand": Shape(
            Hang(), retry=at_once, meanwhile=_acting("fail_work_item", WorkItemState.STARTED)
        ),
        "given_up_by_hand": Shape(Hang(), meanwhile=_acting("cancel_work_item", WorkItemState.STARTED)),
        "continued_as_new": Shape(*[GONE] * 20, max_retries=25, retry=at_once),
        "review_approved_after_a_rejection": Shape(
            GONE,
            workflow="ReviewedDraft",
            retry=at_once,
            reminder_seconds=3600,
            meanwhile=_deciding(rejection, approval),
        ),
        "review_rejected_for_good": Shape(
            workflow="ReviewedDraft", max_revisions=0, meanwhile=_deciding(rejection)
        ),
        "review_reminded_and_timed_out": Shape(
            workflow="ReviewedDraft", review_timeout_seconds=3, reminder_seconds=1
        ),
        "canceled_in_the_review": Shape(
            workflow="ReviewedDraft", reminder_seconds=3600, meanwhile=_cancel_in_the_review
        ),
        "reset_in_the_backoff": Shape(
            GONE, retry={"initial_interval_seconds": 0.5}, meanwhile=_reset_in_the_backoff
        ),
        "reset_in_a_call": Shape(
            *(ANSWER, Hang()),
            workflow="AiFanOutTask",
            prompts=["one", "two"],
            meanwhile=_reset_in_a_call,
        ),
        "fan_out": Shape(
            *(GONE, WRONG_KEY),
            workflow="AiFanOutTask",
            prompts=["one", "two", "three", "four"],
            concurrency=2,
            retry=at_once,
        ),
        "fan_out_continued_as_new": Shape(
            *[GONE] * 4,
            workflow="AiFanOutTask",
            prompts=[f"line {number}" for number in range(20)],
            concurrency=2,
            retry=at_once,
        ),
        "fan_out_ended_early": Shape(
            *(Hang(), WRONG_KEY),
            workflow="AiFanOutTask",
            prompts=["one", "two", "three", "four"],
            concurrency=2,
            policy={"name": "absorb_failures", "limit": 0},
        ),
        "fan_out_canceled": Shape(
            *(Hang(), Hang()),
            workflow="AiFanOutTask",
            prompts=["one", "two", "three", "four"],
            concurrency=2,
            meanwhile=_cancel_while_others_wait,
        ),
        "batch": Shape(
            *(GONE, WRONG_KEY),
            workflow="AiBatchTask",
            rows=["one", "two", "three", "four"],
            concurrency=2,
            retry=at_once,
        ),
        "batch_continued_as_new": Shape(
            *[GONE] * 4,
            workflow="AiBatchTask",
            rows=[f"line {number}" for number in range(40)],
            concurrency=3,
            retry=at_once,
        ),
        "batch_ended_early": Shape(
            *(Hang(), WRONG_KEY),
            workflow="AiBatchTask",
            rows=["one", "two", "three", "four"],
            concurrency=2,
            policy={"name": "absorb_failures", "limit": 0},
        ),
        "batch_paused_resumed_and_canceled": Shape(
            *(ANSWER, Hang()),
            workflow="AiBatchTask",
            rows=["one", "two", "three"],
            concurrency=1,
            meanwhile=_pause_resume_and_cancel,
        ),
        "followed_up": Shape(workflow="FollowedTask"),
        "agent": Shape(
            calling(("look_up", RETRIED), ("look_up", TOLD)),
            SLOW_DOWN,
            calling(("refund", APPROVED)),
            tools=["look_up", "refund"],
            retry=at_once,
            meanwhile=_approving("turn-2/refund/approval"),
        ),
        "agent_reminded_of_an_approval_and_refused_it": Shape(
            calling(("refund", REMINDED)), tools=["refund"], meanwhile=_refuse_after_the_reminder
        ),
        "agent_canceled_in_its_tools": Shape(
            calling(("wait", TOLD), ("wait", TOLD)), tools=["wait"], meanwhile=_cancel_in("turn-1/wait-2")
        ),
        "agent_continued_as_new": Shape(*_turns_that_fail_first(12), tools=["look_up"], retry=at_once),
        "feedback": Shape(UNFIT, UNFIT, retry=at_once),
        "fallback": Shape(
            *(SLOW_DOWN, UNFIT, WRONG_KEY),
            model="a:1",
            fallback_models=["b:1", "c:1"],
            fallback_on=["rate_limited", "unauthorized"],
            retry=at_once,
        ),
        "asked": Shape(*(GONE, WRONG_KEY), workflow="AskingTask", retry=at_once),
        "asked_side_by_side": Shape(
            *(GONE, ANSWER, ANSWER, ANSWER, ANSWER.model_copy(update={"text": '{"output": 42}'})),
            workflow="AskingSideBySide",
            retry=at_once,
        ),
        "asked_with_tools": Shape(
            calling(("look_up", RETRIED), ("look_up", TOLD)),
            SLOW_DOWN,
            calling(("refund", APPROVED)),
            workflow="AskingTask",
            tools=["look_up", "refund"],
            retry=at_once,
            meanwhile=_approving("ask-1/turn-2/refund/approval"),
        ),
        "asked_until_no_turn_was_left": Shape(
            *(calling(("refund", TOLD)), calling(("look_up", FATAL), ("wait", TOLD))),
            workflow="AskingSideBySide",
            tools=["look_up", "refund", "wait"],
            max_turns=1,
        ),
        "asked_and_canceled_in_its_tools": Shape(
            calling(("wait", TOLD), ("wait", TOLD)),
            workflow="AskingTask",
            tools=["wait"],
            meanwhile=_cancel_in("ask-1/turn-1/wait-2"),
        ),
        "asked_with_tools_continued_as_new": Shape(
            *[*_turns_that_fail_first(8), ANSWER, *_turns_that_fail_first(6)],
            workflow="AskingWithTask",
            tools=["look_up"],
            retry=at_once,
        ),
        "fan_out_with_tools": Shape(
            *(
                calling(("look_up", RETRIED), ("refund", TOLD)),
                GONE,
                calling(("refund", APPROVED)),
                WRONG_KEY,
            ),
            workflow="AiFanOutTask",
            prompts=["one", "two", "three"],
            concurrency=1,
            tools=["look_up", "refund"],
            retry=at_once,
            meanwhile=_approving("prompt-3/turn-1/refund/approval"),
        ),
        "fan_out_with_tools_ended_early": Shape(
            *(calling(("wait", TOLD)), calling(("look_up", FATAL)), calling(("refund", TOLD)), ANSWER),
            workflow="AiFanOutTask",
            prompts=["one", "two", "three"],
            concurrency=2,
            policy={"name": "require_successes", "successes": 1},
            tools=["look_up", "refund", "wait"],
        ),
        "fan_out_until_no_turn_was_left": Shape(
            *[calling(("refund", TOLD))] * 2,
            workflow="AiFanOutTask",
            prompts=["one", "two"],
            policy="until_exhausted",
            tools=["refund"],
            max_turns=1,
        ),
        "fan_out_canceled_in_its_tools": Shape(
            *[calling(("wait", TOLD))] * 2,
            workflow="AiFanOutTask",
            prompts=["one", "two"],
            tools=["wait"],
            meanwhile=_cancel_in("prompt-2/turn-1/wait"),
        ),
        "fan_out_with_tools_continued_as_new": Shape(
            *[calling(("look_up", RETRIED))] * 12,
            workflow="AiFanOutTask",
            prompts=[f"line {number}" for number in range(12)],
            concurrency=2,
            tools=["look_up"],
            retry=at_once,
        ),
    }
