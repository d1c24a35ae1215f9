"""Lineages side by side in users' own code: groups that abort, siblings that are left behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.exceptions import ApplicationError, is_cancelled_exception
from temporalio.worker import Replayer

from tasquencer import RetryRecipe, Task, TasquencerPlugin, absorb_failures
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.testing import InMemoryLedger
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.tasks import comes_to, tasks_on

ONE_TRY = RetryRecipe(max_retries=0)
MINUTE = timedelta(minutes=1)
BEGUN = set[str]()
"""Ids of the tasks of which a call has begun."""


@activity.defn
async def quick(name: str) -> str:
    """Ends soon; `deaf` a second later despite a cancel, `slow` when it is stopped."""
    BEGUN.add(activity.info().workflow_id or "")
    while name == "slow":
        activity.heartbeat()
        await asyncio.sleep(0.05)
    if name == "deaf":
        second = asyncio.create_task(asyncio.sleep(1))
        while not second.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(second)
    return name


@workflow.defn(sandboxed=False)
class Sleeps:
    """A child workflow."""

    @workflow.run
    async def run(self) -> None:
        await workflow.sleep(60)


async def carry_out(task: Task, name: str, waits_for: str = "") -> None:
    async for work_item in task.attempts(name, lineage=name, recipe=ONE_TRY):
        async with work_item:
            if waits_for == "a child":
                await workflow.execute_child_workflow(Sleeps.run)
            elif waits_for:
                await workflow.sleep(60)
            work_item.complete(await work_item.execute_activity(quick, name, start_to_close_timeout=MINUTE))


def scatter() -> None:
    """Let the next objects lie in any order in memory, as in another process."""
    holes = [bytes(size) for size in range(16, 480, 16) for _ in range(200)]
    random.shuffle(holes)
    while holes:
        holes.pop()


@workflow.defn(sandboxed=False)
class Aborts:
    """A group of lineages that wait for timers and child workflows, until one of their siblings fails."""

    @workflow.run
    async def run(self, lineages: int) -> str:
        task = Task(policy=absorb_failures())
        scatter()
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                for number in range(lineages):
                    waits_for = "a child" if number % 2 else "a timer"
                    group.create_task(carry_out(task, f"line-{number}", waits_for))
                await workflow.sleep(2)
                raise ApplicationError("one of them fails")
        await carry_out(task, "after")
        return "ended"


@workflow.defn(sandboxed=False)
class LeavesASaga:
    """Returns while a sibling is still under way that would compensate."""

    @workflow.run
    async def run(self) -> str:
        task = Task(policy=absorb_failures())

        async def saga() -> None:
            try:
                await carry_out(task, "slow", "a timer")
            except BaseException as error:
                if not is_cancelled_exception(error):
                    raise
                await carry_out(task, "compensation")

        left = asyncio.create_task(saga())
        await carry_out(task, "quick")
        assert not left.done()
        return "ended"


@workflow.defn(sandboxed=False)
class ReturnsFirst:
    """Returns before the lineage that it has created a task for begins."""

    @workflow.run
    async def run(self) -> str:
        task = Task()
        self._left = asyncio.create_task(carry_out(task, "quick"))
        return "ended"


@workflow.defn(sandboxed=False)
class CompensatesInItsPlace:
    """Compensates with the only place there is, after a call that a cancel did not stop."""

    @workflow.run
    async def run(self) -> str:
        task = Task(policy=absorb_failures(), concurrency=1)
        try:
            await carry_out(task, "deaf")
        except asyncio.CancelledError:
            await carry_out(task, "compensation")
        return "compensated"


@workflow.defn(sandboxed=False)
class CompensatesNextToACall:
    """Waits for its place until a sibling's call is stopped, and compensates then."""

    @workflow.run
    async def run(self) -> str:
        task = Task(policy=absorb_failures(), concurrency=1)

        async def saga() -> None:
            try:
                await carry_out(task, "waits")
            except asyncio.CancelledError:
                await carry_out(task, "compensation")

        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(carry_out(task, "slow"), saga(), return_exceptions=True)
        return "compensated"


