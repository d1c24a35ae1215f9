"""The retry recipe as it was meant: a work item is started and makes one call, under the default policy."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from itertools import pairwise

from tasquencer.core.retry import RetryRecipe
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.support.calls import GONE, SLOW_DOWN, ScriptedCalls
from tests.support.tasks import tasks_on
from workflows.ai_agent import AiAgentTask


def test_the_delays_are_those_of_the_recipe() -> None:
    delays = [RetryRecipe().backoff(attempt) for attempt in range(4)]
    assert delays == [timedelta(seconds=seconds) for seconds in (1, 2, 4, 8)]


async def test_each_work_item_is_started_makes_one_call_and_is_followed_by_at_most_one(
    dev_server: EmbeddedTemporal,
) -> None:
    calls = ScriptedCalls(GONE, SLOW_DOWN)
    request = {"prompt": "?", "retry": {"initial_interval_seconds": 0.3}}
    async with tasks_on(dev_server.address, [AiAgentTask], [calls.generate]) as tasks:
        result, handle = await tasks.run("AiAgentTask", request)
        items = await tasks.work_items(handle)
        logs = [await tasks.ledger.transitions(item.id) for item in items]
    assert (result["text"], result["attempts"]) == ("42", 3)
    assert [item.attempt for item in items] == [0, 1, 2]
    assert [[transition.next_state.value for transition in log] for log in logs] == [
        ["initialized", "started", "failed"],
        ["initialized", "started", "failed"],
        ["initialized", "started", "completed"],
    ]
    assert Counter(call.work_item_id for call in calls.calls) == dict.fromkeys([item.id for item in items], 1)
    for before, retry in pairwise(items):
        assert before.ended_at is not None and retry.started_at is not None
        assert retry.started_at >= before.ended_at + timedelta(seconds=retry.delay_seconds)
