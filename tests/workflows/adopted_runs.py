"""Runs the scenarios of `adopted_scenarios`, with what happens to them from outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import SharedStateManager, Worker

from tests.support.patience import eventually
from tests.support.tasks import IMPORTING_TESTS_ONCE, history, timers
from tests.workflows import adopted_scenarios
from tests.workflows.adopted_scenarios import Child, Scenario, Shop, in_a_process, told

Handle = WorkflowHandle[Any, Any]

ACTIVITIES = (
    "flaky", "raise_value_error", "caused", "fatal", "asks_for_a_delay", "order", "hang", "beating",
    "resumes", "goes_silent", "attempt", "elsewhere", "in_a_thread", "priority",
)  # fmt: skip


@asynccontextmanager
async def open_shop(
    client: Client, *, plugins: Sequence[Any] = (), queue: str | None = None, **options: Any
) -> AsyncIterator[tuple[str, Shop]]:
    """A worker of the application: its queue and its activities."""
    shop, queue = Shop(), queue or f"queue-{uuid4()}"
    options.setdefault("workflows", [Scenario, Child])
    options.setdefault("activities", [getattr(shop, name) for name in ACTIVITIES])
    options.setdefault("workflow_runner", IMPORTING_TESTS_ONCE)
    options.setdefault("sticky_queue_schedule_to_start_timeout", timedelta(seconds=1))
    with ThreadPoolExecutor(4) as threads:
        async with Worker(
            client,
            task_queue=queue,
            activity_executor=threads,
            plugins=plugins,
            max_heartbeat_throttle_interval=timedelta(milliseconds=50),
            default_heartbeat_throttle_interval=timedelta(milliseconds=50),
            graceful_shutdown_timeout=timedelta(0),
            **options,
        ):
            yield queue, shop


@asynccontextmanager
async def processes_of(client: Client, queue: str, plugins: Sequence[Any]) -> AsyncIterator[None]:
    """A second worker, whose activities are processes."""
    import multiprocessing

    with adopted_scenarios.processes() as pool:
        async with Worker(
            client,
            task_queue=f"{queue}-processes",
            activities=[in_a_process],
            activity_executor=pool,
            shared_state_manager=SharedStateManager.create_from_multiprocessing(multiprocessing.Manager()),
            plugins=plugins,
        ):
            yield


async def _token(shop: Shop, key: str) -> bytes:
    async def made() -> bytes | None:
        return shop.tokens.get(key)

    return await eventually(made, f"activity {key!r} has begun")


async def _complete(client: Client, handle: Handle, shop: Shop) -> None:
    await client.get_async_activity_handle(task_token=await _token(shop, "good")).complete("from elsewhere")


async def _fail(client: Client, handle: Handle, shop: Shop) -> None:
    elsewhere = client.get_async_activity_handle(task_token=await _token(shop, "bad"))
    await elsewhere.fail(ApplicationError("from elsewhere", type="Elsewhere"))


async def _report_cancel(client: Client, handle: Handle, shop: Shop) -> None:
    elsewhere = client.get_async_activity_handle(task_token=await _token(shop, "gone"))
    await elsewhere.fail(ApplicationError("gone", type="Gone", non_retryable=True))


async def _complete_by_id(client: Client, handle: Handle, shop: Shop) -> None:
    await _token(shop, "by-id")
    elsewhere = client.get_async_activity_handle(workflow_id=handle.id, run_id=None, activity_id="an-id")
    await elsewhere.complete("by its id")


async def _note_twice(client: Client, handle: Handle, shop: Shop) -> None:
    await _begun(shop, "flaky")
    await handle.signal(Scenario.note, "a signal")
    await handle.execute_update(Scenario.noted, "an update")


async def _begun(shop: Shop, kind: str, times: int = 1) -> None:
    async def probe() -> bool:
        return shop.made.get(kind, 0) >= times

    await eventually(probe, f"activity {kind!r} has begun")


def _cancel_after(kind: str) -> Callable[[Client, Handle, Shop], Awaitable[None]]:
    async def act(client: Client, handle: Handle, shop: Shop) -> None:
        await _begun(shop, kind)
        await handle.cancel()

    return act


def _tell_after(kind: str) -> Callable[[Client, Handle, Shop], Awaitable[None]]:
    async def act(client: Client, handle: Handle, shop: Shop) -> None:
        await _begun(shop, kind)
        await handle.signal(Scenario.note, "it has begun")

    return act


async def waits_for_the_next_attempt(handle: Handle, backoffs: int = 1) -> None:
    """Return in the backoff after so many: a native one is the server's, an adopted one a timer."""

    async def probe() -> bool:
        pending = (await handle.describe()).raw_description.pending_activities
        return any(one.attempt == 2 for one in pending) or len(timers(await history(handle))) >= backoffs

    await eventually(probe, "a backoff")


async def _tell_in_each_backoff(client: Client, handle: Handle, shop: Shop) -> None:
    for number in range(1, 4):
        await _begun(shop, "flaky", number)  # the activity before is no longer pending
        await waits_for_the_next_attempt(handle, number)
        await handle.signal(Scenario.note, "it waits")


async def _cancel_then_complete(client: Client, handle: Handle, shop: Shop) -> None:
    await _token(shop, "good")
    await handle.cancel()
    await asyncio.sleep(0.3)
    await _complete(client, handle, shop)


FROM_OUTSIDE: dict[str, Callable[[Client, Handle, Shop], Awaitable[None]]] = {
    "completed_elsewhere": _complete,
    "failed_elsewhere": _fail,
    "canceled_elsewhere": _report_cancel,
    "completed_elsewhere_by_its_id": _complete_by_id,
    "signals_and_updates_in_the_backoff": _note_twice,
    "try_cancel": _tell_after("beating"),
    "try_cancel_of_one_that_completes": _tell_after("beating"),
    "wait_for_the_cancellation": _tell_after("beating"),
    "wait_for_the_cancellation_of_one_that_completes": _tell_after("beating"),
    "wait_for_the_cancellation_of_one_that_fails": _tell_after("beating"),
    "abandon": _tell_after("beating"),
    "cancel_in_the_backoff": _tell_in_each_backoff,
    "one_that_nobody_awaits": _tell_after("hang"),
    "the_workflow_is_canceled": _cancel_after("beating"),
    "the_workflow_is_canceled_and_ends_so": _cancel_after("beating"),
    "the_workflow_is_canceled_while_it_waits_for_another": _cancel_then_complete,
}


async def start(client: Client, queue: str, name: str) -> Handle:
    """Start the scenario."""
    return await client.start_workflow(Scenario.run, name, id=f"{name}-{uuid4()}", task_queue=queue)


async def run_scenario(client: Client, name: str, *, plugins: Sequence[Any] = ()) -> tuple[Handle, Any, Shop]:
    """Run the scenario on a worker of its own: its handle, what came of it, and the shop."""
    async with open_shop(client, plugins=plugins) as (queue, shop), asyncio.timeout(120):
        if name == "in_a_process_of_its_own":
            async with processes_of(client, queue, plugins):
                handle = await start(client, queue, name)
                return handle, await end_of(handle), shop
        handle = await start(client, queue, name)
        if name in FROM_OUTSIDE:
            await FROM_OUTSIDE[name](client, handle, shop)
        return handle, await end_of(handle), shop


async def end_of(handle: Handle) -> Any:
    """The workflow's result, or its error as `told`."""
    try:
        return await handle.result()
    except WorkflowFailureError as error:
        return {"failed": told(error)}
