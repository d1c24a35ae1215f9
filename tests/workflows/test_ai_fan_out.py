"""Many prompts in one task, on the real dev server, with a scripted call."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import CancelledError

from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.job import AiJob
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.temporal import as_application_error
from tests.support.calls import ScriptedCalls
from tests.support.held_ledgers import HeldLedger, leading_to
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.tasks import comes_to, tasks_on
from workflows.ai_fan_out import AiFanOutTask

AT_ONCE = {"initial_interval_seconds": 0}


class Echo:
    """Answers with the prompt; a prompt that begins with `fail` fails, `fail once` only the first time.

    One that begins with `late` takes a second, with `held` until the test opens `gate`, with `wait` it never
    ends. Where `paid` is in the prompt, each call uses 3 and 4 tokens and costs $0.25, also one that fails.

    Attributes:
        together: The first calls wait until this number is under way.
    """

    def __init__(self) -> None:
        self.asked = Counter[str]()
        self.under_way = 0
        self.most_under_way = 0
        self.gate = asyncio.Event()
        self.together = 1

    @activity.defn(name="generate")
    async def generate(self, job: AiJob) -> AiAnswer:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            self.asked[job.prompt] += 1
            await eventually(self._have_met, f"{self.together} calls at once")
            await asyncio.sleep(1 if job.prompt.startswith("late") else 0.02)
        finally:
            self.under_way -= 1
        while job.prompt.startswith("wait") or (job.prompt.startswith("held") and not self.gate.is_set()):
            activity.heartbeat()
            await asyncio.sleep(0.02)
        used: dict[str, Any] = PAID if "paid" in job.prompt else {}
        if job.prompt.startswith("fail once") and self.asked[job.prompt] == 1:
            raise as_application_error(Failure.of(FailureKind.RATE_LIMITED, "slow down", **used))
        if job.prompt.startswith("fail") and not job.prompt.startswith("fail once"):
            raise as_application_error(Failure.of(FailureKind.REFUSED, "no", **used))
        return AiAnswer(text=f"echo of {job.prompt}", **used)

    async def _have_met(self) -> bool:
        return self.most_under_way >= self.together


PAID = {"input_tokens": 3, "output_tokens": 4, "cost_usd": 0.25}


async def test_the_total_is_that_of_all_attempts_at_all_prompts(dev_server: EmbeddedTemporal) -> None:
    request = {"prompts": ["paid one", "fail once paid two", "fail paid three", "four"], "retry": AT_ONCE}
    async with tasks_on(dev_server.address, [AiFanOutTask], [Echo().generate]) as tasks:
        result, _ = await tasks.run("AiFanOutTask", request)
    assert result["total"] == {"input_tokens": 12, "output_tokens": 16, "cost_usd": 1.0}
    assert [found["cost_usd"] for found in result["results"]] == [0.25, 0.25, None, None]


async def test_every_prompt_is_answered_in_order_and_few_at_once(dev_server: EmbeddedTemporal) -> None:
    echo = Echo()
    echo.together = 2
    prompts = [f"{'fail once ' if number % 5 == 0 else ''}line {number}" for number in range(30)]
    request = {"prompts": prompts, "concurrency": 4, "retry": AT_ONCE}
    async with tasks_on(dev_server.address, [AiFanOutTask], [echo.generate]) as tasks:
        result, handle = await tasks.run("AiFanOutTask", request)
        items = await tasks.work_items(handle)
    assert [found["text"] for found in result["results"]] == [f"echo of {prompt}" for prompt in prompts]
    assert [found["attempts"] for found in result["results"]] == [2 if n % 5 == 0 else 1 for n in range(30)]
    assert (result["completed"], result["failed"], result["canceled"]) == (30, 0, 0)
    assert echo.most_under_way <= 4
    assert len(items) == sum(echo.asked.values()) == 36
    assert {item.id for item in items} >= {found["work_item_id"] for found in result["results"]}


async def test_failures_are_absorbed_unless_the_policy_says_otherwise(dev_server: EmbeddedTemporal) -> None:
    prompts = ["one", "fail two", "three"]
    async with tasks_on(dev_server.address, [AiFanOutTask], [Echo().generate]) as tasks:
        result, _ = await tasks.run("AiFanOutTask", {"prompts": prompts})
        error, _ = await tasks.failure("AiFanOutTask", {"prompts": prompts, "policy": "until_exhausted"})
    assert [found["state"] for found in result["results"]] == ["completed", "failed", "completed"]
    assert result["results"][1]["failure"] == {"kind": "refused", "message": "no"}
    assert error.type == "NotRetryable"
    assert error.message.startswith("prompt-2: first try failed with refused")


async def test_the_verdict_cancels_the_siblings_in_flight_and_in_the_queue(
    dev_server: EmbeddedTemporal,
) -> None:
    echo = Echo()
    prompts = ["fail", "wait", *(f"line {number}" for number in range(5)), "wait too"]
    policy = {"name": "absorb_failures", "limit": 0}
    request = {"prompts": prompts, "concurrency": 2, "policy": policy}
    async with tasks_on(dev_server.address, [AiFanOutTask], [echo.generate]) as tasks:
        error, handle = await tasks.failure("AiFanOutTask", request)
        items = await tasks.work_items(handle)
        logs = [await tasks.ledger.transitions(item.id) for item in items]
    assert error.type == "NotRetryable"
    states = Counter(item.state for item in items)
    assert states == {WorkItemState.FAILED: 1, WorkItemState.CANCELED: 7}
    assert {log[-1].reason for log in logs if log[-1].next_state == "canceled"} == {"the task failed"}
    assert set(echo.asked) <= {"fail", "wait"}


async def test_it_ends_when_so_many_answers_are_there_as_it_needs(dev_server: EmbeddedTemporal) -> None:
    policy = {"name": "require_successes", "successes": 2}
    request = {"prompts": ["wait", "one", "two", "wait too"], "concurrency": 4, "policy": policy}
    async with tasks_on(dev_server.address, [AiFanOutTask], [Echo().generate]) as tasks:
        result, _ = await tasks.run("AiFanOutTask", request)
    assert [found["text"] for found in result["results"]] == [None, "echo of one", "echo of two", None]
    assert (result["completed"], result["canceled"]) == (2, 2)


async def test_a_fan_out_that_continues_as_new_asks_nothing_twice_and_keeps_its_answers() -> None:
    echo = Echo()
    prompts = [f"{'fail once ' if number % 7 == 0 else ''}line {number}" for number in range(40)]
    settings = {"limit.historyCount.suggestContinueAsNew": 60}
    request = {"prompts": prompts, "concurrency": 3, "retry": AT_ONCE}
    async with (
        embedded_temporal(ui=False, dynamic_config=settings) as server,
        tasks_on(server.address, [AiFanOutTask], [echo.generate]) as tasks,
    ):
        handle = await tasks.start("AiFanOutTask", request)
        result = await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)
        items = await tasks.work_items(handle)
    assert [found["text"] for found in result["results"]] == [f"echo of {prompt}" for prompt in prompts]
    assert len({item.run_id for item in items} | {handle.result_run_id}) > 1
    assert echo.most_under_way <= 3
    assert len(items) == sum(echo.asked.values()) == 46


async def test_a_wrong_request_fails_at_once(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, [AiFanOutTask], [Echo().generate]) as tasks:
        error, handle = await tasks.failure("AiFanOutTask", {"prompts": ["a"], "policy": "hope"})
        assert await tasks.work_items(handle) == []
    assert error.type == "InvalidRequest"
    assert error.message.startswith("policy.name: ")


async def test_a_cancel_that_meets_an_answer_ends_it_and_keeps_the_answer(
    dev_server: EmbeddedTemporal,
) -> None:
    """One lineage is in its backoff, and canceled at once; the other one's outcome is on its way."""
    ledger = HeldLedger(leading_to(WorkItemState.COMPLETED), committed=True)
    policy = {"name": "require_successes", "successes": 1}
    echo = Echo()
    request = {
        "prompts": ["fail once", "held one"],
        "policy": policy,
        "retry": {"initial_interval_seconds": 3600},
    }
    async with tasks_on(dev_server.address, [AiFanOutTask], [echo.generate], ledger=ledger) as tasks:
        handle = await tasks.start("AiFanOutTask", request)
        await comes_to(handle, "timer_started_event_attributes")  # the backoff
        echo.gate.set()
        await ledger.gate.wait_until_reached()
        await handle.cancel()
        ledger.gate.open()
        with pytest.raises(WorkflowFailureError) as caught:
            await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)
        items = await tasks.work_items(handle)
    assert isinstance(caught.value.cause, CancelledError)
    assert sorted((item.lineage, item.attempt, item.state.value) for item in items) == [
        ("prompt-1", 0, "failed"),
        ("prompt-1", 1, "canceled"),
        ("prompt-2", 0, "completed"),
    ]


