"""Fan-outs whose model calls tools, on the real dev server, with a real HTTP server as the provider."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import CancelledError

from tasquencer.ai import OnToolFailure, ToolError, tool
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tests.support import answers
from tests.support.answers import Answer
from tests.support.desks import Desk, desk
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import ProviderRequest
from tests.support.tasks import failure_of_task
from workflows.ai_fan_out import AiFanOutTask

AT_ONCE = {"initial_interval_seconds": 0}


def prompt_of(request: ProviderRequest) -> str:
    """The prompt to which the conversation belongs."""
    return str(next(one["content"] for one in request.body["messages"] if one["role"] == "user"))


def heard(request: ProviderRequest) -> list[str]:
    """What the tools have said so far."""
    return [one["content"] for one in request.body["messages"] if one["role"] == "tool"]


def calling(name: str, turns: int = 1) -> Callable[[ProviderRequest], Answer]:
    """A model that calls the tool in the given number of turns, and then says what it has heard."""

    def choose(request: ProviderRequest) -> Answer:
        said = heard(request)
        if len(said) < turns:
            return answers.tools((name, {"of": prompt_of(request)}))
        return answers.ok(" ".join(said))

    return choose


def request_for(*prompts: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"prompts": list(prompts), "tools": [name], "retry": AT_ONCE, **fields}


def texts(result: dict[str, Any]) -> list[str | None]:
    return [found["text"] for found in result["results"]]


def states(result: dict[str, Any]) -> list[str]:
    return [found["state"] for found in result["results"]]


async def test_each_prompt_is_a_conversation_of_its_own(dev_server: EmbeddedTemporal) -> None:
    failed: set[str] = set()

    @tool(retries=2, initial_interval=timedelta(0))
    async def look_up(of: str) -> str:
        """Fail at first, for one of them."""
        if of == "two" and of not in failed:
            failed.add(of)
            raise ToolError("not yet", retry=True)
        return f"found {of}"

    asked = request_for("one", "two", name="look_up")
    async with desk(dev_server, [AiFanOutTask], calling("look_up", turns=2), [look_up]) as one:
        result, handle = await one.tasks.run("AiFanOutTask", asked)
        story = await one.story(handle)
        await one.replays(handle)
    assert texts(result) == ["found one found one", "found two found two"]
    assert [found["turns"] for found in result["results"]] == [3, 3]
    assert [found["attempts"] for found in result["results"]] == [5, 6]
    spent = [found["total"]["input_tokens"] for found in result["results"]]
    assert spent[0] > result["results"][0]["input_tokens"] > 0
    assert sum(spent) == result["total"]["input_tokens"]
    assert story[-6:] == [
        ("prompt-2/turn-1", 0, "completed", None),
        ("prompt-2/turn-1/look_up", 0, "failed", "tool_failed"),
        ("prompt-2/turn-1/look_up", 1, "completed", None),
        ("prompt-2/turn-2", 0, "completed", None),
        ("prompt-2/turn-2/look_up", 0, "completed", None),
        ("prompt-2/turn-3", 0, "completed", None),
    ]


async def test_the_policy_counts_a_prompt_once_and_ends_the_tools_of_the_others(
    dev_server: EmbeddedTemporal,
) -> None:
    """Three turns and two tool calls are no three successes."""
    waiting = asyncio.Event()

    async def look_up(of: str) -> str:
        """Wait for ever, for one of them."""
        if of == "slow":
            waiting.set()
            await asyncio.Event().wait()
        await waiting.wait()
        return f"found {of}"

    policy = {"name": "require_successes", "successes": 2}
    asked = request_for("slow", "one", "two", name="look_up", policy=policy)
    async with desk(dev_server, [AiFanOutTask], calling("look_up", turns=2), [look_up]) as one:
        result, handle = await one.tasks.run("AiFanOutTask", asked)
        story = await one.story(handle)
        await one.replays(handle)
    assert states(result) == ["canceled", "completed", "completed"]
    assert [found for found in story if found[0].startswith("prompt-1/")] == [
        ("prompt-1/turn-1", 0, "completed", None),
        ("prompt-1/turn-1/look_up", 0, "canceled", None),
    ]
    assert ("prompt-3/turn-3", 0, "completed", None) in story


async def test_a_prompt_whose_turns_run_out_fails_alone(dev_server: EmbeddedTemporal) -> None:
    async def look_up(of: str) -> str:
        """Find it."""
        return of

    def choose(request: ProviderRequest) -> Answer:
        endless = prompt_of(request) == "endless"
        return calling("look_up", turns=9 if endless else 1)(request)

    asked = request_for("one", "endless", name="look_up", max_turns=2)
    async with desk(dev_server, [AiFanOutTask], choose, [look_up]) as one:
        result, handle = await one.tasks.run("AiFanOutTask", asked)
        error, _ = await one.tasks.failure("AiFanOutTask", {**asked, "policy": "until_exhausted"})
        await one.replays(handle)
    assert states(result) == ["completed", "failed"]
    said = "the model still calls tools after 2 turns (max_turns)"
    assert result["results"][1]["failure"] == {"kind": "max_turns", "message": said}
    assert (error.type, error.message) == ("TaskFailed", f"prompt-2: {said}")


async def test_a_tool_may_fail_its_prompt(dev_server: EmbeddedTemporal) -> None:
    @tool(on_failure=OnToolFailure.FAIL_TASK)
    async def refund(of: str) -> str:
        """Pay back."""
        if of == "two":
            raise ValueError("the till is closed")
        return "paid"

    asked = request_for("one", "two", name="refund")
    async with desk(dev_server, [AiFanOutTask], calling("refund"), [refund]) as one:
        result, _ = await one.tasks.run("AiFanOutTask", asked)
        error, _ = await one.tasks.failure("AiFanOutTask", {**asked, "policy": "until_exhausted"})
    assert states(result) == ["completed", "failed"]
    assert result["results"][1]["failure"]["kind"] == "tool_failed"
    assert error.type == "RetriesExhausted"
    assert error.message.startswith("prompt-2/turn-1/refund: first try failed with tool_failed")


async def test_few_calls_of_models_and_tools_run_at_once(dev_server: EmbeddedTemporal) -> None:
    under_way, most = set[str](), [0]

    async def look_up(of: str) -> str:
        """Find it."""
        under_way.add(of)
        most[0] = max(most[0], len(under_way))
        await asyncio.sleep(0.05)
        under_way.remove(of)
        return of

    prompts = [f"line {number}" for number in range(6)]
    asked = request_for(*prompts, name="look_up", concurrency=2)
    async with desk(dev_server, [AiFanOutTask], calling("look_up"), [look_up]) as one:
        result, handle = await one.tasks.run("AiFanOutTask", asked)
        assert await most_started(one, handle.id) == 2
    assert texts(result) == prompts
    assert most[0] <= 2


async def most_started(one: Desk, task_id: str) -> int:
    """How many work items of the task were started at the same time, by the ledger."""
    changes: list[tuple[Any, int]] = []
    for item in await one.tasks.work_items(one.tasks.client.get_workflow_handle(task_id)):
        if item.started_at is not None:
            changes += [(item.started_at, 1), (item.ended_at, -1)]
    under_way = most = 0
    for _, change in sorted(changes):
        under_way += change
        most = max(most, under_way)
    return most


async def test_a_call_that_waits_for_a_person_takes_no_place(dev_server: EmbeddedTemporal) -> None:
    @tool(requires_approval=True)
    async def refund(of: str) -> str:
        """Pay back."""
        return f"paid {of}"

    async def look_up(of: str) -> str:
        """Find it."""
        return of

    def choose(request: ProviderRequest) -> Answer:
        pays = prompt_of(request) == "pay"
        return (calling("refund") if pays else calling("look_up", turns=2))(request)

    asked = request_for("pay", "one", name="refund", concurrency=1) | {"tools": ["refund", "look_up"]}
    async with desk(dev_server, [AiFanOutTask], choose, [refund, look_up]) as one:
        handle = await one.tasks.start("AiFanOutTask", asked)
        item = await one.started(handle, "prompt-1/turn-1/refund/approval")
        await one.ended(handle, "prompt-2/turn-3")
        action = {"work_item_id": item.id, "actor": "anna", "result": {"decision": "approve"}}
        await handle.execute_update("complete_work_item", action)
        result = await handle.result()
        await one.replays(handle)
    assert texts(result) == ["paid pay", "one one"]


async def test_a_cancel_during_the_tools_closes_everything(dev_server: EmbeddedTemporal) -> None:
    under_way = asyncio.Semaphore(0)

    async def wait(of: str) -> None:
        """Wait for ever."""
        under_way.release()
        await asyncio.Event().wait()

    def choose(request: ProviderRequest) -> Answer:
        return answers.tools(*(("wait", {"of": prompt_of(request)}) for _ in range(2)))

    async with desk(dev_server, [AiFanOutTask], choose, [wait]) as one:
        handle = await one.tasks.start("AiFanOutTask", request_for("a", "b", name="wait"))
        for _ in range(4):
            await under_way.acquire()
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as caught:
            await handle.result()
        assert isinstance(caught.value.cause, CancelledError)
        story = await one.story(handle)
        await one.replays(handle)
    assert Counter(found[2] for found in story) == {"completed": 2, "canceled": 4}


async def test_the_deadline_covers_the_tools(dev_server: EmbeddedTemporal) -> None:
    async def wait(of: str) -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    # Time enough for the first turn.
    asked = request_for("a", name="wait", deadline_seconds=10, policy="until_exhausted")
    async with desk(dev_server, [AiFanOutTask], calling("wait"), [wait]) as one:
        handle = await one.tasks.start("AiFanOutTask", asked)
        error = await failure_of_task(handle)
        story = await one.story(handle)
    assert error.type == "DeadlineExceeded"
    assert ("prompt-1/turn-1/wait", 0, "failed", "timed_out") in story
    assert all(found[2] not in ("initialized", "started") for found in story)


async def test_all_conversations_together_have_a_limit(dev_server: EmbeddedTemporal) -> None:
    """The first one that comes over it fails, and what the others need stays whole."""
    both = asyncio.Barrier(2)

    async def read(of: str) -> str:
        """Read a page, when both are here."""
        await both.wait()
        return "x" * 250_000

    def choose(request: ProviderRequest) -> Answer:
        return calling("read", turns=2)(request) if len(heard(request)) < 2 else answers.ok("Read.")

    async with desk(dev_server, [AiFanOutTask], choose, [read]) as one:
        result, handle = await one.tasks.run("AiFanOutTask", request_for("a", "b", name="read"))
        story = await one.story(handle)
    assert sorted(states(result)) == ["completed", "failed"]
    (failure,) = [found["failure"] for found in result["results"] if found["failure"]]
    assert failure["kind"] == "too_large" and "the conversations of the task have" in failure["message"]
    assert sum(found[0].endswith("/turn-3") for found in story) == 1


async def test_a_fan_out_with_tools_continues_as_new_and_repeats_nothing() -> None:
    """Also while a call waits for a person, and although most results do not travel along."""
    called = Counter[str]()

    @tool(retries=1, initial_interval=timedelta(0))
    async def look_up(of: str) -> str:
        """Fail at first, now and then."""
        called[of] += 1
        if called[of] == 1 and of.endswith(("0", "5")):
            raise ToolError("not yet", retry=True)
        return f"found {of}" + "." * 4_000

    def choose(request: ProviderRequest) -> Answer:
        said = heard(request)
        return calling("look_up", turns=2)(request) if len(said) < 2 else answers.ok(said[0].rstrip("."))

    prompts = [f"line {number}" for number in range(24)]
    soon = {"limit.historyCount.suggestContinueAsNew": 80}
    async with (
        embedded_temporal(ui=False, dynamic_config=soon) as server,
        desk(server, [AiFanOutTask], choose, [look_up]) as one,
    ):
        asked = request_for(*prompts, name="look_up", concurrency=3, policy="until_exhausted")
        handle = await one.tasks.start("AiFanOutTask", asked)
        result = await asyncio.wait_for(handle.result(), 4 * PATIENCE_SECONDS)
        items = await one.tasks.work_items(handle)
        keys = [request.idempotency_key for request in one.provider.requests]
    assert texts(result) == [f"found {prompt}" for prompt in prompts]
    assert len({item.run_id for item in items}) > 2
    assert len(keys) == len(set(keys)) == 3 * 24
    assert sum(called.values()) == 2 * 24 + 5
    assert [found["turns"] for found in result["results"]] == [3] * 24


async def test_an_approval_does_not_stop_a_fan_out_that_is_due_to_continue_as_new() -> None:
    @tool(requires_approval=True)
    async def refund(of: str) -> str:
        """Pay back."""
        return f"paid {of}"

    def choose(request: ProviderRequest) -> Answer:
        return calling("refund")(request) if prompt_of(request) == "pay" else answers.ok("Nothing to pay.")

    prompts = ["pay", *(f"line {number}" for number in range(20))]
    soon = {"limit.historyCount.suggestContinueAsNew": 80}
    async with (
        embedded_temporal(ui=False, dynamic_config=soon) as server,
        desk(server, [AiFanOutTask], choose, [refund]) as one,
    ):
        asked = request_for(*prompts, name="refund", concurrency=2)
        handle = await one.tasks.start("AiFanOutTask", asked)
        item = await one.started(handle, "prompt-1/turn-1/refund/approval")
        for number in range(2, 22):
            await one.ended(handle, f"prompt-{number}/turn-1")
        action = {"work_item_id": item.id, "actor": "anna", "result": {"decision": "approve"}}
        await handle.execute_update("complete_work_item", action)
        result = await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)
    assert texts(result)[:2] == ["paid pay", "Nothing to pay."]
    assert result["completed"] == 21
