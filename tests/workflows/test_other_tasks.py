"""The package is general: tasks that are not about AI, other policies, hooks, several lineages."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from temporalio import activity, workflow
from temporalio.exceptions import ApplicationError

from tasquencer import (
    NextAttempt,
    RetryRecipe,
    StateChange,
    WorkItem,
    WorkItemState,
    fail_fast,
    require_successes,
    retry_by_recipe,
)
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import Task
from tests.support.patience import eventually
from tests.support.tasks import history, tasks_on, tasks_on_skipped_time, timers
from tests.workflows import charge_card
from tests.workflows.charge_card import ChargeCard, charge

SOON = timedelta(seconds=30)


async def test_a_task_of_another_kind_takes_under_forty_lines() -> None:
    source = Path(charge_card.__file__).read_text().splitlines()
    assert len(source) < 40


async def test_a_task_of_another_kind_completes_with_its_result() -> None:
    async with tasks_on_skipped_time([ChargeCard], [charge]) as tasks:
        result, handle = await tasks.run("ChargeCard", 500)
        (item,) = await tasks.work_items(handle)
    assert result == "charged 500"
    assert (item.task_type, item.payload, item.result) == ("ChargeCard", {"cents": 500}, "charged 500")


async def test_an_error_type_of_the_activity_s_own_is_the_kind_of_the_failure() -> None:
    async with tasks_on_skipped_time([ChargeCard], [charge]) as tasks:
        error, handle = await tasks.failure("ChargeCard", 200_000)
        (item,) = await tasks.work_items(handle)
    assert error.type == "NotRetryable"
    assert item.failure is not None
    assert (item.failure.kind, item.failure.message) == ("card_declined", "declined by the bank")


async def test_a_retryable_error_of_the_activity_is_retried_by_the_task_s_recipe() -> None:
    async with tasks_on_skipped_time([ChargeCard], [charge]) as tasks:
        error, handle = await tasks.failure("ChargeCard", 50)
        assert timers(await history(handle)) == [60, 120]
    assert error.type == "RetriesExhausted"


@activity.defn
async def sometimes(name: str) -> str:
    """Fails for names that say so: `fails`, `fails once …`."""
    if name.startswith("fails"):
        raise ApplicationError(f"{name} it does", type="told_so")
    return name


def easier_each_time(change: StateChange) -> NextAttempt | None:
    wish = retry_by_recipe(change)
    return None if wish is None else replace(wish, payload=f"easier than {change.work_item.payload}")


@workflow.defn
class HookedTask:
    def __init__(self) -> None:
        self._task = Task(on_work_item_state_changed=easier_each_time)

    @workflow.run
    async def run(self) -> str:
        async for work_item in self._task.attempts("fails"):
            async with work_item:
                work_item.complete(
                    await work_item.execute_activity(
                        sometimes, work_item.payload, start_to_close_timeout=SOON
                    )
                )
        return str(self._task.result())


async def test_a_hook_may_change_what_the_next_attempt_has_to_do() -> None:
    async with tasks_on_skipped_time([HookedTask], [sometimes]) as tasks:
        result, handle = await tasks.run("HookedTask")
        items = await tasks.work_items(handle)
    assert result == "easier than fails"
    assert [item.payload for item in items] == ["fails", "easier than fails"]


@workflow.defn
class ImpatientTask:
    def __init__(self) -> None:
        self._task = Task(policy=fail_fast)

    @workflow.run
    async def run(self) -> str:
        async for work_item in self._task.attempts("fails"):
            async with work_item:
                work_item.complete(
                    await work_item.execute_activity(sometimes, "fails", start_to_close_timeout=SOON)
                )
        return str(self._task.result())


async def test_fail_fast_ends_the_task_at_the_first_failure_and_cancels_the_planned_retry() -> None:
    async with tasks_on_skipped_time([ImpatientTask], [sometimes]) as tasks:
        error, handle = await tasks.failure("ImpatientTask")
        items = await tasks.work_items(handle)
        assert timers(await history(handle)) == []
    assert error.type == "TaskFailed"
    assert [item.state for item in items] == [WorkItemState.FAILED, WorkItemState.CANCELED]


@workflow.defn
class SeveralLineages:
    def __init__(self) -> None:
        self._task = Task(recipe=RetryRecipe(max_retries=1))

    @workflow.run
    async def run(self, names: list[str]) -> list[str]:
        await asyncio.gather(*(self._one(name) for name in names))
        return [str(self._task.result(name)) for name in names]

    async def _one(self, name: str) -> None:
        async for work_item in self._task.attempts(name, lineage=name):
            async with work_item:
                work_item.complete(
                    await work_item.execute_activity(sometimes, name, start_to_close_timeout=SOON)
                )


async def test_lineages_side_by_side_share_the_writes_to_the_ledger() -> None:
    names = [f"line {number}" for number in range(20)]
    async with tasks_on_skipped_time([SeveralLineages], [sometimes]) as tasks:
        result, handle = await tasks.run("SeveralLineages", names)
        items = await tasks.work_items(handle)
        markers = [
            event for event in await history(handle) if event.HasField("marker_recorded_event_attributes")
        ]
    assert result == names
    assert {item.lineage for item in items} == set(names)
    assert {item.state for item in items} == {WorkItemState.COMPLETED}
    assert len(markers) < 2 * len(names)


@workflow.defn
class LeavesEarly:
    def __init__(self) -> None:
        self._task = Task()

    @workflow.run
    async def run(self) -> str:
        async for work_item in self._task.attempts("fails"):
            async with work_item:
                work_item.complete(
                    await work_item.execute_activity(sometimes, "fails", start_to_close_timeout=SOON)
                )
            break
        return "left"


async def test_what_a_task_leaves_open_is_canceled_when_it_ends() -> None:
    async with tasks_on_skipped_time([LeavesEarly], [sometimes]) as tasks:
        result, handle = await tasks.run("LeavesEarly")
        items = await tasks.work_items(handle)
        log = await tasks.ledger.transitions(items[1].id)
    assert result == "left"
    assert [item.state for item in items] == [WorkItemState.FAILED, WorkItemState.CANCELED]
    assert log[-1].reason == "the task ended"


@activity.defn
async def huge() -> str:
    """A result beyond what a Temporal payload can carry."""
    return "x" * 3_000_000


@workflow.defn
class HugeResult:
    def __init__(self) -> None:
        self._task = Task()

    @workflow.run
    async def run(self) -> None:
        async for work_item in self._task.attempts("huge"):
            async with work_item:
                work_item.complete(await work_item.execute_activity(huge, start_to_close_timeout=SOON))
        self._task.result()


@activity.defn
async def counted(name: str) -> int:
    """How many calls are under way."""
    _under_way.add(name)
    await asyncio.sleep(0.05)
    found = len(_under_way)
    _under_way.discard(name)
    return found


_under_way: set[str] = set()


@workflow.defn
class FewAtOnce:
    def __init__(self) -> None:
        self._task = Task(concurrency=3, policy=require_successes(7))

    @workflow.run
    async def run(self) -> list[int]:
        names = [f"line {number}" for number in range(10)]
        return [found for found in await asyncio.gather(*map(self._one, names)) if found]

    async def _one(self, name: str) -> int:
        most = 0
        async for work_item in self._task.attempts(name, lineage=name):
            async with work_item:
                most = await work_item.execute_activity(counted, name, start_to_close_timeout=SOON)
                work_item.complete(most)
        return most


async def test_no_more_work_items_than_allowed_are_started_and_the_verdict_cancels_the_rest(
    dev_server: EmbeddedTemporal,
) -> None:
    async with tasks_on(dev_server.address, [FewAtOnce], [counted]) as tasks:
        result, handle = await tasks.run("FewAtOnce")
        items = await tasks.work_items(handle)
    assert 1 <= max(result) <= 3
    states = [item.state for item in items]
    assert len(items) == 10
    assert states.count(WorkItemState.COMPLETED) >= 7
    assert states.count(WorkItemState.CANCELED) == 10 - states.count(WorkItemState.COMPLETED) > 0


@workflow.defn
class AskSomebody:
    def __init__(self) -> None:
        self._task = Task(recipe=RetryRecipe(max_retries=0))

    @workflow.run
    async def run(self) -> str:
        async for work_item in self._task.attempts("a question"):
            async with work_item:
                work_item.complete(await work_item.outcome(timedelta(hours=1)))
        return str(self._task.result())


async def test_a_work_item_that_nobody_ends_in_time_is_timed_out() -> None:
    async with tasks_on_skipped_time([AskSomebody], [charge]) as tasks:
        error, handle = await tasks.failure("AskSomebody")
        (item,) = await tasks.work_items(handle)
    assert error.type == "RetriesExhausted"
    assert item.failure is not None
    assert (item.failure.kind, item.failure.message) == ("timed_out", "no outcome from outside within 1 h")


async def test_a_work_item_may_be_done_elsewhere(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, [AskSomebody], [charge]) as tasks:
        handle = await tasks.start("AskSomebody")

        async def started() -> WorkItem | None:
            items = await tasks.work_items(handle)
            return items[0] if items and items[0].state is WorkItemState.STARTED else None

        item = await eventually(started, "a work item that waits for somebody")
        await handle.execute_update(
            "complete_work_item", {"work_item_id": item.id, "actor": "anna", "result": "an answer"}
        )
        assert await handle.result() == "an answer"
        *_, last = await tasks.ledger.transitions(item.id)
    assert (last.next_state, last.actor) == (WorkItemState.COMPLETED, "anna")
