"""Agents with tools, on the real dev server, with a real HTTP server in the provider's place."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import Worker

from tasquencer.ai import OnToolFailure, ToolContext, ToolError, tool
from tasquencer.ai.review import Reminder
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.sql import SqlLedger
from tests.support import answers, desks
from tests.support.answers import Answer
from tests.support.desks import Handle
from tests.support.patience import eventually
from tests.support.provider import Choose, ProviderRequest, ScriptedProvider
from tests.support.tasks import comes_to, details, failure_of_task, history, timer_summaries
from workflows.ai_agent import AiAgentTask

ASK = {"prompt": "Where is order 7?", "retry": {"initial_interval_seconds": 0}}


class Desk(desks.Desk):
    """A desk whose tasks are agents."""

    async def run(self, **fields: Any) -> tuple[dict[str, Any], Handle]:
        return await self.tasks.run("AiAgentTask", ASK | fields)

    async def start(self, **fields: Any) -> Handle:
        return await self.tasks.start("AiAgentTask", ASK | fields)


@asynccontextmanager
async def desk(
    server: EmbeddedTemporal, script: Sequence[Answer] | Choose, tools: Sequence[Callable[..., Any]]
) -> AsyncIterator[Desk]:
    async with desks.desk(server, [AiAgentTask], script, tools) as one:
        yield Desk(one.tasks, one.provider, one.workflows)


async def search_orders(number: int) -> dict[str, Any]:
    """Look an order up by its number."""
    return {"number": number, "state": "on its way"}


def ended_badly(item: tuple[str, int, str, str | None]) -> bool:
    return item[2] == "failed"


async def test_each_turn_and_each_tool_call_is_a_work_item(dev_server: EmbeddedTemporal) -> None:
    script = [answers.tools(("search_orders", {"number": 7})), answers.ok("It is on its way.")]
    async with desk(dev_server, script, [search_orders]) as one:
        result, handle = await one.run(tools=["search_orders"])
        assert await one.story(handle) == [
            ("turn-1", 0, "completed", None),
            ("turn-1/search_orders", 0, "completed", None),
            ("turn-2", 0, "completed", None),
        ]
        (offered,) = one.provider.requests[0].body["tools"]
        assert offered["function"]["name"] == "search_orders"
        assert offered["function"]["parameters"]["required"] == ["number"]
        assert one.heard(1) == ['{"number": 7, "state": "on its way"}']
        keys = [request.idempotency_key for request in one.provider.requests]
        assert len(set(keys)) == 2
    assert (result["text"], result["turns"], result["attempts"]) == ("It is on its way.", 2, 2)
    assert (result["input_tokens"], result["total"]["input_tokens"]) == (11, 31)
    (called,) = result["tool_calls"]
    assert (called["turn"], called["tool"], called["state"], called["attempts"]) == (
        1,
        "search_orders",
        "completed",
        1,
    )


async def test_a_tool_is_retried_as_it_says_and_each_retry_is_a_work_item(
    dev_server: EmbeddedTemporal,
) -> None:
    seen: list[ToolContext] = []

    @tool(retries=2, retry_on=(ConnectionError,), initial_interval=timedelta(0))
    def look_up(number: int, context: ToolContext) -> str:
        """Look an order up."""
        seen.append(context)
        if len(seen) < 3:
            raise ConnectionError("the shop is down")
        return "on its way"

    script = [answers.tools(("look_up", {"number": 7})), answers.ok()]
    async with desk(dev_server, script, [look_up]) as one:
        _, handle = await one.run(tools=["look_up"])
        assert await one.story(handle) == [
            ("turn-1", 0, "completed", None),
            ("turn-1/look_up", 0, "failed", "tool_failed"),
            ("turn-1/look_up", 1, "failed", "tool_failed"),
            ("turn-1/look_up", 2, "completed", None),
            ("turn-2", 0, "completed", None),
        ]
    assert [context.attempt for context in seen] == [0, 1, 2]
    assert len({context.work_item_id for context in seen}) == 3
    assert len({context.idempotency_key for context in seen}) == 1


async def test_the_model_reads_why_a_tool_failed(dev_server: EmbeddedTemporal) -> None:
    async def refund(order: int) -> str:
        """Pay an order back."""
        raise ToolError(f"order {order} is older than a year")

    script = [answers.tools(("refund", {"order": 7})), answers.ok("Sorry.")]
    async with desk(dev_server, script, [refund]) as one:
        result, handle = await one.run(tools=["refund"])
        assert ("turn-1/refund", 0, "failed", "tool_failed") in await one.story(handle)
        assert one.heard(1) == ["The call failed: order 7 is older than a year"]
    assert result["text"] == "Sorry."


async def test_a_tool_may_fail_the_task(dev_server: EmbeddedTemporal) -> None:
    @tool(on_failure=OnToolFailure.FAIL_TASK)
    async def refund(order: int) -> str:
        """Pay an order back."""
        raise ValueError("the till is closed")

    async with desk(dev_server, [answers.tools(("refund", {"order": 7}))], [refund]) as one:
        handle = await one.start(tools=["refund"])
        error = await failure_of_task(handle)
    assert error.type == "RetriesExhausted"
    assert "turn-1/refund" in error.message and "the till is closed" in error.message


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("search_orders", {"number": "seven"}, "number: Input should be a valid integer"),
        ("search_orders", {"number": 7, "force": True}, "force: unknown field"),
        ("search_orders", "{not json", "Invalid JSON"),
        ("drop_table", {}, "there is no tool 'drop_table'; there are search_orders"),
    ],
)
async def test_a_call_that_cannot_be_made_goes_back_to_the_model(
    dev_server: EmbeddedTemporal, name: str, arguments: object, said: str
) -> None:
    script = [answers.tools((name, arguments)), answers.ok()]
    async with desk(dev_server, script, [search_orders]) as one:
        _, handle = await one.run(tools=["search_orders"])
        assert (f"turn-1/{name}", 0, "failed", "invalid_request") in await one.story(handle)
        (heard,) = one.heard(1)
    assert said in heard


async def test_tools_of_one_turn_run_side_by_side(dev_server: EmbeddedTemporal) -> None:
    both = asyncio.Barrier(2)

    async def meet(name: str) -> str:
        """Wait for the other one."""
        await both.wait()
        return name

    script = [answers.tools(("meet", {"name": "a"}), ("meet", {"name": "b"})), answers.ok()]
    async with desk(dev_server, script, [meet]) as one:
        _, handle = await one.run(tools=["meet"])
        assert {"turn-1/meet", "turn-1/meet-2"} <= {item[0] for item in await one.story(handle)}
        assert one.heard(1) == ["a", "b"]


async def waits_for_approval(one: Desk, handle: Handle) -> WorkItem:
    async def probe() -> WorkItem | None:
        for item in await one.tasks.work_items(handle):
            if item.lineage.endswith("/approval") and item.state is WorkItemState.STARTED:
                return item
        return None

    return await eventually(probe, "a call that waits for its approval")


@pytest.mark.parametrize("approves", [True, False])
async def test_a_person_approves_or_rejects_a_call(dev_server: EmbeddedTemporal, approves: bool) -> None:
    paid: list[int] = []

    @tool(requires_approval=True)
    async def refund(order: int) -> str:
        """Pay an order back."""
        paid.append(order)
        return "paid"

    script = [answers.tools(("refund", {"order": 7})), answers.ok()]
    async with desk(dev_server, script, [refund]) as one:
        handle = await one.start(tools=["refund"])
        asked = await waits_for_approval(one, handle)
        assert isinstance(asked.payload, dict) and asked.payload["draft"] == 'refund({"order": 7})'
        assert paid == []
        decision = {"decision": "approve"} if approves else {"decision": "reject", "comments": "too old"}
        action = {"work_item_id": asked.id, "actor": "anna", "result": decision}
        await handle.execute_update("complete_work_item", action)
        result = await handle.result()
        heard = one.heard(1)
    assert paid == ([7] if approves else [])
    assert heard == (["paid"] if approves else ["The call was rejected by a person: too old"])
    assert result["tool_calls"][0]["attempts"] == int(approves)


async def test_an_approval_that_does_not_come_in_time_is_none(dev_server: EmbeddedTemporal) -> None:
    @tool(requires_approval=True, approval_timeout=timedelta(milliseconds=200))
    async def refund(order: int) -> str:
        """Pay an order back."""
        raise AssertionError("nobody approved")

    async with desk(dev_server, [answers.tools(("refund", {"order": 7})), answers.ok()], [refund]) as one:
        _, handle = await one.run(tools=["refund"])
        assert ("turn-1/refund/approval", 0, "failed", "timed_out") in await one.story(handle)
        assert one.heard(1) == ["The call was not made: no decision came in time"]


async def test_the_web_ui_says_which_call_waits_for_approval(dev_server: EmbeddedTemporal) -> None:
    @tool(requires_approval=True)
    async def pay_back(order: int) -> str:
        """Pay an order back."""
        return "paid"

    async with desk(dev_server, [answers.tools(("pay_back", {"order": 7})), answers.ok()], [pay_back]) as one:
        handle = await one.start(tools=["pay_back"])
        asked = await waits_for_approval(one, handle)
        await comes_to(handle, "timer_started_event_attributes")
        assert timer_summaries(await history(handle)) == ["tool pay_back · waits for approval"]
        assert "\n\ntool pay_back · waits for approval until " in await details(handle)
        action = {"work_item_id": asked.id, "actor": "anna", "result": {"decision": "approve"}}
        await handle.execute_update("complete_work_item", action)
        await handle.result()
        assert "waits for approval" not in await details(handle)


async def test_an_approval_reminds_by_an_activity(dev_server: EmbeddedTemporal) -> None:
    reminders: list[Reminder] = []

    @activity.defn
    async def remind(reminder: Reminder) -> None:
        reminders.append(reminder)
        if len(reminders) == 1:
            raise RuntimeError("the pager is out of order")

    queue = f"pagers-{uuid4()}"

    @tool(
        requires_approval=True,
        reminder=timedelta(milliseconds=100),
        reminder_activity="remind",
        reminder_task_queue=queue,
    )
    async def refund(order: int) -> str:
        """Pay an order back."""
        return "paid"

    async def reminded() -> list[Reminder]:
        return reminders[1:]

    script = [answers.tools(("refund", {"order": 7})), answers.ok()]
    async with (
        desk(dev_server, script, [refund]) as one,
        Worker(one.tasks.client, task_queue=queue, activities=[remind]),
    ):
        handle = await one.start(tools=["refund"])
        asked = await waits_for_approval(one, handle)
        (reminder,) = await eventually(reminded, "the reminder")
        assert "waits for approval until" in (shown := await details(handle)) and ", reminded at " in shown
        action = {"work_item_id": asked.id, "actor": "anna", "result": {"decision": "approve"}}
        await handle.execute_update("complete_work_item", action)
        await handle.result()
    assert (reminder.task_id, reminder.work_item_id) == (handle.id, asked.id)
    assert (reminder.number, reminder.first_line) == (1, 'refund({"order": 7})')
    assert reminder.due_at is not None
    assert (reminder.due_at - reminder.since).days == 7


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ("cancel_work_item", "canceled by anna: wrong customer"),
        ("fail_work_item", "failed by anna: wrong customer"),
    ],
)
async def test_the_model_reads_that_an_operator_ended_an_approval(
    dev_server: EmbeddedTemporal, update: str, said: str
) -> None:
    @tool(requires_approval=True)
    async def refund(order: int) -> str:
        """Pay an order back."""
        raise AssertionError("nobody approved")

    async with desk(dev_server, [answers.tools(("refund", {"order": 7})), answers.ok()], [refund]) as one:
        handle = await one.start(tools=["refund"])
        asked = await waits_for_approval(one, handle)
        action = {"work_item_id": asked.id, "actor": "anna", "reason": "wrong customer"}
        await handle.execute_update(update, action)
        await handle.result()
        assert one.heard(1) == [f"The call was not made: its approval was ended ({said})"]


async def test_a_turn_is_retried_like_any_ai_call(dev_server: EmbeddedTemporal) -> None:
    script = [
        answers.rate_limited(),
        answers.tools(("search_orders", {"number": 7})),
        answers.status(503),
        answers.ok(),
    ]
    async with desk(dev_server, script, [search_orders]) as one:
        result, handle = await one.run(tools=["search_orders"])
        assert [item for item in await one.story(handle) if item[2] == "failed"] == [
            ("turn-1", 0, "failed", "rate_limited"),
            ("turn-2", 0, "failed", "provider_error"),
        ]
    assert result["attempts"] == 4


async def test_a_model_that_never_answers_ends_the_task_after_max_turns(
    dev_server: EmbeddedTemporal,
) -> None:
    script = [answers.tools(("search_orders", {"number": n})) for n in range(2)]
    async with desk(dev_server, script, [search_orders]) as one:
        handle = await one.start(tools=["search_orders"], max_turns=2)
        error = await failure_of_task(handle)
    assert error.type == "TaskFailed" and "2 turns (max_turns)" in error.message


async def test_a_cancel_closes_all_tool_calls(dev_server: EmbeddedTemporal) -> None:
    under_way = asyncio.Semaphore(0)

    async def wait(name: str) -> str:
        """Wait for ever."""
        under_way.release()
        await asyncio.Event().wait()
        return name

    script = [answers.tools(*(("wait", {"name": name}) for name in "abc"))]
    async with desk(dev_server, script, [wait]) as one:
        handle = await one.start(tools=["wait"])
        for _ in range(3):
            await under_way.acquire()
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as caught:
            await handle.result()
        assert isinstance(caught.value.cause, CancelledError)
        states = {item[0]: item[2] for item in await one.story(handle)}
    assert states == {
        "turn-1": "completed",
        "turn-1/wait": "canceled",
        "turn-1/wait-2": "canceled",
        "turn-1/wait-3": "canceled",
    }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tools": []}, "tools"),
        ({"tools": ["a", "a"]}, "names one of them twice"),
        ({"max_turns": 3}, "max_turns: only with tools"),
        ({"tools": ["a"], "tool_choice": "b"}, "tool_choice"),
        ({"tools": ["a"], "max_turns": 0}, "max_turns"),
    ],
)
async def test_wrong_fields_are_refused(
    dev_server: EmbeddedTemporal, fields: dict[str, Any], said: str
) -> None:
    async with desk(dev_server, [], [search_orders]) as one:
        error: ApplicationError = await failure_of_task(await one.start(**fields))
    assert error.type == "InvalidRequest" and said in error.message


async def test_a_tool_that_the_worker_does_not_have_is_named(dev_server: EmbeddedTemporal) -> None:
    async with desk(dev_server, [], [search_orders]) as one:
        error = await failure_of_task(await one.start(tools=["refund"]))
    assert error.type == "NotRetryable" and "no tool 'refund'; it has search_orders" in error.message


async def test_a_conversation_stays_whole_when_the_task_continues_as_new() -> None:
    turns = 12
    why = "the order is older than a year, " * 5

    async def look_up(number: int) -> str:
        """Look an order up."""
        if number % 2:
            raise ToolError(f"{number}: {why}")
        return f"{number}: found"

    def script(request: ProviderRequest) -> Answer:
        number = sum(message["role"] == "tool" for message in request.body["messages"])
        return answers.tools(("look_up", {"number": number})) if number < turns else answers.ok("Done.")

    soon = {"limit.historyCount.suggestContinueAsNew": 60}
    async with (
        embedded_temporal(ui=False, dynamic_config=soon) as server,
        desk(server, script, [look_up]) as one,
    ):
        result, handle = await one.run(tools=["look_up"])
        first = await one.tasks.client.get_workflow_handle(handle.id).describe()
        assert first.run_id != handle.first_execution_run_id
        said = [
            f"The call failed: {number}: {why.strip()}" if number % 2 else f"{number}: found"
            for number in range(turns)
        ]
        assert one.heard(turns) == said
        items = await one.tasks.work_items(handle)
        assert len({request.idempotency_key for request in one.provider.requests}) == turns + 1
    assert (result["text"], result["turns"]) == ("Done.", turns + 1)
    assert len(result["tool_calls"]) == turns
    assert len({item.run_id for item in items}) > 1


KILLED = """
import asyncio, os, sys, time
from datetime import timedelta
from pathlib import Path
from temporalio.client import Client
from temporalio.worker import Worker
from tasquencer import TasquencerPlugin
from tasquencer.ai import AiCalls, tool
from tasquencer.ai.provider.client import make_client
from tasquencer.sql import SqlLedger
from workflows.ai_agent import AiAgentTask
from workflows.ai_fan_out import AiFanOutTask

