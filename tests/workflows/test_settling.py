"""How a task ends: its last write also looks for what a lost workflow task has left open."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHandle
from temporalio.worker import Replayer

from tasquencer import LedgerEntry, RetryRecipe, Task, TasquencerPlugin, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.ledger.contract import Settlement
from tasquencer.testing import InMemoryLedger
from tests.ledger.stories import Life
from tests.support.patience import PATIENCE_SECONDS
from tests.support.tasks import history, tasks_on

TIMED_OUT = EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT
QUICKLY = RetryRecipe(max_retries=2, initial_interval=timedelta(milliseconds=10), backoff_coefficient=1)


@activity.defn
async def work(fails: int) -> str:
    if fails:
        raise RuntimeError("not this time")
    return "done"


async def carry_out(task: Task, name: str, *, fails: int = 0) -> None:
    async for work_item in task.attempts(name, lineage=name, recipe=QUICKLY):
        async with work_item:
            work_item.complete(
                await work_item.execute_activity(
                    work, max(0, fails - work_item.attempt), start_to_close_timeout=timedelta(minutes=1)
                )
            )


@workflow.defn(sandboxed=False)
class EndsWithItsWork:
    """The last outcome ends the task."""

    @workflow.run
    async def run(self, fails: int) -> str:
        await carry_out(Task(), "only", fails=fails)
        return "done"


@workflow.defn(sandboxed=False)
class EndsLater:
    """The task waits after its last outcome."""

    @workflow.run
    async def run(self) -> str:
        await carry_out(Task(), "only")
        await asyncio.sleep(0.01)
        return "done"


@workflow.defn(sandboxed=False)
class GoesOn:
    """One lineage after the other."""

    @workflow.run
    async def run(self) -> str:
        task = Task()
        for name in ("first", "second", "third"):
            await carry_out(task, name)
        return "done"


class CountingLedger(InMemoryLedger):
    """Counts settlements. Holds a work item of a lost workflow task from the first outcome on, if asked."""

    def __init__(self, *, forgotten: str | None = None) -> None:
        super().__init__()
        self.settlements: list[Settlement] = []
        self._forgotten = forgotten

    async def record_and_find_open(
        self, entries: Sequence[LedgerEntry], task_id: str, run_id: str
    ) -> frozenset[str]:
        if self._forgotten is not None:
            lost = Life(f"{self._forgotten}-{run_id}", lineage="lost", task_id=task_id, run_id=run_id)
            await self.record([lost.initialized()])
        return await super().record_and_find_open(entries, task_id, run_id)

    async def settle(self, settlement: Settlement) -> list[str]:
        self.settlements.append(settlement)
        return await super().settle(settlement)


async def run_of(
    server: EmbeddedTemporal, kind: type, ledger: CountingLedger, *args: Any
) -> WorkflowHandle[Any, Any]:
    """Run one task to its end, again if a write was slow or a workflow task lost. Its history must replay."""
    async with tasks_on(server.address, [kind], [work], ledger=ledger) as tasks:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                ledger.settlements.clear()
                _, handle = await tasks.run(kind.__name__, *args)
                events = (await handle.fetch_history()).events
                was_lost = any(event.event_type == TIMED_OUT for event in events)
                if len(events) == len(await history(handle)) and not was_lost:
                    break
        replayer = Replayer(workflows=[kind], plugins=[TasquencerPlugin(InMemoryLedger())])
        await replayer.replay_workflow(await handle.fetch_history())
    return handle


async def writes(handle: WorkflowHandle[Any, Any]) -> int:
    events = await history(handle)
    return sum(event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED for event in events)


async def test_the_last_outcome_of_a_task_is_its_last_write(dev_server: EmbeddedTemporal) -> None:
    ledger = CountingLedger()
    handle = await run_of(dev_server, EndsWithItsWork, ledger, 0)
    assert (await writes(handle), len(ledger.settlements)) == (2, 0)
    assert len(await history(handle)) == 13


async def test_a_retry_costs_two_writes_and_the_end_none(dev_server: EmbeddedTemporal) -> None:
    ledger = CountingLedger()
    handle = await run_of(dev_server, EndsWithItsWork, ledger, 2)
    assert (await writes(handle), len(ledger.settlements)) == (6, 0)
    states = [item.state for item in await ledger.work_items_of(handle.id)]
    assert states == [WorkItemState.FAILED, WorkItemState.FAILED, WorkItemState.COMPLETED]


async def test_lineages_one_after_the_other_need_no_settlement_either(dev_server: EmbeddedTemporal) -> None:
    ledger = CountingLedger()
    handle = await run_of(dev_server, GoesOn, ledger)
    assert (await writes(handle), len(ledger.settlements)) == (6, 0)


async def test_a_task_that_waits_after_its_last_outcome_settles_at_its_end(
    dev_server: EmbeddedTemporal,
) -> None:
    ledger = CountingLedger()
    handle = await run_of(dev_server, EndsLater, ledger)
    assert (await writes(handle), len(ledger.settlements)) == (3, 1)


async def test_what_a_lost_workflow_task_has_left_open_is_settled(dev_server: EmbeddedTemporal) -> None:
    ledger = CountingLedger(forgotten="left-behind")
    handle = await run_of(dev_server, EndsWithItsWork, ledger, 0)
    assert (await writes(handle), len(ledger.settlements)) == (3, 1)
    (lost,) = [item for item in await ledger.work_items_of(handle.id) if item.lineage == "lost"]
    assert lost.state is WorkItemState.CANCELED
    assert (await ledger.transitions(lost.id))[-1].reason == "the task ended without it"


@workflow.defn(sandboxed=False)
class GoesOnInNewRuns:
    """Has work for several runs."""

    def __init__(self) -> None:
        self._task = Task()

    @workflow.run
    async def run(self) -> bool:
        for number in range(8):
            await carry_out(self._task, f"work-{number}")
            await self._task.continue_as_new_if_due()
        return workflow.info().continued_run_id is not None


class LosesTheFirstWrite(CountingLedger):
    """Holds a work item that only a lost workflow task of the first run knew."""

    lost_id: str | None = None

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        if self.lost_id is None and entries:
            task = entries[0].work_item
            self.lost_id = f"lost-{task.run_id}"
            lost = Life(self.lost_id, lineage="lost", task_id=task.task_id, run_id=task.run_id)
            await super().record([lost.initialized()])
        await super().record(entries)


async def test_what_a_lost_workflow_task_has_left_open_is_settled_before_the_next_run() -> None:
    often = {"limit.historyCount.suggestContinueAsNew": 20}
    ledger = LosesTheFirstWrite()
    async with (
        embedded_temporal(ui=False, dynamic_config=often) as server,
        tasks_on(server.address, [GoesOnInNewRuns], [work], ledger=ledger) as tasks,
    ):
        has_continued, _ = await tasks.run("GoesOnInNewRuns")
    assert has_continued
    assert ledger.lost_id is not None
    assert (await ledger.transitions(ledger.lost_id))[-1].reason == "the task continued as new without it"
