"""`ask`: an AI call in one line, in workflows of users, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import CancelledError
from temporalio.worker import Replayer, Worker

from tasquencer.ai import AiAnswer, AiJob
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryLedger, ScriptedCalls
from tests.asking.workflows import WORKFLOWS, shout
from tests.support.patience import eventually
from tests.support.tasks import IMPORTING_TESTS_ONCE, Tasks
from workflows.ai_agent import AiAgentTask

SLOW_DOWN = Failure.of(FailureKind.RATE_LIMITED, "429 from the provider")


@asynccontextmanager
async def asking(server: EmbeddedTemporal, calls: ScriptedCalls | None) -> AsyncIterator[Tasks]:
    ledger = InMemoryLedger()
    client = await Client.connect(server.address, plugins=[TasquencerPlugin(ledger, calls=calls)])
    queue = f"asking-{uuid4()}"
    async with Worker(
        client,
        task_queue=queue,
        workflows=WORKFLOWS,
        activities=[shout],
        workflow_runner=IMPORTING_TESTS_ONCE,
    ):
        yield Tasks(client, queue, ledger)


async def attempts(tasks: Tasks, handle: WorkflowHandle[Any, Any]) -> list[tuple[str, int, str]]:
    items = await tasks.ledger.work_items(WorkItemFilter(task_id=handle.id, oldest_first=True, limit=100))
    return [(item.lineage, item.attempt, item.failure.kind if item.failure else item.state) for item in items]


async def replays(tasks: Tasks, handle: WorkflowHandle[Any, Any]) -> None:
    """A worker that has never seen the workflow comes to the same commands."""
    history = await handle.fetch_history()
    replayer = Replayer(workflows=WORKFLOWS, plugins=[TasquencerPlugin(InMemoryLedger())])
    await replayer.replay_workflow(history)


async def test_what_does_not_fit_the_type_is_a_failed_attempt_and_the_next_one_answers(
    dev_server: EmbeddedTemporal,
) -> None:
    calls = ScriptedCalls(["no json", '{"urgent": true, "team": "sales"}', {"urgent": True}])
    async with asking(dev_server, calls) as tasks:
        result, handle = await tasks.run("Triage", "My house is on fire.")

        assert result == {"urgent": True, "team": "support"}
        assert await attempts(tasks, handle) == [
            ("ask-1-label", 0, "invalid_output"),
            ("ask-1-label", 1, "invalid_output"),
            ("ask-1-label", 2, "completed"),
        ]
        schema = calls.jobs[0].output_schema
        assert schema is not None and schema["required"] == ["urgent"]
        await replays(tasks, handle)


async def test_calls_run_side_by_side_each_in_a_lineage_of_its_own(dev_server: EmbeddedTemporal) -> None:
    answers = {"summary": "all is well", "label": {"urgent": False}, "numbers": {"output": [1, 2]}}
    calls = ScriptedCalls(lambda job: answers[job.prompt.split()[0]])  # type: ignore[return-value, arg-type]
    async with asking(dev_server, calls) as tasks:
        result, handle = await tasks.run("SideBySide", "a letter")

        assert result == ["all is well", False, [1, 2]]
        assert sorted(await attempts(tasks, handle)) == [
            ("ask-1", 0, "completed"),
            ("ask-2-label", 0, "completed"),
            ("ask-3", 0, "completed"),
        ]
        assert min(job.prompt for job in calls.jobs) == "label of A LETTER"
        await replays(tasks, handle)


async def test_it_works_outside_of_the_sandbox_and_under_a_name_of_its_own(
    dev_server: EmbeddedTemporal,
) -> None:
    calls = ScriptedCalls([SLOW_DOWN, {"output": "perhaps"}, {"output": "yes"}])
    async with asking(dev_server, calls) as tasks:
        result, handle = await tasks.run("Outside", "Well?")

        assert result == "yes!"
        assert [name for name, _, _ in await attempts(tasks, handle)] == ["yes-or-no"] * 3
        assert calls.jobs[0].messages[0].role == "system"


async def test_an_answer_that_never_comes_fails_the_workflow_with_the_task_s_type(
    dev_server: EmbeddedTemporal,
) -> None:
    calls = ScriptedCalls([FailureKind.UNAUTHORIZED])
    async with asking(dev_server, calls) as tasks:
        error, handle = await tasks.failure("Triage", "…")

        assert error.type == "NotRetryable"
        assert "ask-1-label: first try failed with unauthorized" in error.message
        assert await attempts(tasks, handle) == [("ask-1-label", 0, "unauthorized")]


async def test_code_that_catches_the_failure_goes_on(dev_server: EmbeddedTemporal) -> None:
    async with asking(dev_server, ScriptedCalls([SLOW_DOWN, "better"])) as tasks:
        result, handle = await tasks.run("Forgiving", "…")

        assert result[0] == "RetriesExhausted"
        assert result[2] == "better"
        assert await attempts(tasks, handle) == [("ask-1", 0, "rate_limited"), ("ask-2", 0, "completed")]
        await replays(tasks, handle)


async def test_a_workflow_with_a_task_of_its_own_asks_in_the_same_task(dev_server: EmbeddedTemporal) -> None:
    """Its policy, `fail_fast`, is not asked about the failed attempt of the question."""
    async with asking(dev_server, ScriptedCalls([SLOW_DOWN, "loud", "quiet"])) as tasks:
        result, handle = await tasks.run("WithTask", "…")

        assert result == ["LOUD", "quiet"]
        assert await attempts(tasks, handle) == [
            ("ask-1", 0, "rate_limited"),
            ("ask-1", 1, "completed"),
            ("main", 0, "completed"),
            ("ask-2", 0, "completed"),
        ]
        await replays(tasks, handle)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"temprature": 1}, "temprature: unknown field (did you mean 'temperature'?)"),
        ({"max_retries": -1}, "max_retries: "),
        ({"prompt": "Why?"}, "prompt: give it to ask as its first argument"),
        ({"extra_body": {"model": "x"}}, "extra_body: must not set 'model': use the field 'model'"),
    ],
)
async def test_a_wrong_field_is_named(
    dev_server: EmbeddedTemporal, fields: dict[str, Any], problem: str
) -> None:
    async with asking(dev_server, ScriptedCalls([])) as tasks:
        error, handle = await tasks.failure("Wrong", fields)

        assert error.type == "InvalidRequest"
        assert problem in error.message
        assert await attempts(tasks, handle) == []


async def test_without_calls_it_says_what_to_do(dev_server: EmbeddedTemporal) -> None:
    async with asking(dev_server, None) as tasks:
        handle = await tasks.start("Triage", "…")
        assert "give the worker's plugin `calls=`" in await reason_to_pause(handle)
        await handle.terminate()


async def test_without_the_plugin_it_says_what_to_do(dev_server: EmbeddedTemporal) -> None:
    client = await Client.connect(dev_server.address)
    async with Worker(client, task_queue="bare-asking", workflows=WORKFLOWS, activities=[shout]):
        handle = await client.start_workflow("Triage", "…", id=f"bare-{uuid4()}", task_queue="bare-asking")
        assert "the worker lacks TasquencerPlugin" in await reason_to_pause(handle)
        await handle.terminate()


async def reason_to_pause(handle: WorkflowHandle[Any, Any]) -> str:
    """Why the workflow task fails again and again."""
    found: list[str] = []

    async def probe() -> bool:
        found.extend(
            [
                event.workflow_task_failed_event_attributes.failure.message
                async for event in handle.fetch_history_events()
                if event.HasField("workflow_task_failed_event_attributes")
            ]
        )
        return bool(found)

    await eventually(probe, "a failed workflow task")
    return found[0]


async def test_a_timeout_around_it_ends_the_attempt_and_the_code_goes_on(
    dev_server: EmbeddedTemporal,
) -> None:
    calls = SlowCalls()
    async with asking(dev_server, calls) as tasks:
        result, handle = await tasks.run("InTime")

        assert result == "quick answer"
        assert await attempts(tasks, handle) == [("ask-1", 0, "canceled"), ("ask-2", 0, "completed")]
        await replays(tasks, handle)


async def test_a_canceled_workflow_leaves_no_open_attempt(dev_server: EmbeddedTemporal) -> None:
    calls = SlowCalls()
    async with asking(dev_server, calls) as tasks:
        handle = await tasks.start("Outside", "slow")
        await asyncio.wait_for(calls.under_way.wait(), 30)
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as ended:
            await handle.result()
        assert isinstance(ended.value.cause, CancelledError)

        assert await attempts(tasks, handle) == [("yes-or-no", 0, "canceled")]


async def test_each_run_of_a_workflow_that_continues_as_new_asks_anew(dev_server: EmbeddedTemporal) -> None:
    async with asking(dev_server, ScriptedCalls(["one", "two", "three"])) as tasks:
        result, handle = await tasks.run("OverAndOver", [])

        assert result == ["one", "two", "three"]
        assert await attempts(tasks, handle) == [("ask-1", 0, "completed")] * 3


async def test_what_the_workflow_offers_itself_stays_its_own(dev_server: EmbeddedTemporal) -> None:
    async with asking(dev_server, ScriptedCalls(["this"])) as tasks:
        result, handle = await tasks.run("OwnNames")

        assert result == "this mine"
        assert await handle.query("work_items") == "none of yours"


async def test_a_person_may_give_the_answer_if_it_fits(dev_server: EmbeddedTemporal) -> None:
    calls = SlowCalls()
    async with asking(dev_server, calls) as tasks:
        handle = await tasks.start("Triage", "slow")
        await asyncio.wait_for(calls.under_way.wait(), 30)
        (item,) = await tasks.work_items(handle)
        action = {"work_item_id": item.id, "actor": "anna"}
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update("complete_work_item", {**action, "result": {"text": "so so"}})
        await handle.execute_update("complete_work_item", {**action, "result": {"text": '{"urgent": false}'}})

        assert "result.text: " in str(refused.value.__cause__)
        assert await handle.result() == {"urgent": False, "team": "support"}


async def test_tokens_and_cost_of_an_answer_that_does_not_fit_are_kept(dev_server: EmbeddedTemporal) -> None:
    paid = AiAnswer(text='{"urgent": true, "team": "?"}', input_tokens=9, output_tokens=4, cost_usd=0.5)
    async with asking(dev_server, ScriptedCalls([paid, {"urgent": True}])) as tasks:
        _, handle = await tasks.run("Triage", "…")
        (wrong, _) = await tasks.work_items(handle)

        assert wrong.failure is not None
        assert wrong.failure.details["input_tokens"] == 9
        assert wrong.failure.details["cost_usd"] == 0.5
        assert wrong.failure.message.endswith("team: there is no such team")


async def test_one_ladder_leads_from_feedback_to_another_model(dev_server: EmbeddedTemporal) -> None:
    wait_an_hour = Failure.of(FailureKind.RATE_LIMITED, "429", retry_after_seconds=3600)
    async with asking(dev_server, ScriptedCalls(["no json", wait_an_hour, {"urgent": True}])) as tasks:
        result, handle = await tasks.run("Climbing")
        first, second, third = await tasks.work_items(handle)

        assert result is True
        assert [item.delay_reason for item in (second, third)] == ["backoff", "fallback"]
        payloads: list[Any] = [item.payload for item in (first, second, third)]
        assert [payload["model"] for payload in payloads] == ["a:1", "a:1", "b:1"]
        assert [len(payload["messages"]) for payload in payloads] == [1, 3, 1]
        assert payloads[1]["messages"][1] == {"role": "assistant", "content": "no json"}
        await replays(tasks, handle)


async def test_an_agent_task_with_a_schema_has_the_output_beside_the_text(
    dev_server: EmbeddedTemporal,
) -> None:
    ledger = InMemoryLedger()
    calls = ScriptedCalls(["no json", {"urgent": True}, "plain"])
    client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(ledger, calls=calls)])
    queue = f"asking-{uuid4()}"
    schema = {"type": "object", "properties": {"urgent": {"type": "boolean"}}, "required": ["urgent"]}
    request = {"prompt": "Urgent?", "output_schema": schema, "retry": {"initial_interval_seconds": 0.01}}
    async with Worker(client, task_queue=queue, workflows=[AiAgentTask]):
        with_schema, without = [
            await client.execute_workflow("AiAgentTask", asked, id=f"agent-{uuid4()}", task_queue=queue)
            for asked in (request, {"prompt": "Hello"})
        ]

    assert (with_schema["output"], with_schema["attempts"]) == ({"urgent": True}, 2)
    assert "output" not in without
    assert calls.jobs[1].messages[1].content == "no json"


class SlowCalls(ScriptedCalls):
    """Never answers the question "slow"."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.under_way = asyncio.Event()

    async def _answer(self, job: AiJob) -> str:
        if "slow" in job.prompt:
            self.under_way.set()
            await asyncio.Event().wait()
        return f"{job.prompt} answer"
