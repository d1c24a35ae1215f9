"""A worker with several processes: how they poll, and how they end."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import EventType, TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest

from tasquencer.cli.worker_processes import metrics_address_of
from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.end_to_end.stage import READY, Stage
from tests.support.answers import Hold, stall
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ScriptedProvider


@pytest.fixture
async def held_stage(dev_server: EmbeddedTemporal, tmp_path: Path) -> AsyncIterator[tuple[Stage, Hold]]:
    """A stage whose provider holds each answer back until it is released."""
    hold = Hold()
    async with ScriptedProvider(then=stall(hold)) as provider:
        yield await Stage.on(dev_server, provider, tmp_path), hold
        hold.release()


async def pollers(stage: Stage) -> set[str]:
    """Return the identities that the server has seen poll for workflow tasks."""
    answer = await stage.client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=stage.client.namespace,
            task_queue=TaskQueue(name=stage.task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
    )
    return {poller.identity for poller in answer.pollers}


def pids(identities: set[str]) -> list[int]:
    return sorted(int(identity.partition("@")[0]) for identity in identities)


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def two_polling(stage: Stage, worker: ChildProcess) -> list[int]:
    """Wait until two processes poll, and return their ids."""

    async def probe() -> bool:
        return len(await pollers(stage)) == 2 and worker.output().count(READY) == 2

    await eventually(probe, "two processes poll")
    return pids(await pollers(stage))


async def both_stop(worker: ChildProcess) -> None:
    async def probe() -> bool:
        return worker.output().count("stopping: running calls") == 2

    await eventually(probe, "both processes are stopping")


async def all_ended(processes: list[int]) -> None:
    async def probe() -> bool:
        return not any(map(is_alive, processes))

    await eventually(probe, "the worker processes have ended")


def sends(number: signal.Signals) -> Callable[[ChildProcess, list[int]], None]:
    """Return a stop by a signal to the parent alone, as `docker stop` does."""
    return lambda worker, _: worker.send(number)


def sends_to_all(worker: ChildProcess, children: list[int]) -> None:
    """Stop the parent and its children together, as systemd does.

    The parent continues only when all have their signal. Otherwise it could stop a child, or miss one, whose
    own signal comes much later.
    """
    worker.send(signal.SIGSTOP)
    for pid in (worker.pid, *children):
        os.kill(pid, signal.SIGTERM)
    worker.send(signal.SIGCONT)


@pytest.mark.parametrize(
    "stop",
    [sends(signal.SIGTERM), sends(signal.SIGINT), sends_to_all],
    ids=["SIGTERM", "SIGINT", "SIGTERM-to-all"],
)
async def test_a_signal_lets_the_call_under_way_end_and_stops_all_processes(
    held_stage: tuple[Stage, Hold], stop: Callable[[ChildProcess, list[int]], None]
) -> None:
    stage, hold = held_stage
    async with stage.process("--processes", "2") as worker:
        children = await two_polling(stage, worker)
        assert worker.pid not in children
        task = await stage.start()
        await stage.provider.wait_for_requests(1)
        stop(worker, children)
        await both_stop(worker)
        hold.release()
        assert await worker.wait(timeout_seconds=PATIENCE_SECONDS) == 0
        assert not any(map(is_alive, children))
        assert "second signal" not in worker.output()
        # The answer is in the history. The next worker records it and continues the task.
        history = await task.fetch_history()
        assert EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED in [event.event_type for event in history.events]


async def test_a_killed_process_ends_the_worker_with_an_error(stage: Stage) -> None:
    async with stage.process("--processes", "2") as worker:
        children = await two_polling(stage, worker)
        os.kill(children[1], signal.SIGKILL)
        assert await worker.wait(timeout_seconds=PATIENCE_SECONDS) == 128 + signal.SIGKILL
        assert not any(map(is_alive, children))
        errors = [line for line in worker.output().splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert f"(pid {children[1]}) was ended by SIGKILL: stopping the others" in errors[0]
        assert worker.output().count("stopping: running calls") == 1


async def test_a_process_that_ends_with_status_0_ends_the_worker_with_an_error(stage: Stage) -> None:
    async with stage.process(settings={"TASQ_PROCESSES": "2"}) as worker:
        children = await two_polling(stage, worker)
        os.kill(children[0], signal.SIGTERM)
        assert await worker.wait(timeout_seconds=PATIENCE_SECONDS) == 1
        assert "ended with status 0: stopping the others" in worker.output()


async def test_the_processes_stop_if_their_parent_is_killed(stage: Stage) -> None:
    async with stage.process("--processes", "2") as worker:
        children = await two_polling(stage, worker)
        worker.send(signal.SIGKILL)
        await all_ended(children)


async def test_a_second_signal_stops_all_processes_immediately(held_stage: tuple[Stage, Hold]) -> None:
    stage, _ = held_stage
    async with stage.process("--processes", "2") as worker:
        children = await two_polling(stage, worker)
        await stage.start()
        await stage.provider.wait_for_requests(1)
        worker.send(signal.SIGTERM)
        await both_stop(worker)
        worker.send(signal.SIGTERM)
        assert await worker.wait(timeout_seconds=PATIENCE_SECONDS) == 128 + signal.SIGTERM
        await all_ended(children)


async def test_a_wrong_setting_is_reported_once(stage: Stage) -> None:
    async with stage.process("--processes", "2", settings={"OPENAI_BASE_URL": None}) as worker:
        assert await worker.wait(timeout_seconds=PATIENCE_SECONDS) == 2
        assert worker.output().count("error: ") == 1


@pytest.mark.parametrize(
    ("index", "address", "own"),
    [
        (0, "127.0.0.1:9464", "127.0.0.1:9464"),
        (2, "127.0.0.1:9464", "127.0.0.1:9466"),
        (1, "[::1]:9464", "[::1]:9465"),
        (1, "127.0.0.1:0", "127.0.0.1:0"),
        (1, "wrong", "wrong"),
    ],
)
def test_each_process_has_a_metrics_address_of_its_own(index: int, address: str, own: str) -> None:
    assert metrics_address_of(index, address) == own
