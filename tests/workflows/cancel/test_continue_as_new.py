"""Cancelling a task around the moment when it continues as new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tests.support import answers
from tests.support.answers import Answer
from tests.support.held_ledgers import HeldLedger
from tests.support.patience import eventually
from tests.support.provider import ProviderRequest
from tests.support.tasks import history
from tests.workflows.cancel.scene import NO_BACKOFF, Handle, cancel, ends_canceled, rejections, scene

STARTED = WorkItemState.STARTED
FAILED = WorkItemState.FAILED
CANCELED = WorkItemState.CANCELED


# Around continue-as-new


@pytest.fixture(scope="module")
async def short_runs() -> AsyncIterator[EmbeddedTemporal]:
    """A server that suggests to continue as new after every few attempts."""
    settings = {"limit.historyCount.suggestContinueAsNew": 30}
    async with embedded_temporal(ui=False, dynamic_config=settings) as server:
        yield server


@pytest.mark.parametrize("last", range(12))
async def test_in_any_attempt_of_a_task_that_continues_as_new(
    short_runs: EmbeddedTemporal, last: int
) -> None:
    """Before the provider answers its last request with a failure, it has the task canceled."""
    started = asyncio.Future[Handle]()

    async def answer(request: ProviderRequest) -> Answer:
        if request.number == last:
            await cancel(await started)
        return answers.status(503)

    async with scene(short_runs, answer) as now:
        handle = await now.tasks.start("AiAgentTask", NO_BACKOFF)
        started.set_result(handle)
        await ends_canceled(handle)
        items = await now.work_items(handle)
        await now.nothing_begins(last + 1, within=0.5)
    assert [request.idempotency_key for request in now.requests] == [item.id for item in items[: last + 1]]
    assert [item.state for item in items[:last]] == [FAILED] * last
    assert all(item.state.is_terminal for item in items)
    assert len(items) - last in (1, 2)
    if last >= 8:
        assert len({item.run_id for item in items}) > 1


async def test_in_the_backoff_of_a_later_run(short_runs: EmbeddedTemporal) -> None:
    started = asyncio.Future[Handle]()

    async def answer(request: ProviderRequest) -> Answer:
        handle = await started
        (run,) = {item.run_id for item in await now.work_items(handle) if item.state is STARTED}
        return answers.rate_limited("3600") if run != handle.first_execution_run_id else answers.status(503)

    async with scene(short_runs, answer) as now:
        handle = await now.tasks.start("AiAgentTask", NO_BACKOFF)
        started.set_result(handle)

        async def waiting() -> bool:
            items = await now.work_items(handle)
            return bool(items) and items[-1].delay_seconds == 3600

        await eventually(waiting, "the long backoff")
        requests = len(now.requests)
        await cancel(handle)
        await ends_canceled(handle)
        items = await now.work_items(handle)
        await now.nothing_begins(requests)
    assert [item.state for item in items] == [FAILED] * requests + [CANCELED]
    assert len({item.run_id for item in items}) > 1


@pytest.mark.usefixtures("no_write_is_slow")  # or the task hears of the cancel before it continues as new
@pytest.mark.parametrize("committed", [False, True], ids=["before the commit", "after the commit"])
async def test_while_the_record_before_continue_as_new_is_written(
    short_runs: EmbeddedTemporal, committed: bool
) -> None:
    """The task looks for news before it continues as new, and so it hears of the cancel."""
    started = asyncio.Future[Handle]()

    async def wanted(entries: Sequence[LedgerEntry]) -> bool:
        return any(one.transition.next_state is FAILED for one in entries) and any(
            event.workflow_task_started_event_attributes.suggest_continue_as_new
            for event in await history(await started)
        )

    async def answer(request: ProviderRequest) -> Answer:
        return answers.status(503)

    ledger = HeldLedger(wanted, committed=committed)
    async with scene(short_runs, answer, ledger) as now:
        handle: Handle = await now.tasks.client.start_workflow(
            "AiAgentTask",
            NO_BACKOFF,
            id=now.tasks.task_queue,
            task_queue=now.tasks.task_queue,
            task_timeout=timedelta(minutes=1),  # or the write that is held lasts into the next one
        )
        started.set_result(handle)
        await ledger.gate.wait_until_reached()
        requests = len(now.requests)
        await cancel(handle)
        ledger.gate.open()
        await ends_canceled(handle)
        items = await now.work_items(handle)
        await now.nothing_begins(requests)
        assert rejections(await history(handle)) == 0
    assert [item.state for item in items[:requests]] == [FAILED] * requests
    assert {item.state for item in items[requests:]} <= {CANCELED}