async def test_an_action_that_is_there_before_the_worker_is_understood(dev_server: EmbeddedTemporal) -> None:
    queue = f"queue-{uuid4()}"
    client = await Client.connect(dev_server.address)
    handle: WorkflowHandle[Any, Any] = await client.start_workflow(
        "AiFanOutTask", {"prompts": ["one"]}, id=queue, task_queue=queue
    )
    acting = asyncio.create_task(handle.execute_update("retry_now", {"actor": "anna"}))
    await asyncio.sleep(0.2)  # it is on the server before the worker is there

    async def refused_first(_: str) -> None:
        await asyncio.wait([acting])

    calls = ScriptedCalls(before=refused_first)
    async with tasks_on(dev_server.address, [AiFanOutTask], [calls.generate], task_queue=queue):
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await asyncio.wait_for(acting, PATIENCE_SECONDS)
        assert (await handle.result())["completed"] == 1
    assert "nothing waits" in str(refused.value.cause)


async def test_where_no_prompt_can_begin_before_the_deadline_the_policy_sees_all_of_them(
    dev_server: EmbeddedTemporal,
) -> None:
    queue = f"queue-{uuid4()}"
    client = await Client.connect(dev_server.address)
    request = {"prompts": ["one", "two", "three"], "deadline_seconds": 0.5}
    handle: WorkflowHandle[Any, Any] = await client.start_workflow(
        "AiFanOutTask", request, id=queue, task_queue=queue
    )
    await asyncio.sleep(1)  # the deadline passes before the worker is there
    async with tasks_on(dev_server.address, [AiFanOutTask], [Echo().generate], task_queue=queue) as tasks:
        result = await handle.result()
        items = await tasks.work_items(handle)
    assert (result["completed"], result["canceled"]) == (0, 3)
    assert {item.state for item in items} == {WorkItemState.CANCELED}
    assert len(items) == 3


@pytest.mark.parametrize("limit", [18, 22])
async def test_a_backoff_that_ends_when_a_new_run_is_due_and_nobody_is_left_opens_it(limit: int) -> None:
    settings = {"limit.historyCount.suggestContinueAsNew": limit}
    request = {"prompts": ["fail once", "late one"], "concurrency": 2}
    request |= {"retry": {"initial_interval_seconds": 2}}
    async with (
        embedded_temporal(ui=False, dynamic_config=settings) as server,
        tasks_on(server.address, [AiFanOutTask], [Echo().generate]) as tasks,
    ):
        handle = await tasks.start("AiFanOutTask", request)
        result = await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)
    assert result["completed"] == 2
