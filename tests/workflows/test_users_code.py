"""Tasks that users write, in all their shapes: what each construct does, on a real server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from temporalio import activity, workflow
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, is_cancelled_exception

from tasquencer import RetryRecipe, Task, absorb_failures
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.tasks import Tasks, history, tasks_on

ONE_TRY = RetryRecipe(max_retries=0)
QUICKLY = RetryRecipe(max_retries=2, initial_interval=timedelta(milliseconds=10), backoff_coefficient=1)
MINUTE = timedelta(minutes=1)
BEATS = timedelta(seconds=30)

CALLS = Counter[str]()


@activity.defn
async def work(name: str) -> str:
    """Named after what it does: quick…, slow… (until canceled), fails…"""
    CALLS[activity.info().activity_id] += 1
    if name.startswith("fails"):
        raise ApplicationError("it fails", type="broken", non_retryable=True)
    while name.startswith("slow"):
        activity.heartbeat()
        await asyncio.sleep(0.05)
    return name


async def carry_out(task: Task, name: str, recipe: RetryRecipe = ONE_TRY) -> None:
    async for work_item in task.attempts(name, lineage=name, recipe=recipe):
        async with work_item:
            work_item.complete(
                await work_item.execute_activity(
                    work, name, start_to_close_timeout=MINUTE, heartbeat_timeout=BEATS
                )
            )


@workflow.defn(sandboxed=False)
class FirstCompleted:
    """Ends with the first of two lineages. The other one would continue with its next attempt."""

    @workflow.run
    async def run(self) -> str:
        task = Task(policy=absorb_failures())
        both = [
            asyncio.create_task(carry_out(task, "quick")),
            asyncio.create_task(carry_out(task, "slow", QUICKLY)),
        ]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return "first"


@workflow.defn(sandboxed=False)
class TimesOut:
    """A timeout around a block, then another lineage in its place."""

    @workflow.run
    async def run(self) -> list[Any]:
        task = Task(policy=absorb_failures(), concurrency=1)
        try:
            async with asyncio.timeout(0.5):
                await carry_out(task, "slow")
        except TimeoutError:
            pass
        await carry_out(task, "quick")
        return [[item.lineage, item.state.value] for item in task.work_items]


@workflow.defn(sandboxed=False)
class Saga:
    """Swallows its cancel, and compensates with a lineage that has retries."""

    @workflow.run
    async def run(self) -> str:
        task = Task(policy=absorb_failures(), concurrency=1)
        try:
            await carry_out(task, "slow")
        except BaseException as error:
            if not is_cancelled_exception(error):
                raise
        await carry_out(task, "quick", QUICKLY)
        return "compensated"


@workflow.defn(sandboxed=False)
class Unguarded:
    """Calls without its block, or twice in one."""

    @workflow.run
    async def run(self, how: str) -> None:
        task = Task()
        async for work_item in task.attempts("quick"):
            if how == "outside":
                await work_item.execute_activity(work, "quick", start_to_close_timeout=MINUTE)
            async with work_item:
                await work_item.execute_activity(work, "quick", start_to_close_timeout=MINUTE)
                await work_item.execute_activity(work, "quick", start_to_close_timeout=MINUTE)


@workflow.defn(sandboxed=False)
class WaitsBetween:
    """Awaits something between the loop and the block."""

    def __init__(self) -> None:
        self._go = False
        self._task = Task(policy=absorb_failures())

    @workflow.run
    async def run(self) -> str:
        async for work_item in self._task.attempts("quick"):
            await workflow.wait_condition(lambda: self._go)
            async with work_item:
                await work_item.execute_activity(work, "quick", start_to_close_timeout=MINUTE)
                work_item.complete("done")
        return "ended"

    @workflow.signal
    def go(self) -> None:
        self._go = True


class Broken(Exception):
    """An exception that fails the workflow."""


@workflow.defn(sandboxed=False, failure_exception_types=[Broken])
class FailsByItself:
    """Raises an exception of its own while a lineage is under way."""

    @workflow.run
    async def run(self) -> None:
        task = Task()
        beside = asyncio.create_task(carry_out(task, "slow"))
        await workflow.sleep(0.5)
        assert not beside.done()
        raise Broken("on purpose")


@dataclass
class Invoice:
    """What a user keeps."""

    at: datetime
    cents: Decimal
    raw: bytes


@workflow.defn(sandboxed=False)
class Values:
    """Values that JSON has no types for."""

    @workflow.run
    async def run(self) -> Any:
        task = Task()
        invoice = Invoice(datetime(2026, 1, 2, tzinfo=UTC), Decimal("12.50"), b"\x00\xff")
        async for work_item in task.attempts(invoice):
            async with work_item:
                work_item.complete(invoice)
        return task.result()


@workflow.defn(sandboxed=False)
class NotANumber:
    """A result that no JSON carries."""

    @workflow.run
    async def run(self) -> None:
        async for work_item in Task().attempts("once"):
            async with work_item:
                work_item.complete({"rate": float("nan")})


@workflow.defn(sandboxed=False)
class Abandons:
    """A signal handler that never ends, with a task beside it."""

    @workflow.run
    async def run(self) -> str:
        task = Task()
        await workflow.sleep(0.3)
        await carry_out(task, "quick")
        return "ended"

    @workflow.signal
    async def hang(self) -> None:
        await workflow.wait_condition(lambda: False)


@workflow.defn(sandboxed=False)
class Subscription:
    """Charges each month in a run of its own, by its own continue-as-new."""

    @workflow.run
    async def run(self, month: int, charged: list[str]) -> list[str]:
        task = Task()
        await carry_out(task, f"quick-{month}")
        charged = [*charged, task.completed(f"quick-{month}").id]
        if month < 3:
            workflow.continue_as_new(args=[month + 1, charged])
        return charged


WORKFLOWS: Sequence[type] = [
    FirstCompleted, TimesOut, Saga, Unguarded, WaitsBetween, FailsByItself, Values, NotANumber, Abandons,
    Subscription,
]  # fmt: skip


def on(server: EmbeddedTemporal) -> Any:
    return tasks_on(server.address, WORKFLOWS, [work])


async def items_of(tasks: Tasks, handle: WorkflowHandle[Any, Any]) -> dict[str, WorkItem]:
    return {item.lineage: item for item in await tasks.ledger.work_items_of(handle.id)}


async def stumbles(handle: WorkflowHandle[Any, Any]) -> str:
    """The message of the first workflow task that fails."""

    async def probe() -> str | None:
        for event in await history(handle):
            if event.HasField("workflow_task_failed_event_attributes"):
                return event.workflow_task_failed_event_attributes.failure.message
        return None

    return await eventually(probe, "a workflow task that fails")


def made_once(items: dict[str, WorkItem]) -> bool:
    return all(CALLS[item.id] <= 1 for item in items.values())


async def test_a_run_that_ends_begins_nothing_new_and_leaves_nothing_open(
    dev_server: EmbeddedTemporal,
) -> None:
    async with on(dev_server) as tasks:
        result, handle = await tasks.run("FirstCompleted")
        items = await items_of(tasks, handle)
        assert result == "first"
        assert {name: item.state.value for name, item in items.items()} == {
            "quick": "completed", "slow": "canceled",
        }  # fmt: skip
        assert len(await tasks.ledger.work_items_of(handle.id)) == 2
        assert made_once(items)


async def test_a_timeout_around_a_block_ends_its_call_frees_its_place_and_asks_the_policy(
    dev_server: EmbeddedTemporal,
) -> None:
    async with on(dev_server) as tasks:
        result, handle = await tasks.run("TimesOut")
        items = await items_of(tasks, handle)
        steps = await tasks.ledger.transitions(items["slow"].id)
    assert result == [["slow", "canceled"], ["quick", "completed"]]
    assert steps[-1].reason == "the code around it was canceled"


async def test_a_saga_compensates_after_a_cancel(dev_server: EmbeddedTemporal) -> None:
    async with on(dev_server) as tasks:
        handle = await tasks.start("Saga")

        async def under_way() -> bool:
            return any(item.id in CALLS for item in (await items_of(tasks, handle)).values())

        await eventually(under_way, "the call")
        await handle.cancel()
        assert await asyncio.wait_for(handle.result(), PATIENCE_SECONDS) == "compensated"
        items = await items_of(tasks, handle)
        steps = await tasks.ledger.transitions(items["slow"].id)
    assert {name: item.state.value for name, item in items.items()} == {
        "slow": "canceled", "quick": "completed",
    }  # fmt: skip
    assert steps[-1].reason == "the task was canceled"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("outside", "execute_activity belongs in the block of its work item: `async with work_item:`"),
        ("twice", "executes a second activity: one work item makes one call"),
    ],
)
async def test_a_call_without_its_own_work_item_is_refused(
    dev_server: EmbeddedTemporal, how: str, message: str
) -> None:
    async with on(dev_server) as tasks:
        handle = await tasks.start("Unguarded", how)
        assert message in await stumbles(handle)
        items = await items_of(tasks, handle)
        await handle.terminate()
    assert made_once(items)
    assert how == "twice" or not any(item.id in CALLS for item in items.values())


async def test_a_work_item_that_ends_between_the_loop_and_the_block_makes_no_call(
    dev_server: EmbeddedTemporal,
) -> None:
    async with on(dev_server) as tasks:
        handle = await tasks.start("WaitsBetween")

        async def listed() -> list[dict[str, Any]]:
            return await handle.query("work_items")

        (item,) = await eventually(listed, "the work item")
        action = {"actor": "anna", "work_item_id": item["id"]}
        await handle.execute_update("cancel_work_item", action)
        await handle.signal("go")
        assert await asyncio.wait_for(handle.result(), PATIENCE_SECONDS) == "ended"
        items = await items_of(tasks, handle)
    assert [item.state for item in items.values()] == [WorkItemState.CANCELED]
    assert item["id"] not in CALLS


async def test_a_workflow_that_fails_by_itself_leaves_nothing_open(dev_server: EmbeddedTemporal) -> None:
    async with on(dev_server) as tasks:
        handle = await tasks.start("FailsByItself")
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
        items = await items_of(tasks, handle)
        steps = await tasks.ledger.transitions(items["slow"].id)
    assert "on purpose" in str(failed.value.cause)
    assert (items["slow"].state, steps[-1].reason) == (WorkItemState.CANCELED, "the task failed")


async def test_values_are_kept_as_json(dev_server: EmbeddedTemporal) -> None:
    async with on(dev_server) as tasks:
        result, handle = await tasks.run("Values")
        (item,) = (await items_of(tasks, handle)).values()
    assert result == {"at": "2026-01-02T00:00:00Z", "cents": "12.50", "raw": "AP8="}
    assert item.payload == item.result == result


async def test_a_value_that_is_no_json_is_named(dev_server: EmbeddedTemporal) -> None:
    async with on(dev_server) as tasks:
        handle = await tasks.start("NotANumber")
        message = await stumbles(handle)
        await handle.terminate()
    assert "the result of lineage 'main' cannot be written as JSON: it contains NaN or infinity" in message


async def test_an_abandoned_handler_does_not_hold_up_the_end(dev_server: EmbeddedTemporal) -> None:
    async with on(dev_server) as tasks:
        handle = await tasks.start("Abandons")
        await handle.signal("hang")
        assert await asyncio.wait_for(handle.result(), PATIENCE_SECONDS) == "ended"


async def test_a_workflow_that_continues_as_new_by_itself_begins_a_new_task(
    dev_server: EmbeddedTemporal,
) -> None:
    async with on(dev_server) as tasks:
        handle = await tasks.client.start_workflow(
            "Subscription", args=[1, []], id=f"subscription-{uuid4()}", task_queue=tasks.task_queue
        )
        charged = await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)
        items = await tasks.ledger.work_items_of(handle.id)
    assert len(set(charged)) == 3
    assert {item.id for item in items} == set(charged)
    assert [CALLS[known] for known in charged] == [1, 1, 1]
    assert {item.state for item in items} == {WorkItemState.COMPLETED}
