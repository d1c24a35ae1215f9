"""`ask` with tools, on the real dev server, with a real HTTP server in the provider's place."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import CancelledError
from temporalio.worker import Worker

from tasquencer.ai import OnToolFailure, ToolError, tool
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tests.asking.agents import WORKFLOWS, note
from tests.support import answers
from tests.support.answers import Answer
from tests.support.desks import desk
from tests.support.provider import ProviderRequest

LATE = '{"order": 7, "late": true}'


async def search_orders(number: int) -> dict[str, Any]:
    """Look an order up by its number."""
    return {"number": number, "parcel": 70}


async def track(parcel: int) -> str:
    """Say where a parcel is."""
    return "in Oslo"


async def test_two_tools_in_two_turns_and_a_typed_answer(dev_server: EmbeddedTemporal) -> None:
    script = [
        answers.tools(("search_orders", {"number": 7})),
        answers.tools(("track", {"parcel": 70})),
        answers.ok("It is late."),
        answers.ok(LATE),
    ]
    async with desk(dev_server, WORKFLOWS, script, [search_orders, track]) as one:
        result, handle = await one.tasks.run("WhereIs", {"tools": ["search_orders", "track"]})
        assert result == {"order": 7, "late": True}
        assert await one.story(handle) == [
            ("ask-1-parcel/turn-1", 0, "completed", None),
            ("ask-1-parcel/turn-1/search_orders", 0, "completed", None),
            ("ask-1-parcel/turn-2", 0, "completed", None),
            ("ask-1-parcel/turn-2/track", 0, "completed", None),
            ("ask-1-parcel/turn-3", 0, "failed", "invalid_output"),
            ("ask-1-parcel/turn-3", 1, "completed", None),
        ]
        assert one.heard(3) == ['{"number": 7, "parcel": 70}', "in Oslo"]
        assert "response_format" in one.provider.requests[0].body
        keys = [request.idempotency_key for request in one.provider.requests]
        assert len(set(keys)) == 4
        await one.replays(handle)


async def test_a_tool_that_fails_twice_is_retried_as_it_says(dev_server: EmbeddedTemporal) -> None:
    calls: list[str] = []

    @tool(retries=2, initial_interval=timedelta(0))
    async def look_up() -> str:
        """Look it up."""
        calls.append("look_up")
        if len(calls) < 3:
            raise ToolError("the shop is closed", retry=True)
        return "late"

    script = [answers.tools(("look_up", {})), answers.ok(LATE)]
    async with desk(dev_server, WORKFLOWS, script, [look_up]) as one:
        result, handle = await one.tasks.run("WhereIs", {"tools": ["look_up"]})
        assert result["late"] is True
        assert [found for found in await one.story(handle) if found[2] == "failed"] == [
            ("ask-1-parcel/turn-1/look_up", 0, "failed", "tool_failed"),
            ("ask-1-parcel/turn-1/look_up", 1, "failed", "tool_failed"),
        ]
        assert one.heard(1) == ["late"]
        await one.replays(handle)


async def test_a_model_that_never_answers_fails_the_question_and_the_code_goes_on(
    dev_server: EmbeddedTemporal,
) -> None:
    script = [*[answers.tools(("track", {"parcel": n})) for n in range(2)], answers.ok("Here I am.")]
    async with desk(dev_server, WORKFLOWS, script, [track]) as one:
        result, handle = await one.tasks.run("Persistent", {"tools": ["track"], "max_turns": 2})
        assert result == [
            "TaskFailed",
            "ask-1: the model still calls tools after 2 turns (max_turns)",
            "Here I am.",
        ]
        assert (await one.story(handle))[-1] == ("ask-2", 0, "completed", None)
        await one.replays(handle)


async def test_a_tool_may_fail_the_question_and_stops_the_others(dev_server: EmbeddedTemporal) -> None:
    waiting = asyncio.Event()

    @tool(on_failure=OnToolFailure.FAIL_TASK)
    async def refund() -> str:
        """Pay back."""
        await waiting.wait()
        raise ValueError("the till is closed")

    async def wait() -> None:
        """Wait for ever."""
        waiting.set()
        await asyncio.Event().wait()

    script = [answers.tools(("refund", {}), ("wait", {})), answers.ok("Well.")]
    async with desk(dev_server, WORKFLOWS, script, [refund, wait]) as one:
        result, handle = await one.tasks.run("Persistent", {"tools": ["refund", "wait"]})
        assert result[0] == "RetriesExhausted" and result[2] == "Well."
        assert "ask-1/turn-1/refund" in result[1] and "the till is closed" in result[1]
        assert ("ask-1/turn-1/wait", 0, "canceled", None) in await one.story(handle)
        await one.replays(handle)


async def test_a_turn_without_an_answer_fails_the_question(dev_server: EmbeddedTemporal) -> None:
    script = [answers.tools(("track", {"parcel": 7})), answers.refusal(), answers.ok("Again.")]
    async with desk(dev_server, WORKFLOWS, script, [track]) as one:
        result, _ = await one.tasks.run("Persistent", {"tools": ["track"]})
    assert result[0] == "NotRetryable"
    assert result[1].startswith("ask-1/turn-2: first try failed with refused")


async def test_a_person_approves_a_call_and_only_a_decision_is_taken(dev_server: EmbeddedTemporal) -> None:
    @tool(requires_approval=True)
    async def refund(order: int) -> str:
        """Pay an order back."""
        return f"paid {order}"

    script = [answers.tools(("refund", {"order": 7})), answers.ok(LATE)]
    async with desk(dev_server, WORKFLOWS, script, [refund]) as one:
        handle = await one.tasks.start("WhereIs", {"tools": ["refund"]})
        asked = await one.started(handle, "ask-1-parcel/turn-1/refund/approval")
        action = {"work_item_id": asked.id, "actor": "anna"}
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update("complete_work_item", {**action, "result": {"text": "yes"}})
        await handle.execute_update("complete_work_item", {**action, "result": {"decision": "approve"}})
        assert "decision" in str(refused.value.__cause__)
        assert await handle.result() == {"order": 7, "late": True}
        assert one.heard(1) == ["paid 7"]
        await one.replays(handle)


async def test_a_cancel_closes_all_tool_calls_of_a_question(dev_server: EmbeddedTemporal) -> None:
    under_way = asyncio.Semaphore(0)

    async def wait(name: str) -> str:
        """Wait for ever."""
        under_way.release()
        await asyncio.Event().wait()
        return name

    script = [answers.tools(("wait", {"name": "a"}), ("wait", {"name": "b"}))]
    async with desk(dev_server, WORKFLOWS, script, [wait]) as one:
        handle = await one.tasks.start("WhereIs", {"tools": ["wait"]})
        for _ in range(2):
            await under_way.acquire()
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as caught:
            await handle.result()
        assert isinstance(caught.value.cause, CancelledError)
        assert {found[2] for found in await one.story(handle)} == {"completed", "canceled"}
        await one.replays(handle)


async def test_a_conversation_that_grows_too_long_fails_the_question_before_anything_is_sent(
    dev_server: EmbeddedTemporal,
) -> None:
    async def read(page: int) -> str:
        """Read a page."""
        return "é" * 100_000

    script = [answers.tools(*[("read", {"page": page}) for page in range(4)]), answers.ok("Next.")]
    async with desk(dev_server, WORKFLOWS, script, [read]) as one:
        result, _ = await one.tasks.run("Persistent", {"tools": ["read"]})
        assert len(one.provider.requests) == 2
    assert result[0] == "TaskFailed" and "the conversation has" in result[1]


async def test_the_deadline_holds_for_the_whole_conversation(dev_server: EmbeddedTemporal) -> None:
    async def wait() -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    async with desk(dev_server, WORKFLOWS, [answers.tools(("wait", {})), answers.ok("Late.")], [wait]) as one:
        result, handle = await one.tasks.run("Persistent", {"tools": ["wait"], "deadline_seconds": 6})
        story = await one.story(handle)
    assert result[0] == "DeadlineExceeded"
    assert story[:3] == [
        ("ask-1/turn-1", 0, "completed", None),
        ("ask-1/turn-1/wait", 0, "failed", "timed_out"),
        ("ask-1/turn-2", 0, "canceled", None),
    ]


async def test_a_task_of_its_own_continues_as_new_in_the_middle_of_a_question() -> None:
    """Its policy, `fail_fast`, is not asked about the failed attempts of turns and tools."""
    turns = 8
    counted: dict[str, int] = {}

    @tool(retries=1, initial_interval=timedelta(0))
    async def look_up(number: int, of: str) -> str:
        """Fail at first."""
        key = f"{of}-{number}"
        counted[key] = counted.get(key, 0) + 1
        if counted[key] == 1:
            raise ToolError("not yet", retry=True)
        return f"{key}: found"

    def script(request: ProviderRequest) -> Answer:
        messages = request.body["messages"]
        of = messages[0]["content"]
        number = sum(message["role"] == "tool" for message in messages)
        return answers.tools(("look_up", {"number": number, "of": of})) if number < turns else answers.ok(of)

    soon = {"limit.historyCount.suggestContinueAsNew": 60}
    async with (
        embedded_temporal(ui=False, dynamic_config=soon) as server,
        desk(server, WORKFLOWS, script, [look_up]) as one,
        Worker(one.tasks.client, task_queue=f"{one.tasks.task_queue}-notes", activities=[note]),
    ):
        result, handle = await one.tasks.run("Clerk", {"tools": ["look_up"]})
        items = await one.tasks.work_items(handle)
        keys = [request.idempotency_key for request in one.provider.requests]
        last = one.heard(-1)
    assert result[:2] == ["Where is order 7?", "And order 8?"]
    assert len({item.run_id for item in items}) > 1
    assert len(keys) == len(set(keys)) == 2 * (turns + 1)
    assert set(counted.values()) == {2}
    assert last == [f"And order 8?-{number}: found" for number in range(turns)]