address, queue, base_url, folder = sys.argv[1:]

@tool(retries=1, initial_interval=timedelta(0))
async def look_up() -> str:
    \"\"\"Look.\"\"\"
    marks = Path(folder, "begun")
    first = not marks.exists()
    marks.touch()
    if first:
        await asyncio.sleep(3600)
    return "found"

async def main():
    async with make_client(api_key="key-of-the-tests", base_url=base_url) as model:
        calls = AiCalls(model, "m", tools=[look_up])
        plugin = TasquencerPlugin(SqlLedger(f"sqlite:///{folder}/l.db"), calls=calls)
        client = await Client.connect(address, plugins=[plugin])
        sticky = timedelta(seconds=1)
        async with Worker(client, task_queue=queue, workflows=[AiAgentTask, AiFanOutTask],
                          sticky_queue_schedule_to_start_timeout=sticky):
            await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.crash
@pytest.mark.parametrize("killed_in", ["a tool call", "a turn", "a tool call of a fan-out"])
async def test_a_worker_that_is_killed_costs_one_attempt(
    dev_server: EmbeddedTemporal, tmp_path: Path, killed_in: str
) -> None:
    """The request or the call is not made again under the same work item."""
    turn = answers.tools(("look_up", {}))
    hangs, is_fan_out = killed_in == "a turn", killed_in.endswith("fan-out")
    if hangs:
        (tmp_path / "begun").touch()
    script = [answers.stall(), turn, answers.ok()] if hangs else [turn, answers.ok()]
    queue = f"queue-{uuid4()}"
    async with ScriptedProvider(script) as provider:
        arguments = [
            sys.executable,
            "-c",
            KILLED,
            dev_server.address,
            queue,
            provider.base_url,
            str(tmp_path),
        ]
        client = await Client.connect(dev_server.address)
        request: dict[str, Any] = ASK | {"tools": ["look_up"], "heartbeat_timeout_seconds": 10}
        if is_fan_out:
            request["prompts"] = [request.pop("prompt")]
        first = ChildProcess("worker", arguments)
        second: ChildProcess | None = None
        try:
            workflow = "AiFanOutTask" if is_fan_out else "AiAgentTask"
            await client.start_workflow(workflow, request, id=queue, task_queue=queue)

            async def under_way() -> bool:
                return bool(provider.requests) if hangs else (tmp_path / "begun").exists()

            await eventually(under_way, killed_in)
            first.kill()
            second = ChildProcess("worker", arguments)
            result = await client.get_workflow_handle(queue).result()
        finally:
            await first.stop()
            if second is not None:
                await second.stop()
        keys = [sent.idempotency_key for sent in provider.requests]
    async with SqlLedger(f"sqlite:///{tmp_path}/l.db") as ledger:
        items = await ledger.work_items(WorkItemFilter(task_id=queue, oldest_first=True))
    assert (result["results"][0] if is_fan_out else result)["text"]
    lost = [item for item in items if item.failure is not None]
    (lineage,) = {item.lineage for item in lost}
    assert lineage.removeprefix("prompt-1/") == ("turn-1" if hangs else "turn-1/look_up")
    assert [item.failure.kind for item in lost if item.failure] == ["worker_lost"]
    assert all(item.state.is_terminal for item in items)
    assert len(keys) == len(set(keys)) == (3 if hangs else 2)


