"""Whatever models and tools do, each agent ends within its retries, with nothing open and nothing twice."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from datetime import timedelta
from itertools import pairwise
from random import Random
from uuid import uuid4

import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.worker import Worker

from tasquencer.ai import AiCalls, OnToolFailure, ToolContext, ToolError, tool
from tasquencer.ai.provider.client import make_client
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tests.support import answers
from tests.support.answers import Answer
from tests.support.provider import ProviderRequest, ScriptedProvider
from workflows.ai_agent import AiAgentTask
from workflows.ai_fan_out import AiFanOutTask

AGENTS = 24
MODEL_RETRIES = 2
TOOL_RETRIES = {"steady": 0, "shaky": 2, "vital": 1}
_NO_WAIT = timedelta(0)

made: Counter[str] = Counter()


def outcome(context: ToolContext, odds_of_failure: float) -> str:
    """Fail or return, as the work item's id says."""
    made[context.work_item_id] += 1
    dice = Random(context.work_item_id)
    if dice.random() < odds_of_failure:
        raise ToolError("not this time", retry=dice.random() < 0.7)
    return "done"


@tool
async def steady(context: ToolContext) -> str:
    """Fail rarely."""
    return outcome(context, 0.1)


@tool(retries=TOOL_RETRIES["shaky"], initial_interval=_NO_WAIT)
def shaky(context: ToolContext) -> str:
    """Fail often."""
    return outcome(context, 0.6)


@tool(retries=TOOL_RETRIES["vital"], initial_interval=_NO_WAIT, on_failure=OnToolFailure.FAIL_TASK)
async def vital(context: ToolContext) -> str:
    """Fail the task."""
    return outcome(context, 0.2)


def answer(request: ProviderRequest) -> Answer:
    """What the model says, decided by the request's key alone."""
    dice = Random(request.idempotency_key)
    turns = sum(message["role"] == "assistant" for message in request.body["messages"])
    kind = dice.random()
    if kind < 0.1:
        return answers.status(503)
    if kind < 0.2:
        return answers.rate_limited()
    if kind < 0.25:
        return answers.empty_text()
    if kind < 0.4:  # about half of the agents are to fail: no run is to be without both ends
        return answers.refusal()
    if turns >= 3 or kind < 0.55:
        return answers.ok("Done.")
    names = dice.choices(["steady", "shaky", "vital", "unknown"], [4, 4, 2, 1], k=dice.randint(1, 4))
    return answers.tools(*[(name, dice.choice([{}, {}, {"wrong": 1}])) for name in names])


@pytest.mark.parametrize("together", [False, True], ids=["tasks of their own", "one fan-out"])
async def test_each_agent_ends_within_its_retries_and_leaves_nothing_open(
    dev_server: EmbeddedTemporal, together: bool
) -> None:
    made.clear()
    ledger, queue = InMemoryLedger(), f"queue-{uuid4()}"
    request = {
        "tools": ["steady", "shaky", "vital"],
        "max_turns": 6,
        "max_retries": MODEL_RETRIES,
        "retry": {"initial_interval_seconds": 0},
    }
    tasks = [queue] if together else [f"{queue}-{number}" for number in range(AGENTS)]
    async with (
        ScriptedProvider(answer) as provider,
        make_client(api_key="key-of-the-tests", base_url=provider.base_url) as model,
    ):
        calls = AiCalls(model, "tiny-1", tools=[steady, shaky, vital])
        client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(ledger, calls=calls)])

        async def run(task: str) -> str:
            asked = request | {"prompt": "?"}
            try:
                await client.execute_workflow("AiAgentTask", asked, id=task, task_queue=queue)
            except WorkflowFailureError:
                return "failed"
            return "completed"

        async def run_together() -> list[str]:
            asked = request | {"prompts": ["?"] * AGENTS}
            result = await client.execute_workflow("AiFanOutTask", asked, id=queue, task_queue=queue)
            return [found["state"] for found in result["results"]]

        async with Worker(client, task_queue=queue, workflows=[AiAgentTask, AiFanOutTask]):
            ends = await (run_together() if together else asyncio.gather(*map(run, tasks)))
        keys = Counter(sent.idempotency_key for sent in provider.requests)
    # Both ends, or the odds are wrong and this proves little.
    assert set(ends) == {"completed", "failed"}
    assert len(ends) == AGENTS
    assert set(keys.values()) == {1}
    assert set(made.values()) == {1}
    asked: set[str] = set()
    for task in tasks:
        items = await ledger.work_items(WorkItemFilter(task_id=task, oldest_first=True, limit=10_000))
        asked |= {item.id for item in items}
        lineages = defaultdict[str, list[WorkItem]](list)
        for item in items:
            lineages[item.lineage].append(item)
        for lineage, attempts in lineages.items():
            check(lineage, attempts)
    assert set(keys) | set(made) <= asked


def check(lineage: str, attempts: list[WorkItem]) -> None:
    """I4, I5, I6 for one lineage."""
    retries = TOOL_RETRIES.get(lineage.rpartition("/")[2].rstrip("-0123456789"), MODEL_RETRIES)
    assert [item.attempt for item in attempts] == list(range(len(attempts)))
    assert len(attempts) <= retries + 1, lineage
    assert all(item.state.is_terminal for item in attempts), lineage
    for before, after in pairwise(attempts):
        assert before.state is WorkItemState.FAILED
        assert before.failure is not None and before.failure.transient
        if after.started_at is not None and before.ended_at is not None:
            assert after.started_at >= before.ended_at + timedelta(seconds=after.delay_seconds)
