"""The schedule that the worker creates, so that open work items are settled automatically."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.client import ScheduleActionExecutionStartWorkflow, ScheduleDescription
from temporalio.service import RPCError
from temporalio.testing import WorkflowEnvironment

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal.running import schedule_reconciliation
from tasquencer.temporal.schedules import create_schedule, schedule_id
from tests.end_to_end.stage import Stage
from tests.support.answers import ok
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ScriptedProvider
from tests.support.tasks import executable


@pytest.fixture
async def stage(dev_server: EmbeddedTemporal, tmp_path: Path) -> AsyncIterator[Stage]:
    async with ScriptedProvider([], then=ok("Hi.")) as provider:
        yield await Stage.on(dev_server, provider, tmp_path / "stage")


async def schedule(stage: Stage) -> ScheduleDescription | None:
    try:
        return await stage.client.get_schedule_handle(schedule_id(stage.task_queue)).describe()
    except RPCError:
        return None


def interval(found: ScheduleDescription) -> timedelta:
    (spec,) = found.schedule.spec.intervals
    return spec.every


async def test_a_worker_creates_the_schedule_and_carries_it_out(stage: Stage) -> None:
    async with stage.worker(settings={"TASQ_RECONCILE_EVERY": "1"}) as process:
        created = await eventually(lambda: schedule(stage), "the schedule")
        assert interval(created) == timedelta(seconds=1)

        async def ran() -> str | None:
            found = await schedule(stage)
            done = [one.action for one in found.info.recent_actions] if found else []
            ids = [one.workflow_id for one in done if isinstance(one, ScheduleActionExecutionStartWorkflow)]
            return ids[-1] if ids else None

        workflow_id = await eventually(ran, "a run of the schedule")
        found = await stage.client.get_workflow_handle(workflow_id).result()
        assert found == {"open_work_items": 0, "settled": {}, "undecided": 0}

        async def says_so() -> bool:
            return f"created schedule {schedule_id(stage.task_queue)}" in process.output()

        await eventually(says_so, "the worker says that it has created the schedule")
    await stage.client.get_schedule_handle(schedule_id(stage.task_queue)).delete()


async def test_a_worker_leaves_a_schedule_that_is_there_as_it_is(stage: Stage) -> None:
    await create_schedule(stage.client, stage.task_queue, timedelta(hours=6))
    async with stage.worker() as process:
        assert "schedule" not in process.output()
    found = await schedule(stage)
    assert found is not None
    assert interval(found) == timedelta(hours=6)
    await stage.client.get_schedule_handle(found.id).delete()


async def test_a_worker_that_is_told_so_creates_no_schedule(stage: Stage) -> None:
    async with stage.worker(settings={"TASQ_RECONCILE_EVERY": "0"}):
        handle = await stage.start(max_retries=0)
        await handle.result()  # it has had the time
    assert await schedule(stage) is None


async def test_a_worker_that_may_create_no_schedule_says_what_to_do_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=executable("temporal-test-server"),
        test_server_startup_timeout=timedelta(seconds=PATIENCE_SECONDS),
    ) as server_without_schedules:
        with caplog.at_level(logging.WARNING):
            await schedule_reconciliation(server_without_schedules.client, "queue", timedelta(minutes=5))
    (record,) = [record for record in caplog.records if record.name == "tasquencer.worker"]
    assert record.getMessage().startswith("cannot create schedule tasq-reconcile-queue")
    assert "run `tasq reconcile` now and then, or set TASQ_RECONCILE_EVERY=0" in record.getMessage()
