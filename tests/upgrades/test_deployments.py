"""Versions of a worker that are live at once: each task ends on the build that it is meant for."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import (
    Client,
    ScheduleActionExecutionStartWorkflow,
    ScheduleHandle,
    WorkflowExecutionStatus,
    WorkflowHandle,
)
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker, WorkerDeploymentConfig

from tasquencer import WrongSetting
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.http_server import Exchange
from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.temporal import TasquencerPlugin, schedules
from tasquencer.temporal.versioning import Version, Versioning
from tasquencer.testing import InMemoryLedger
from tests.end_to_end.stage import Stage
from tests.support.answers import Answer, Hold, ok, rate_limited
from tests.support.calls import GONE, ScriptedCalls
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ScriptedProvider
from tests.support.tasks import Tasks
from tests.upgrades.deployments import QUICKLY, Deployment
from tests.upgrades.test_patching import NEW_PATH, OLD_PATH, in_backoff, wake
from tests.upgrades.variants import Careless, First, Patched, look_up

Handle = WorkflowHandle[Any, Any]


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[EmbeddedTemporal]:
    """A Temporal server that soon notices that a version is drained."""
    async with embedded_temporal(ui=False, dynamic_config=QUICKLY) as server:
        yield server


# Code of one's own.


@pytest.fixture
def deployment(server: EmbeddedTemporal) -> Deployment:
    return Deployment(server)


@pytest.fixture
async def tasks(deployment: Deployment) -> Tasks:
    ledger = InMemoryLedger()
    client = await Client.connect(deployment.server.address, plugins=[TasquencerPlugin(ledger)])
    return Tasks(client, deployment.name, ledger)


@asynccontextmanager
async def build(build_id: str, code: type, tasks: Tasks, *script: Any) -> AsyncIterator[None]:
    """A worker with a version; tasks are pinned to it. Its calls do as the script says."""
    async with Worker(
        tasks.client,
        task_queue=tasks.task_queue,
        workflows=[code],
        activities=[ScriptedCalls(*script).generate, look_up],
        deployment_config=WorkerDeploymentConfig(
            WorkerDeploymentVersion(tasks.task_queue, build_id),
            use_worker_versioning=True,
            default_versioning_behavior=VersioningBehavior.PINNED,
        ),
    ):
        yield


async def test_pinned_tasks_end_on_the_build_they_began_on_though_the_next_one_has_changed_without_a_patch(
    deployment: Deployment, tasks: Tasks
) -> None:
    async with build("2.0", Careless, tasks), build("1.0", First, tasks, *[GONE] * 3):
        await deployment.set_current("1.0")
        old = [await tasks.start("Letter") for _ in range(3)]
        for handle in old:
            await in_backoff(tasks, handle)
        await deployment.set_current("2.0")
        new = [await tasks.start("Letter") for _ in range(3)]
        assert await asyncio.gather(*(handle.result() for handle in new)) == [NEW_PATH] * 3
        await wake(*old)
        assert await asyncio.gather(*(handle.result() for handle in old)) == [OLD_PATH] * 3
        await deployment.drained("1.0")
    async with build("2.0", Careless, tasks):
        result, _ = await tasks.run("Letter")
    assert result == NEW_PATH


async def test_a_pinned_task_whose_build_is_gone_waits_until_it_is_moved(
    deployment: Deployment, tasks: Tasks
) -> None:
    async with build("1.0", First, tasks, GONE):
        await deployment.set_current("1.0")
        handle = await tasks.start("Letter")
        await in_backoff(tasks, handle)
    async with build("2.0", Patched, tasks):
        await deployment.set_current("2.0")
        waking = asyncio.create_task(wake(handle))
        assert (await tasks.run("Letter"))[0] == NEW_PATH
        assert not waking.done()
        assert (await tasks.work_items(handle))[-1].state is WorkItemState.INITIALIZED
        await deployment.move(handle.id, "2.0")
        await waking
        assert await handle.result() == OLD_PATH


# The shipped worker.


def version(deployment: Deployment, build_id: str, **settings: str) -> dict[str, str]:
    return {"TEMPORAL_DEPLOYMENT_NAME": deployment.name, "TEMPORAL_WORKER_BUILD_ID": build_id, **settings}


def carried_out_by(worker: ChildProcess, items: list[WorkItem]) -> bool:
    return all((item.worker or "").startswith(f"{worker.pid}@") for item in items)


def held(hold: Hold, answer: Answer) -> Answer:
    async def give(exchange: Exchange, body: Any) -> None:
        await hold.wait()
        await answer.give(exchange, body)

    return Answer(f"{answer.name}, held", give)


async def test_two_builds_of_the_worker_each_end_their_own_tasks_and_the_old_one_is_drained(
    deployment: Deployment, tmp_path: Path
) -> None:
    hold = Hold()
    script = {"old": [held(hold, rate_limited("0.1")), ok()]}
    async with ScriptedProvider(script, then=ok()) as provider:
        stage = await Stage.on(deployment.server, provider, tmp_path)
        async with (
            stage.worker(settings=version(deployment, "1.0")) as first,
            stage.worker(settings=version(deployment, "2.0")) as second,
        ):
            assert f"; build '1.0' of deployment '{deployment.name}' (pinned)\n" in first.output()
            await deployment.set_current("1.0")
            old = await stage.start("old")
            await provider.wait_for_requests(1)
            await deployment.set_current("2.0")
            new = await stage.start("new")
            assert (await new.result())["attempts"] == 1
            hold.release()
            assert (await old.result())["attempts"] == 2
            assert carried_out_by(first, await stage.work_items(old))
            assert carried_out_by(second, await stage.work_items(new))
            await deployment.drained("1.0")
            first.send(signal.SIGTERM)
            assert await first.wait(timeout_seconds=PATIENCE_SECONDS) == 0
            last = await stage.start("last")
            assert (await last.result())["attempts"] == 1
            assert carried_out_by(second, await stage.work_items(last))


async def test_tasks_that_upgrade_by_themselves_go_on_with_the_current_build(
    deployment: Deployment, tmp_path: Path
) -> None:
    upgrading = {"TASQ_VERSIONING": "auto-upgrade"}
    async with ScriptedProvider([rate_limited("0.1")], then=ok()) as provider:
        stage = await Stage.on(deployment.server, provider, tmp_path)
        async with stage.worker(settings=version(deployment, "1.0", **upgrading)) as first:
            await deployment.set_current("1.0")
            task = await stage.start(retry={"initial_interval_seconds": 3600})
            await stage.work_item(task, 1, WorkItemState.INITIALIZED)
            first.send(signal.SIGTERM)
            assert await first.wait(timeout_seconds=PATIENCE_SECONDS) == 0
        async with stage.worker(settings=version(deployment, "2.0", **upgrading)) as second:
            await deployment.set_current("2.0")
            await wake(task)
            assert (await task.result())["attempts"] == 2
            items = await stage.work_items(task)
        assert carried_out_by(first, items[:1])
        assert carried_out_by(second, items[1:])


async def test_a_run_of_the_reconciler_whose_build_is_gone_keeps_the_next_ones_waiting_for_a_limited_time(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "_LONGEST_RUN", timedelta(seconds=15))
    no_schedule = {"TASQ_RECONCILE_EVERY": "0"}
    async with ScriptedProvider() as provider:
        stage = await Stage.on(deployment.server, provider, tmp_path)
        elsewhere = tmp_path / "elsewhere.db"
        async with stage.worker(settings=version(deployment, "1.0", **no_schedule)) as first:
            await deployment.set_current("1.0")
            stage.ledger_file.rename(elsewhere)  # so that a run cannot end
            await schedules.create_schedule(stage.client, stage.task_queue, timedelta(seconds=1))
            schedule = stage.client.get_schedule_handle(schedules.schedule_id(stage.task_queue))

            async def waits() -> Handle | None:
                latest = await _ran(schedule)
                run = stage.client.get_workflow_handle(latest) if latest else None
                return run if run and await _waits_for_the_ledger(run) else None

            waiting = await eventually(waits, "a run that waits for the ledger")
            first.kill()
        elsewhere.rename(stage.ledger_file)
        async with stage.worker(settings=version(deployment, "2.0", **no_schedule)):
            await deployment.set_current("2.0")

            async def goes_on() -> bool:
                latest = await _ran(schedule)
                assert latest is not None
                described = await stage.client.get_workflow_handle(latest).describe()
                return described.status is WorkflowExecutionStatus.COMPLETED

            went_on = await goes_on()
            if (await waiting.describe()).status is WorkflowExecutionStatus.RUNNING:
                assert not went_on
            await eventually(goes_on, "a run on the next build")
        await schedule.delete()
    assert (await waiting.describe()).status is WorkflowExecutionStatus.TIMED_OUT


async def test_the_schedule_of_the_reconciler_runs_on_workers_with_a_version(
    deployment: Deployment, tmp_path: Path
) -> None:
    async with ScriptedProvider() as provider:
        stage = await Stage.on(deployment.server, provider, tmp_path)
        schedule = stage.client.get_schedule_handle(schedules.schedule_id(stage.task_queue))
        often = version(deployment, "1.0", TASQ_RECONCILE_EVERY="1")
        async with stage.worker(settings=often):
            await deployment.set_current("1.0")
            workflow_id = await eventually(lambda: _ran(schedule), "a run of the schedule")
            found = await stage.client.get_workflow_handle(workflow_id).result()
            assert found == {"open_work_items": 0, "settled": {}, "undecided": 0}
            async with stage.worker(settings=often | {"TEMPORAL_WORKER_BUILD_ID": "2.0"}):
                await deployment.set_current("2.0")

                async def goes_on() -> bool:
                    latest = await _ran(schedule)
                    assert latest is not None
                    run = stage.client.get_workflow_handle(latest)
                    assert (await run.result()) == found
                    info = (await run.describe()).raw_description.workflow_execution_info
                    return info.versioning_info.deployment_version.build_id == "2.0"

                await eventually(goes_on, "a run of the schedule on the next build")
                await schedule.delete()


async def _waits_for_the_ledger(workflow: Handle) -> bool:
    pending = (await workflow.describe()).raw_description.pending_activities
    return bool(pending) and pending[0].HasField("last_failure")


async def _ran(schedule: ScheduleHandle) -> str | None:
    """Id of the latest run of the schedule, once there is one."""
    try:
        described = await schedule.describe()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return None
    done = [one.action for one in described.info.recent_actions]
    ids = [one.workflow_id for one in done if isinstance(one, ScheduleActionExecutionStartWorkflow)]
    return ids[-1] if ids else None


@pytest.mark.parametrize(
    ("name", "build_id", "problem"),
    [
        ("letters", "", "TEMPORAL_WORKER_BUILD_ID: must be set too where TEMPORAL_DEPLOYMENT_NAME is"),
        ("", "1.0", "TEMPORAL_DEPLOYMENT_NAME: must be set too where TEMPORAL_WORKER_BUILD_ID is"),
        ("a.b", "1.0", "TEMPORAL_DEPLOYMENT_NAME: 'a.b' begins with '__' or contains '.' or ':'"),
        ("a:b", "1.0", "TEMPORAL_DEPLOYMENT_NAME: 'a:b' begins with '__' or contains '.' or ':'"),
        ("__a", "1.0", "TEMPORAL_DEPLOYMENT_NAME: '__a' begins with '__' or contains '.' or ':'"),
    ],
)
def test_half_a_version_or_a_name_that_temporal_refuses_is_refused(
    name: str, build_id: str, problem: str
) -> None:
    with pytest.raises(WrongSetting, match=f"^{re.escape(problem)}"):
        Version.of(name, build_id, Versioning.PINNED)


async def test_the_worker_says_in_one_line_what_its_version_lacks(
    server: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with ScriptedProvider() as provider:
        stage = await Stage.on(server, provider, tmp_path)
        async with stage.process(settings={"TEMPORAL_WORKER_BUILD_ID": "1.0"}) as worker:
            assert await worker.wait(timeout_seconds=PATIENCE_SECONDS) == 2
            (line,) = worker.output().splitlines()
    assert line == "error: TEMPORAL_DEPLOYMENT_NAME: must be set too where TEMPORAL_WORKER_BUILD_ID is"
