"""Adopting can be switched on and off while workflows are under way."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowHistory
from temporalio.common import RetryPolicy
from temporalio.worker import Replayer

from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tests.support.patience import eventually
from tests.support.tasks import IMPORTING_TESTS_ONCE
from tests.workflows.adopted_runs import Handle, open_shop, waits_for_the_next_attempt
from tests.workflows.adopted_scenarios import QUICK

ADOPTING: dict[str, Any] = {"adopt_activities": ["*"]}
NOT_ADOPTING: dict[str, Any] = {}


@workflow.defn
class InStages:
    """Between its stages a worker may be replaced. Each stage calls what the stage before has called, too."""

    def __init__(self) -> None:
        self._stage = 0

    @workflow.run
    async def run(self) -> list[Any]:
        found: list[Any] = []
        for stage, kinds in enumerate((["flaky"], ["flaky", "priority"], ["flaky", "priority", "attempt"])):
            await workflow.wait_condition(functools.partial(self._is_past, stage))
            for kind in kinds:
                args = [0, stage] if kind == "flaky" else []
                found.append(
                    await workflow.execute_activity(
                        kind, args=args, start_to_close_timeout=timedelta(seconds=30), retry_policy=QUICK
                    )
                )
        return found

    def _is_past(self, stage: int) -> bool:
        return self._stage > stage

    @workflow.signal
    def proceed(self) -> None:
        self._stage += 1


@workflow.defn
class Backoff:
    """Waits for the second attempt."""

    @workflow.run
    async def run(self, seconds: float) -> Any:
        policy = RetryPolicy(initial_interval=timedelta(seconds=seconds), maximum_attempts=3)
        return await workflow.execute_activity(
            "flaky", args=[1, "done"], start_to_close_timeout=timedelta(seconds=30), retry_policy=policy
        )


async def work_items(ledger: InMemoryLedger, handle: Handle) -> list[WorkItem]:
    return await ledger.work_items(WorkItemFilter(task_id=handle.id, oldest_first=True))


async def replays_everywhere(history: WorkflowHistory, kinds: Sequence[type]) -> None:
    for options in (ADOPTING, NOT_ADOPTING):
        replayer = Replayer(workflows=kinds, plugins=[TasquencerPlugin(InMemoryLedger(), **options)])
        await replayer.replay_workflow(history)


@pytest.mark.parametrize(
    ("stages", "adopted"),
    [
        # flaky begins natively and stays so; priority begins adopted and stays so; attempt begins natively
        ([None, ADOPTING, NOT_ADOPTING], ["priority #1", "priority #2"]),
        ([NOT_ADOPTING, ADOPTING, ADOPTING], ["priority #1", "priority #2", "attempt #1"]),
        ([ADOPTING, NOT_ADOPTING, ADOPTING], ["flaky #1", "flaky #2", "flaky #3", "attempt #1"]),
        (
            [{"adopt_activities": ["fl*"]}, {"adopt_activities": ["p*"]}, NOT_ADOPTING],
            ["flaky #1", "flaky #2", "priority #1", "flaky #3", "priority #2"],
        ),
    ],
    ids=["on-off-from-nothing", "on", "off-on", "other-patterns"],
)
async def test_a_workflow_keeps_what_it_has_decided_for_each_type(
    dev_server: EmbeddedTemporal, stages: list[dict[str, Any] | None], adopted: list[str]
) -> None:
    client, ledger, queue = await Client.connect(dev_server.address), InMemoryLedger(), f"queue-{uuid4()}"
    handle = await client.start_workflow(InStages.run, id=f"stages-{uuid4()}", task_queue=queue)
    for stage, options in enumerate(stages):
        plugins = [] if options is None else [TasquencerPlugin(ledger, **options)]
        async with open_shop(client, plugins=plugins, queue=queue, workflows=[InStages]) as (_, shop):
            shop.made["attempt"] = 2
            await handle.signal(InStages.proceed)
            if stage == 2:
                assert await handle.result() == [0, 1, None, 2, None, 1]
            else:
                made = stage + 1

                async def is_through(made: int = made) -> bool:
                    events = (await handle.fetch_history()).events
                    ended = sum(
                        event.HasField("activity_task_completed_event_attributes") for event in events
                    )
                    return ended == {1: 1, 2: 3}[made]

                await eventually(is_through, "the stage's activities")
    items = await work_items(ledger, handle)
    assert [item.lineage for item in items if item.attempt == 0] == adopted
    assert {item.state for item in items} == {WorkItemState.COMPLETED}
    await replays_everywhere(await handle.fetch_history(), [InStages])


@pytest.mark.parametrize("first", ["native", "adopted"])
async def test_a_backoff_under_way_continues_as_it_began(dev_server: EmbeddedTemporal, first: str) -> None:
    client, ledger, queue = await Client.connect(dev_server.address), InMemoryLedger(), f"queue-{uuid4()}"
    begins, goes_on = (NOT_ADOPTING, ADOPTING) if first == "native" else (ADOPTING, NOT_ADOPTING)
    # The backoff outlasts the end of the first worker.
    handle = await client.start_workflow(Backoff.run, 10.0, id=f"backoff-{uuid4()}", task_queue=queue)
    plugin = TasquencerPlugin(ledger, **begins)
    async with open_shop(client, plugins=[plugin], queue=queue, workflows=[Backoff]):
        await waits_for_the_next_attempt(handle)
    plugin = TasquencerPlugin(ledger, **goes_on)
    async with open_shop(client, plugins=[plugin], queue=queue, workflows=[Backoff]) as (_, shop):
        shop.made["flaky"] = 1
        assert await handle.result() == "done"
        assert shop.made["flaky"] == 2
    states = [item.state.value for item in await work_items(ledger, handle)]
    assert states == ([] if first == "native" else ["failed", "completed"])
    await replays_everywhere(await handle.fetch_history(), [Backoff])


async def test_a_workflow_that_adopts_nothing_has_no_patch(dev_server: EmbeddedTemporal) -> None:
    client, ledger = await Client.connect(dev_server.address), InMemoryLedger()
    plugin = TasquencerPlugin(ledger, adopt_activities=["nothing_like_it"])
    async with open_shop(client, plugins=[plugin], workflows=[Backoff]) as (queue, _):
        handle = await client.start_workflow(Backoff.run, 0.1, id=f"plain-{uuid4()}", task_queue=queue)
        assert await handle.result() == "done"
    history = await handle.fetch_history()
    assert not any(event.HasField("marker_recorded_event_attributes") for event in history.events)
    assert await work_items(ledger, handle) == []
    without_plugin = Replayer(workflows=[Backoff], workflow_runner=IMPORTING_TESTS_ONCE)
    await without_plugin.replay_workflow(history)
