"""Cancelling a task that is queued, in its call, or in its backoff."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any
from uuid import uuid4

import pytest
from temporalio.client import Client
from temporalio.worker import Worker

import worker as worker_process
from tasquencer.ai import AiCalls
from tasquencer.ai.provider.client import make_client
from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.http_server import Exchange
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import TasquencerPlugin
from tasquencer.temporal.running import Tuning
from tasquencer.testing import InMemoryLedger
from tests.activities.calling import KEY, MODEL, activities_for
from tests.support import answers
from tests.support.answers import Answer, Hold
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import ScriptedProvider
from tests.support.tasks import Tasks, comes_to
from tests.workflows.cancel.scene import (
    ASK,
    LONG_BACKOFF,
    NO_BACKOFF,
    SOON,
    Handle,
    Scene,
    cancel,
    closed_in_time,
    ends_canceled,
    scene,
)
from workflows.ai_agent import AiAgentTask

INITIALIZED = WorkItemState.INITIALIZED
STARTED = WorkItemState.STARTED
FAILED = WorkItemState.FAILED
CANCELED = WorkItemState.CANCELED


# Queued


async def test_before_a_worker_polls(dev_server: EmbeddedTemporal) -> None:
    queue = f"queue-{uuid4()}"
    client = await Client.connect(dev_server.address)
    handle: Handle = await client.start_workflow("AiAgentTask", ASK, id=queue, task_queue=queue)
    await cancel(handle)
    async with scene(dev_server, [], task_queue=queue) as now:
        await ends_canceled(handle)
        items = await now.work_items(handle)
        await now.nothing_begins(0)
    assert {item.state for item in items} <= {CANCELED}


async def test_while_nobody_polls_for_calls(dev_server: EmbeddedTemporal) -> None:
    queue, ledger = f"queue-{uuid4()}", InMemoryLedger()
    client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(ledger)])
    async with Worker(client, task_queue=queue, workflows=[AiAgentTask], no_remote_activities=True):
        handle: Handle = await client.start_workflow("AiAgentTask", ASK, id=queue, task_queue=queue)
        await comes_to(handle, "activity_task_scheduled_event_attributes")
        await cancel(handle)
        await ends_canceled(handle)
    # The call must not rest in the queue for the first worker that polls for calls.
    async with scene(dev_server, [], ledger, queue) as now:
        await now.nothing_begins(0)
        (item,) = await now.work_items(handle)
    assert item.state is CANCELED


async def test_while_other_calls_take_every_slot(dev_server: EmbeddedTemporal) -> None:
    queue, ledger, hold = f"queue-{uuid4()}", InMemoryLedger(), Hold()
    client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(ledger)])
    async with (
        ScriptedProvider([answers.stall(hold)]) as provider,
        activities_for(provider.base_url) as activities,
        Worker(
            client,
            task_queue=queue,
            workflows=[AiAgentTask],
            activities=[activities.generate],
            max_concurrent_activities=1,
        ),
    ):
        now = Scene(Tasks(client, queue, ledger), provider)
        busy = await now.tasks.start("AiAgentTask", ASK)
        await provider.wait_for_requests(1)
        queued = await now.tasks.start("AiAgentTask", ASK)
        await now.reaches(queued, STARTED)
        await cancel(queued)
        await ends_canceled(queued)
        (item,) = await now.work_items(queued)
        hold.release()
        assert (await busy.result())["attempts"] == 1
        await now.nothing_begins(1)
    assert item.state is CANCELED


# In the call


def broken_off(begun: asyncio.Event) -> Answer:
    """An answer of which a part comes, then the event is set, then nothing more comes."""

    async def give(exchange: Exchange, body: Mapping[str, Any]) -> None:
        await exchange.start(200, [("content-type", "application/json"), ("content-length", "1000")])
        await exchange.send(b'{"id": "chatcmpl-1", ')
        begun.set()
        await asyncio.Event().wait()

    return Answer("broken off", give)


@pytest.mark.parametrize("failures", [0, 2], ids=["first try", "retry"])
@pytest.mark.parametrize("half_way", [False, True], ids=["no answer yet", "half way through the answer"])
async def test_in_the_call(dev_server: EmbeddedTemporal, half_way: bool, failures: int) -> None:
    begun = asyncio.Event()
    script = [answers.status(503)] * failures + [broken_off(begun) if half_way else answers.stall()]
    async with scene(dev_server, script) as now:
        handle = await now.tasks.start("AiAgentTask", NO_BACKOFF)
        await now.provider.wait_for_requests(len(script))
        if half_way:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await begun.wait()
        asked = await cancel(handle)
        await closed_in_time(now.provider, failures, asked)
        await ends_canceled(handle)
        items = await now.work_items(handle)
        steps = await now.tasks.ledger.transitions(items[-1].id)
        await now.nothing_begins(len(script))
    assert [item.state for item in items] == [FAILED] * failures + [CANCELED]
    assert [request.idempotency_key for request in now.requests] == [item.id for item in items]
    assert now.requests[-1].status == (200 if half_way else None)
    assert [step.next_state for step in steps] == [INITIALIZED, STARTED, CANCELED]
    assert steps[-1].reason == "the task was canceled"


async def test_many_calls_at_once_and_only_those_asked_for(dev_server: EmbeddedTemporal) -> None:
    hold = Hold()
    async with scene(dev_server, [answers.stall(hold) for _ in range(12)]) as now:
        handles = [await now.tasks.start("AiAgentTask", ASK) for _ in range(12)]
        await now.provider.wait_for_requests(12)
        doomed, spared = handles[::2], handles[1::2]
        asked = datetime.now(UTC)
        await asyncio.gather(*(cancel(handle) for handle in doomed))
        await asyncio.gather(*(ends_canceled(handle) for handle in doomed))
        hold.release()
        assert [(await handle.result())["attempts"] for handle in spared] == [1] * len(spared)
        gone = {item.id for handle in doomed for item in await now.work_items(handle)}
        left = [request for request in now.requests if request.client_left]
        await now.nothing_begins(12)
    assert {request.idempotency_key for request in left} == gone
    assert all(request.ended_at is not None and request.ended_at < asked + SOON for request in left)


@pytest.mark.parametrize("pushes", [True, False], ids=["dev_server", "server_without_pushes"])
async def test_in_the_call_with_the_options_of_the_worker_process(
    dev_server: EmbeddedTemporal, server_without_pushes: EmbeddedTemporal, pushes: bool
) -> None:
    temporal = dev_server if pushes else server_without_pushes
    source, ledger, queue = random.Random(7), InMemoryLedger(), f"queue-{uuid4()}"
    tuning = Tuning(concurrent_calls=10, grace_period=timedelta(0))
    async with (
        ScriptedProvider([answers.stall() for _ in range(6)]) as provider,
        make_client(api_key=KEY, base_url=provider.base_url) as model,
        AsyncExitStack() as stack,
    ):
        plugin = TasquencerPlugin(ledger, calls=AiCalls(model, MODEL))
        client = await Client.connect(temporal.address, plugins=[plugin])
        await stack.enter_async_context(worker_process.make_worker(client, queue, tuning))
        now = Scene(Tasks(client, queue, ledger), provider)
        took: list[float] = []
        for number in range(6):
            handle = await now.tasks.start("AiAgentTask", ASK)
            await provider.wait_for_requests(number + 1)
            await asyncio.sleep(source.uniform(0, 0.8))  # anywhere between two heartbeats
            closed = await closed_in_time(provider, number, await cancel(handle))
            took.append(closed.total_seconds())
            await ends_canceled(handle)
            assert [item.state for item in await now.work_items(handle)] == [CANCELED]
    assert median(took) < 1  # each, where no other work is in the way


@pytest.mark.parametrize("seed", range(10))
async def test_at_any_moment_from_the_start_on(dev_server: EmbeddedTemporal, seed: int) -> None:
    """Where in the start the cancel arrives is left to chance: a call that has just begun is closed, too."""
    async with scene(dev_server, [answers.stall()]) as now:
        handle = await now.tasks.start("AiAgentTask", ASK)
        await asyncio.sleep(random.Random(seed).uniform(0, 0.06))
        asked = await cancel(handle)
        await ends_canceled(handle)
        items = await now.work_items(handle)
        await now.nothing_begins(len(now.requests), within=0.5)
        for request in now.requests:
            await closed_in_time(now.provider, request.number, asked)
    assert {item.state for item in items} <= {CANCELED}
    assert [request.idempotency_key for request in now.requests] in ([], [item.id for item in items])


# In the backoff


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        pytest.param(LONG_BACKOFF, answers.status(503), id="the recipe's"),
        pytest.param(NO_BACKOFF, answers.rate_limited("3600"), id="the provider's"),
    ],
)
async def test_in_the_backoff(
    dev_server: EmbeddedTemporal, request_: Mapping[str, object], answer: Answer
) -> None:
    async with scene(dev_server, [answer]) as now:
        handle = await now.tasks.start("AiAgentTask", request_)
        await now.reaches(handle, FAILED, INITIALIZED)
        await cancel(handle)
        await ends_canceled(handle)
        first, second = await now.work_items(handle)
        await now.nothing_begins(1)
    assert (first.state, second.state) == (FAILED, CANCELED)
    assert (second.delay_seconds, second.started_at) == (3600, None)


@pytest.mark.parametrize("early", [0.0, 0.02, 0.05, 0.1])
async def test_when_the_backoff_is_about_to_end(dev_server: EmbeddedTemporal, early: float) -> None:
    recipe = {"initial_interval_seconds": 1}
    async with scene(dev_server, [answers.status(503), answers.stall()]) as now:
        handle = await now.tasks.start("AiAgentTask", ASK | {"retry": recipe})
        await now.reaches(handle, FAILED, INITIALIZED)
        _, second = await now.work_items(handle)
        await asyncio.sleep((second.not_before - datetime.now(UTC)).total_seconds() - early)
        asked = await cancel(handle)
        await ends_canceled(handle)
        first, second = await now.work_items(handle)
        await now.nothing_begins(len(now.requests), within=0.5)
        for request in now.requests[1:]:  # the timer was first
            await closed_in_time(now.provider, request.number, asked)
    assert (first.state, second.state) == (FAILED, CANCELED)
    assert [request.idempotency_key for request in now.requests] in ([first.id], [first.id, second.id])
