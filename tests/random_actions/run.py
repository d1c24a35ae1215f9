"""Runs random tasks on a real server and gathers their stories."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.client import Client, WorkflowFailureError, WorkflowHistory
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.service import RPCError
from temporalio.worker import Replayer, Worker

from tasquencer.ai.fan_out import AiFanOutRequest
from tasquencer.ai.record import AI_JOBS
from tasquencer.ai.request import AiAgentRequest
from tasquencer.core.work_item import DelayReason
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import Ledger
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tests.activities.calling import activities_for
from tests.random_actions.operators import Handle, Operators, work_items_of
from tests.random_actions.provider import RandomProvider
from tests.stories.story import Ending, Story
from workflows.ai_agent import AiAgentTask
from workflows.ai_fan_out import AiFanOutTask

__all__ = ["random_stories", "reached"]

_FAN_OUTS = 0.25
"""The part of the tasks that ask several prompts."""

_POLICIES: Sequence[Any] = (
    "absorb_failures",
    {"name": "absorb_failures", "limit": 1},
    {"name": "absorb_failures", "fraction": 0.4},
    {"name": "require_successes", "successes": 1},
    {"name": "require_successes", "successes": 2},
    "until_exhausted",
    "until_exhausted",
    "fail_fast",
)


async def random_stories(
    server: EmbeddedTemporal, ledger: Ledger, seed: int, tasks: int, at_once: int = 25
) -> list[Story]:
    """Run this number of tasks and gather the facts about each."""
    provider = RandomProvider(str(seed), ledger)
    async with provider.server, _worker(server, ledger, provider.server.base_url) as worker:
        slots = asyncio.Semaphore(at_once)

        async def one(task: str) -> Story:
            async with slots:
                return await _random_story(worker, ledger, provider, random.Random(f"{seed}/{task}"), task)

        return list(await asyncio.gather(*(one(f"task {number}") for number in range(tasks))))


@asynccontextmanager
async def _worker(server: EmbeddedTemporal, ledger: Ledger, base_url: str) -> AsyncIterator[Worker]:
    client = await Client.connect(server.address, plugins=[TasquencerPlugin(ledger)])
    async with activities_for(base_url) as activities:
        worker = Worker(
            client,
            task_queue=f"random-{random.SystemRandom().getrandbits(64):x}",
            workflows=[AiAgentTask, AiFanOutTask],
            activities=[activities.generate],
            max_heartbeat_throttle_interval=timedelta(milliseconds=50),
        )
        async with worker:
            yield worker


def _random_request(dice: random.Random, task: str) -> dict[str, Any]:
    request: dict[str, Any] = {
        "max_retries": dice.choice([0, 1, 2, 3, 3, 5, 8]),
        "attempt_timeout_seconds": dice.choice([0.7, 3.0, 30.0, 30.0]),
        "retry": {
            "initial_interval_seconds": dice.choice([0, 0.05, 0.1, 0.3, 0.3, 3600]),
            "backoff_coefficient": dice.choice([1, 1.5, 2]),
            "jitter": dice.choice([0, 0, 0.5]),
            "retry_on": dice.choice(["transient", "any"]),
        },
    }
    if dice.random() < 0.1:
        request["deadline_seconds"] = dice.choice([1.5, 3.0])
    if dice.random() < _FAN_OUTS:
        request["prompts"] = [f"{task}: {number}" for number in range(1, dice.randrange(3, 7))]
        request["concurrency"] = dice.choice([1, 2, 2, 10])
        request["policy"] = dice.choice(_POLICIES)
    else:
        request["prompt"] = task
    return request


async def _random_story(
    worker: Worker, ledger: Ledger, provider: RandomProvider, dice: random.Random, task: str
) -> Story:
    request = _random_request(dice, task)
    is_fan_out = "prompts" in request
    handle: Handle = await worker.client.start_workflow(
        "AiFanOutTask" if is_fan_out else "AiAgentTask",
        args=[request],
        id=f"{worker.task_queue}-{task.replace(' ', '-')}",
        task_queue=worker.task_queue,
    )
    operators = Operators(dice, handle, ledger, provider.moments[task])
    could_end = await operators.work()
    await provider.last_word_to(task)
    listed = await handle.query("work_items") if could_end else []
    history = await handle.fetch_history()
    ending = await (_ending(handle, history) if could_end else _hangs(handle))
    items = await work_items_of(ledger, handle.id)
    ids = [item.id for item in items]
    return Story(
        task_id=handle.id,
        request=(AiFanOutRequest if is_fan_out else AiAgentRequest).model_validate(request),
        ending=ending,
        items=items,
        transitions={item_id: await ledger.transitions(item_id) for item_id in ids},
        jobs=await ledger.domain_records(AI_JOBS, ids),
        listed=listed,
        calls=provider.calls_of(task),
        acts=operators.acts,
        sightings=operators.sightings,
        lost_at=_lost_at(history),
        replay=await _replay(history),
    )


async def _ending(handle: Handle, history: WorkflowHistory) -> Ending:
    state, result, kind, message = "completed", {}, "", ""
    try:
        result = await handle.result()
    except WorkflowFailureError as error:
        state = "canceled" if isinstance(error.cause, CancelledError) else "failed"
        if isinstance(error.cause, ApplicationError):
            kind, message = error.cause.type or "", error.cause.message
    described = await handle.describe()
    assert described.close_time is not None
    cancel_at = _first(history, "workflow_execution_cancel_requested_event_attributes")
    return Ending(
        state=state,
        started_at=described.start_time,
        closed_at=described.close_time,
        cancel_at=cancel_at,
        cancel_seen_at=_first(history, "workflow_task_started_event_attributes", since=cancel_at),
        result=result,
        type=kind,
        message=message,
    )


def _first(history: WorkflowHistory, kind: str, since: datetime | None = None) -> datetime | None:
    for event in history.events:
        at = event.event_time.ToDatetime(UTC)
        if event.WhichOneof("attributes") == kind and (since is None or at >= since):
            return at
    return None


async def _hangs(handle: Handle) -> Ending:
    """The task as it hangs, before it is terminated."""
    described = await handle.describe()
    with suppress(RPCError):
        await handle.terminate()
    return Ending("hangs", described.start_time, datetime.now(UTC))


def _lost_at(history: WorkflowHistory) -> frozenset[datetime]:
    """When the workflow tasks began that failed or timed out: what was the time to the workflow then."""
    began = {event.event_id: event.event_time.ToDatetime(UTC) for event in history.events}
    lost = [
        getattr(event, name).started_event_id
        for event in history.events
        for name in ("workflow_task_failed_event_attributes", "workflow_task_timed_out_event_attributes")
        if event.WhichOneof("attributes") == name
    ]
    return frozenset(began[event_id] for event_id in lost if event_id in began)


async def _replay(history: WorkflowHistory) -> str:
    replayer = Replayer(workflows=[AiAgentTask, AiFanOutTask], plugins=[TasquencerPlugin(InMemoryLedger())])
    result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
    return str(result.replay_failure or "")


def reached(stories: Sequence[Story]) -> Counter[str]:
    """What happened how often: a run that reaches nothing proves nothing."""
    seen: Counter[str] = Counter()
    for story in stories:
        kind = "fan-out" if isinstance(story.request, AiFanOutRequest) else "task"
        seen[f"{kind} {story.ending.state} {story.ending.type}".strip()] += 1
        seen["work items"] += len(story.items)
        seen["requests"] += len(story.calls)
        seen["disconnected"] += sum(call.client_left for call in story.calls)
        seen["hurried"] += sum(item.delay_reason is DelayReason.OPERATOR for item in story.items)
        seen["workflow tasks lost"] += len(story.lost_at)
        seen["outcome kept in a canceled task"] += (
            story.ending.state == "canceled"
            and story.items[-1:] != []
            and story.items[-1].state != "canceled"
        )
        for act in story.acts:
            seen[f"{act.name} {act.reply}"] += 1
        seen["accepted again under the same id"] += sum(
            count - 1 for count in Counter(act.update_id for act in story.acts if act.value).values()
        )
        for item in story.items:
            call = story.call_of(item)
            if item.state.is_terminal and call is not None and story.ended_by(item) != "task":
                seen["answer and operator met"] += call.complete
    return seen
