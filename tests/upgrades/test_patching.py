"""Workflow code changes while tasks are in their backoff. With a patch all continue, without one none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import WorkflowTaskFailedCause
from temporalio.client import WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Replayer

from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tests.support.calls import GONE, ScriptedCalls
from tests.support.patience import eventually
from tests.support.tasks import Tasks, history, tasks_on
from tests.upgrades.variants import Careless, First, Patched, Renamed, look_up

Handle = WorkflowHandle[Any, Any]

NONDETERMINISM = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR


class Releases:
    """Workers of successive releases, one after the other, on one task queue and one ledger."""

    def __init__(self, server: EmbeddedTemporal, name: str) -> None:
        self._server = server
        self._queue = f"upgrade-{name}"
        self._ledger = InMemoryLedger()

    def worker(self, code: type, *script: Any) -> Any:
        """A worker of the release with this code, whose calls do as the script says."""
        activities: list[Callable[..., Any]] = [ScriptedCalls(*script).generate, look_up]
        return tasks_on(self._server.address, [code], activities, ledger=self._ledger, task_queue=self._queue)


@pytest.fixture
def releases(dev_server: EmbeddedTemporal, request: pytest.FixtureRequest) -> Releases:
    return Releases(dev_server, request.node.name)


async def start(tasks: Tasks) -> Handle:
    """A task whose workflow task is soon given to the next worker when one has dropped it at its end."""
    return await tasks.client.start_workflow(
        "Letter", id=f"letter-{uuid4()}", task_queue=tasks.task_queue, task_timeout=timedelta(seconds=2)
    )


async def in_backoff(tasks: Tasks, handle: Handle) -> None:
    async def probe() -> bool:
        items = await tasks.work_items(handle)
        return bool(items) and (items[-1].attempt, items[-1].state) == (1, WorkItemState.INITIALIZED)

    await eventually(probe, "the backoff")


async def wake(*tasks: Handle) -> None:
    """End the backoff of these tasks."""
    await asyncio.gather(*(_wake(handle) for handle in tasks))


async def _wake(handle: Handle) -> None:
    async def probe() -> bool:
        try:
            await handle.execute_update("retry_now", {"actor": "anna"})
        except RPCError as error:
            if error.status is not RPCStatusCode.FAILED_PRECONDITION:
                raise
            return False  # its workflow task has failed, and its next try is still to come
        return True

    await eventually(probe, "the end of the backoff")


async def found_nondeterministic(handle: Handle) -> None:
    await handle.signal("look")  # for a workflow task

    async def probe() -> bool:
        causes = {event.workflow_task_failed_event_attributes.cause for event in await history(handle)}
        return NONDETERMINISM in causes

    await eventually(probe, "a workflow task that fails as nondeterministic")


def states(items: list[WorkItem]) -> list[str]:
    return [item.state.value for item in items]


OLD_PATH, NEW_PATH = ["42"], ["Anna, Main Street 1", "42"]


async def test_with_a_patch_old_tasks_keep_the_old_path_and_new_ones_take_the_new(releases: Releases) -> None:
    async with releases.worker(First, *[GONE] * 4) as tasks:
        old = [await start(tasks) for _ in range(4)]
        for handle in old:
            await in_backoff(tasks, handle)
    async with releases.worker(Patched) as tasks:
        new = [await start(tasks) for _ in range(4)]
        await wake(*old)
        results = await asyncio.gather(*(handle.result() for handle in [*old, *new]))
        items = [states(await tasks.work_items(handle)) for handle in [*old, *new]]
    assert results == [OLD_PATH] * 4 + [NEW_PATH] * 4
    assert items == [["failed", "completed"]] * 4 + [["completed"]] * 4
    replayer = Replayer(workflows=[Patched], plugins=[TasquencerPlugin(InMemoryLedger())])
    for handle in [*old, *new]:
        await replayer.replay_workflow(await handle.fetch_history())


async def test_without_a_patch_the_tasks_stand_still_and_burn_no_attempt_until_the_code_is_mended(
    releases: Releases,
) -> None:
    async with releases.worker(First, GONE) as tasks:
        handle = await start(tasks)
        await in_backoff(tasks, handle)
        before = await tasks.work_items(handle)
    async with releases.worker(Careless) as tasks:
        await found_nondeterministic(handle)
        assert await tasks.work_items(handle) == before
        replayer = Replayer(workflows=[Careless], plugins=[TasquencerPlugin(InMemoryLedger())])
        with pytest.raises(workflow.NondeterminismError):  # what replaying beforehand would have shown
            await replayer.replay_workflow(await handle.fetch_history())
    async with releases.worker(Patched) as tasks:
        await wake(handle)
        assert await handle.result() == OLD_PATH
        assert states(await tasks.work_items(handle)) == ["failed", "completed"]


async def test_a_task_that_took_the_new_path_waits_for_a_worker_that_knows_the_patch(
    releases: Releases,
) -> None:
    async with releases.worker(Patched, GONE) as tasks:
        handle = await start(tasks)
        await in_backoff(tasks, handle)
        before = await tasks.work_items(handle)
    async with releases.worker(First) as tasks:
        await found_nondeterministic(handle)
        assert await tasks.work_items(handle) == before
    async with releases.worker(Patched) as tasks:
        await wake(handle)
        assert await handle.result() == NEW_PATH
        assert states(await tasks.work_items(handle)) == ["failed", "completed"]


async def test_replaying_finds_a_lineage_that_is_renamed(releases: Releases) -> None:
    """The ids of work items, and so of their calls, follow from the lineage's name."""
    async with releases.worker(First) as tasks:
        handle = await start(tasks)
        assert await handle.result() == OLD_PATH
        replayer = Replayer(workflows=[Renamed], plugins=[TasquencerPlugin(InMemoryLedger())])
        with pytest.raises(workflow.NondeterminismError):
            await replayer.replay_workflow(await handle.fetch_history())
