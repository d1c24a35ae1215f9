"""A task with a lineage for each name, and an activity that does what the name says."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowHandle
from temporalio.exceptions import ApplicationError

from tasquencer.core.policy import absorb_failures, until_exhausted
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.temporal import Task
from tests.semantics.asked import Asked
from tests.support.patience import eventually
from tests.support.tasks import Tasks

__all__ = ["Handle", "SideBySide", "Work", "has_begun", "hours_canceled", "lines", "states", "until"]

Handle = WorkflowHandle[Any, Any]


class Work:
    """The activity `work`: `answers`, `fails` (a retry may help), `refuses` (no retry helps), or `hangs`.

    A call that refuses waits for permission first.
    """

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.stopped: list[str] = []
        self.may_refuse = asyncio.Event()

    @activity.defn(name="work")
    async def work(self, name: str) -> str:
        """Do as the name says."""
        self.begun.append(name)
        if name.startswith("fails"):
            raise ApplicationError("it does", type="told_so")
        if name.startswith("refuses"):
            while not self.may_refuse.is_set():
                activity.heartbeat()
                await asyncio.sleep(0.05)
            raise ApplicationError("it does", type="told_so", non_retryable=True)
        try:
            while name.startswith("hangs"):
                activity.heartbeat()
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            self.stopped.append(name)
            raise
        return name


async def has_begun(work: Work, *names: str) -> bool:
    return set(names) <= set(work.begun)


@workflow.defn
class SideBySide:
    """A lineage for each name, side by side; one retry each, an hour after the failure."""

    @workflow.init
    def __init__(self, names: list[str], absorbs: bool = False, concurrency: int | None = None) -> None:
        self._asked = Asked(policy=absorb_failures() if absorbs else until_exhausted)
        self._task = Task(
            recipe=RetryRecipe(max_retries=1, initial_interval=timedelta(hours=1)),
            policy=self._asked.policy,
            on_work_item_state_changed=self._asked.hook,
            concurrency=concurrency,
        )

    @workflow.run
    async def run(self, names: list[str], absorbs: bool = False, concurrency: int | None = None) -> list[str]:
        """The names of the lineages that have a result."""
        await asyncio.gather(*map(self._line, names))
        self._task.check()
        return [item.lineage for item in self._task.work_items if item.state is WorkItemState.COMPLETED]

    async def _line(self, name: str) -> None:
        async for work_item in self._task.attempts(name, lineage=name):
            async with work_item:
                answer = await work_item.execute_activity(
                    "work",
                    name,
                    start_to_close_timeout=timedelta(minutes=1),
                    heartbeat_timeout=timedelta(seconds=10),
                )
                work_item.complete(answer)

    @workflow.query
    def asked(self) -> list[tuple[str, str, str]]:
        """What the hook and the policy were asked, in order."""
        return self._asked.log


async def lines(tasks: Tasks, handle: Handle) -> dict[str, list[WorkItem]]:
    """The work items of each lineage in the ledger, by attempt."""
    found: dict[str, list[WorkItem]] = {}
    for item in sorted(await tasks.work_items(handle), key=lambda item: item.attempt):
        found.setdefault(item.lineage, []).append(item)
    return found


def states(found: Mapping[str, list[WorkItem]]) -> dict[str, list[str]]:
    """The states of each lineage's work items."""
    return {lineage: [item.state.value for item in items] for lineage, items in found.items()}


async def until(tasks: Tasks, handle: Handle, wanted: dict[str, list[str]]) -> dict[str, list[WorkItem]]:
    """The lineages, once their work items stand exactly so."""

    async def reached() -> dict[str, list[WorkItem]] | None:
        found = await lines(tasks, handle)
        return found if states(found) == wanted else None

    return await eventually(reached, f"the lineages to stand at {wanted}")


def hours_canceled(events: Sequence[HistoryEvent]) -> list[float]:
    """The timers of an hour or more that were canceled, in hours."""
    started = {
        event.event_id: event.timer_started_event_attributes.start_to_fire_timeout.ToTimedelta()
        for event in events
        if event.HasField("timer_started_event_attributes")
    }
    canceled = [
        started[event.timer_canceled_event_attributes.started_event_id]
        for event in events
        if event.HasField("timer_canceled_event_attributes")
    ]
    return [wait / timedelta(hours=1) for wait in canceled if wait >= timedelta(hours=1)]