@workflow.defn(sandboxed=False)
class CompensatesASleep:
    """Compensates next to a sibling's call, which has the only place."""

    @workflow.run
    async def run(self) -> None:
        task = Task(policy=absorb_failures(), concurrency=1)

        async def saga(name: str) -> None:
            try:
                await workflow.sleep(60)
            except asyncio.CancelledError:
                await carry_out(task, name)

        await asyncio.gather(*map(saga, "abcde"), carry_out(task, "slow"))


@workflow.defn(sandboxed=False)
class CompensatesWithOwnWaits:
    """Waits twice after a cancel, for what no code of an evicted run says."""

    @workflow.run
    async def run(self) -> None:
        task, said = Task(), asyncio.Event()

        async def saga() -> None:
            try:
                await workflow.sleep(60)
            except asyncio.CancelledError:
                try:
                    await said.wait()
                finally:
                    await said.wait()

        await asyncio.gather(carry_out(task, "slow"), saga())


WORKFLOWS: Sequence[type] = [
    Aborts, Sleeps, LeavesASaga, ReturnsFirst, CompensatesInItsPlace, CompensatesNextToACall,
    CompensatesASleep, CompensatesWithOwnWaits,
]  # fmt: skip


async def test_a_group_that_aborts_replays_in_any_process(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, WORKFLOWS, [quick]) as tasks:
        result, handle = await tasks.run("Aborts", 8)
        items = await tasks.work_items(handle)
    assert result == "ended"
    assert [item.state.value for item in items] == ["canceled"] * 8 + ["completed"]
    history = await handle.fetch_history()
    replayer = Replayer(workflows=WORKFLOWS, plugins=[TasquencerPlugin(InMemoryLedger())])
    for _ in range(5):
        await replayer.replay_workflow(history)


async def test_a_saga_that_is_left_behind_leaves_the_cache_with_its_run(
    dev_server: EmbeddedTemporal, caplog: pytest.LogCaptureFixture
) -> None:
    async with tasks_on(dev_server.address, WORKFLOWS, [quick]) as tasks:
        handle = await tasks.start("LeavesASaga")
        assert await asyncio.wait_for(handle.result(), PATIENCE_SECONDS) == "ended"
        items = {item.lineage: item.state.value for item in await tasks.work_items(handle)}
    assert items == {"slow": "canceled", "quick": "completed"}
    assert "eviction" not in caplog.text


@pytest.mark.parametrize("kind", ["CompensatesASleep", "CompensatesWithOwnWaits"])
async def test_a_saga_that_waits_leaves_the_cache_at_once(
    dev_server: EmbeddedTemporal, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    async with tasks_on(dev_server.address, WORKFLOWS, [quick]) as tasks:
        handle = await tasks.start(kind)
        await comes_to(handle, "activity_task_scheduled_event_attributes")
        await handle.terminate()
    replayer = Replayer(workflows=WORKFLOWS, plugins=[TasquencerPlugin(InMemoryLedger())])
    await replayer.replay_workflow(await handle.fetch_history())  # then the run leaves the cache
    assert "eviction" not in caplog.text


async def test_a_lineage_that_would_begin_after_the_end_of_the_run_does_not(
    dev_server: EmbeddedTemporal,
) -> None:
    async with tasks_on(dev_server.address, WORKFLOWS, [quick]) as tasks:
        result, handle = await tasks.run("ReturnsFirst")
        listed = await handle.query("work_items")
        items = await tasks.work_items(handle)
    assert (result, listed, items) == ("ended", [], [])


@pytest.mark.parametrize(
    ("workflow_type", "states"),
    [
        ("CompensatesInItsPlace", {"deaf": "completed", "compensation": "completed"}),
        (
            "CompensatesNextToACall",
            {"slow": "canceled", "waits": "canceled", "compensation": "completed"},
        ),
    ],
)
async def test_what_a_cancel_ends_frees_its_place_for_a_compensation(
    dev_server: EmbeddedTemporal, workflow_type: str, states: dict[str, str]
) -> None:
    async with tasks_on(dev_server.address, WORKFLOWS, [quick]) as tasks:
        handle = await tasks.start(workflow_type)

        async def has_begun() -> bool:
            return handle.id in BEGUN

        await eventually(has_begun, "the call that the cancel meets")
        await handle.cancel()
        assert await asyncio.wait_for(handle.result(), PATIENCE_SECONDS) == "compensated"
        items = {item.lineage: item.state.value for item in await tasks.work_items(handle)}
    assert items == states