async def test_a_conversation_that_grows_too_long_ends_the_task_before_anything_is_sent(
    dev_server: EmbeddedTemporal,
) -> None:
    async def read(page: int) -> str:
        """Read a page."""
        return "é" * 100_000

    script = [answers.tools(*[("read", {"page": page}) for page in range(4)])]
    async with desk(dev_server, script, [read]) as one:
        error = await failure_of_task(await one.start(tools=["read"]))
        assert len(one.provider.requests) == 1
    assert error.type == "TaskFailed" and "the conversation has" in error.message


async def test_the_deadline_holds_for_the_whole_agent(dev_server: EmbeddedTemporal) -> None:
    async def wait() -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    async with desk(dev_server, [answers.tools(("wait", {}))], [wait]) as one:
        handle = await one.start(tools=["wait"], deadline_seconds=10)  # time enough for the first turn
        error = await failure_of_task(handle)
        story = await one.story(handle)
    assert error.type == "DeadlineExceeded"
    assert story == [
        ("turn-1", 0, "completed", None),
        ("turn-1/wait", 0, "failed", "timed_out"),
        ("turn-2", 0, "canceled", None),
    ]


async def test_the_deadline_ends_the_wait_for_an_approval(dev_server: EmbeddedTemporal) -> None:
    @tool(requires_approval=True, approval_timeout=None)
    async def refund(order: int) -> str:
        """Pay an order back."""
        raise AssertionError("nobody approved")

    async with desk(dev_server, [answers.tools(("refund", {"order": 7}))], [refund]) as one:
        handle = await one.start(tools=["refund"], deadline_seconds=10)
        error = await failure_of_task(handle)
        story = await one.story(handle)
    assert error.type == "DeadlineExceeded"
    assert story == [
        ("turn-1", 0, "completed", None),
        ("turn-1/refund/approval", 0, "failed", "timed_out"),
        ("turn-2", 0, "canceled", None),
    ]
