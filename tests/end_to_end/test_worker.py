"""The worker as a process: how it starts, how it stops, and that killing it loses nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHandle
from temporalio.service import RPCError

from tasquencer.core.failure import FailureKind
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.errors import ProcessFailed
from tasquencer.devkit.processes import ChildProcess, free_port
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.sql.schema import VERSION_TABLE
from tests.end_to_end.stage import READY, Stage
from tests.support.answers import Answer, Hold, ok, rate_limited, stall
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ProviderRequest, ScriptedProvider
from tests.support.tasks import called_at, executable

INITIALIZED, COMPLETED, FAILED = WorkItemState.INITIALIZED, WorkItemState.COMPLETED, WorkItemState.FAILED

ASKED_SECONDS = 20
"""How long a provider asks to wait; before, the worker is killed."""

HEARTBEAT_SECONDS = 15
"""A killed worker counts as lost after this time. A worker that lives is never so slow."""

SOON: dict[str, Any] = {"retry": {"initial_interval_seconds": 0.1}}


async def exited(worker: ChildProcess) -> int | None:
    return await worker.wait(timeout_seconds=PATIENCE_SECONDS)


async def says(worker: ChildProcess, text: str) -> None:
    async def probe() -> bool:
        return text in worker.output()

    await eventually(probe, f"the worker says {text!r}")


@dataclass(frozen=True)
class Standing:
    """A worker that runs, and where it keeps and shows what it does."""

    stage: Stage
    worker: ChildProcess
    ledger_file: Path
    metrics_address: str


class Holding:
    """A script that holds each answer back until it is released."""

    def __init__(self) -> None:
        self._hold = Hold()

    def __call__(self, request: ProviderRequest) -> Answer:
        return stall(self._hold)

    def release(self) -> None:
        self._hold.release()
        self._hold = Hold()


def states(items: list[WorkItem]) -> list[tuple[str, str | None]]:
    return [(str(item.state), item.failure.kind if item.failure else None) for item in items]


async def has_scheduled_call(task: WorkflowHandle[Any, Any]) -> bool:
    return bool((await task.describe()).raw_description.pending_activities)


async def finished(task: WorkflowHandle[Any, Any]) -> dict[str, Any]:
    """The task's result; it must come within a time that a crash does not excuse."""
    result: dict[str, Any] = await asyncio.wait_for(task.result(), PATIENCE_SECONDS)
    return result


async def assert_one_request_for_each_work_item(stage: Stage, task: WorkflowHandle[Any, Any]) -> None:
    items = await stage.work_items(task)
    assert [request.idempotency_key for request in stage.provider.requests] == [item.id for item in items]


@pytest.fixture(scope="module")
async def standing(
    dev_server: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Standing]:
    """A worker that several tests use; its ledger is a new file in a new folder."""
    folder = tmp_path_factory.mktemp("standing")
    ledger_file = folder / "new folder" / "ledger.db"
    async with ScriptedProvider(then=ok()) as provider, AsyncExitStack() as stack:
        stage = await Stage.on(dev_server, provider, folder)
        attempts_left = 3  # a port found free may be taken before the worker binds it
        while True:
            metrics = f"127.0.0.1:{free_port()}"
            settings = {"TASQ_DATABASE_URL": f"sqlite:///{ledger_file}", "TASQ_METRICS_ADDRESS": metrics}
            try:
                worker = await stack.enter_async_context(stage.worker(settings=settings))
                break
            except ProcessFailed as error:
                attempts_left -= 1
                if not attempts_left or "already in use" not in error.last_output:
                    raise
        yield Standing(stage, worker, ledger_file, metrics)


# Starting.


async def test_it_says_in_one_line_where_it_is_connected_and_what_it_serves(standing: Standing) -> None:
    (line,) = (line for line in standing.worker.output().splitlines() if " INFO " not in line)
    stage = standing.stage
    assert line.startswith(READY)
    for fact in (stage.task_queue, stage.server.address, str(standing.ledger_file), "scripted", "127.0.0.1"):
        assert fact in line


async def test_a_task_started_with_the_temporal_cli_completes(standing: Standing) -> None:
    stage = standing.stage
    options = ["--address", stage.server.address, "--task-queue", stage.task_queue, "--type", "AiAgentTask"]
    process = await asyncio.create_subprocess_exec(
        executable("temporal"),
        *("workflow", "execute", "--output", "json", "--input", '{"prompt": "Hello?"}', *options),
        stdout=asyncio.subprocess.PIPE,
        env=stage.environment(),
    )
    output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    assert process.returncode == 0
    assert json.loads(output)["result"] == {
        "text": "Hello!",
        "model": "scripted",
        "finish_reason": "stop",
        "work_item_id": stage.provider.requests[-1].idempotency_key,
        "attempts": 1,
        "input_tokens": 11,
        "output_tokens": 7,
        "cost_usd": None,
        "total": {"input_tokens": 11, "output_tokens": 7, "cost_usd": None},
    }


async def test_it_serves_prometheus_metrics_where_it_is_told_to(standing: Standing) -> None:
    await finished(await standing.stage.start())

    def metrics() -> str:
        with urllib.request.urlopen(
            f"http://{standing.metrics_address}/metrics", timeout=PATIENCE_SECONDS
        ) as answer:
            return str(answer.read().decode())

    async def probe() -> bool:
        return "temporal_activity_execution_latency" in await asyncio.to_thread(metrics)

    await eventually(probe, "the metrics tell of the AI call")


async def test_it_makes_no_more_calls_at_once_than_it_is_told_to(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    hold = Hold()
    async with ScriptedProvider([stall(hold)], then=ok()) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        async with stage.worker("--concurrent-calls", "1"):
            tasks = [await stage.start(), await stage.start()]
            await provider.wait_for_requests(1)
            for task in tasks:
                await eventually(partial(has_scheduled_call, task), "both calls are scheduled")
            # A worker that answers a query has long begun what it would begin.
            for task in tasks:
                assert len(await task.query("work_items")) == 1
            hold.release()
            for task in tasks:
                await finished(task)
    first, second = provider.requests
    assert first.ended_at is not None and first.ended_at <= second.at


async def test_it_makes_no_more_calls_a_second_than_it_is_told_to(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    """Temporal gives each of the queue's four partitions a quarter of the limit, and a call to begin with."""
    async with ScriptedProvider(then=ok()) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        async with stage.worker("--calls-per-second", "4"):
            await finished(await stage.start())  # a partition knows the limit from its first poll on
            tasks = [await stage.start() for _ in range(20)]
            for task in tasks:
                await finished(task)
    given_out = [await called_at(task) for task in tasks]
    span = max(given_out) - min(given_out)
    assert span > timedelta(seconds=1.5)  # unlimited: milliseconds; at least 5 of one partition: 3 s


# Refusing to start.


@pytest.mark.parametrize("base_url", [None, "https://models.example.org/v1"])
async def test_without_a_key_it_says_what_to_set(stage: Stage, base_url: str | None) -> None:
    async with stage.process(settings={"OPENAI_BASE_URL": base_url}) as worker:
        assert await exited(worker) == 2
        assert worker.output() == (
            "error: OPENAI_API_KEY: not set: every provider needs a key, except a model server on "
            "this machine, such as OPENAI_BASE_URL=http://127.0.0.1:11434/v1\n"
        )


@pytest.mark.parametrize("option", ["--what", "--concurrent-calls=many"])
async def test_a_wrong_option_is_reported_before_a_missing_key(stage: Stage, option: str) -> None:
    async with stage.process(option, settings={"OPENAI_BASE_URL": None}) as worker:
        assert await exited(worker) == 2
        output = worker.output()
    assert option.partition("=")[0] in output
    assert "OPENAI_API_KEY" not in output


async def test_without_temporal_it_says_where_it_looked(stage: Stage, closed_port: int) -> None:
    address = f"127.0.0.1:{closed_port}"
    async with stage.process(settings={"TEMPORAL_ADDRESS": address}) as worker:
        assert await exited(worker) == 3
        assert worker.output() == (
            f"error: cannot reach Temporal at {address}: connection refused "
            "(set TEMPORAL_ADDRESS, or start a server with `temporal server start-dev`)\n"
        )


async def test_without_its_database_it_says_which_but_not_the_password(
    stage: Stage, closed_port: int
) -> None:
    database = f"127.0.0.1:{closed_port}/ledger"
    url = f"postgresql://tasq:s3cret@{database}"
    async with stage.process(settings={"TASQ_DATABASE_URL": url}) as worker:
        assert await exited(worker) == 3
        (line,) = worker.output().splitlines()
    assert line.startswith(f"error: the ledger at postgresql://tasq:***@{database} is unavailable: ")
    assert "s3cret" not in line


async def test_a_ledger_of_a_newer_release_is_left_alone(stage: Stage) -> None:
    ledger_file = stage.folder / "newer.db"
    with closing(sqlite3.connect(ledger_file)) as connection, connection:
        connection.execute(f"CREATE TABLE {VERSION_TABLE} (version_num TEXT)")
        connection.execute(f"INSERT INTO {VERSION_TABLE} VALUES ('9999')")
    before = ledger_file.read_bytes()[100:]
    async with stage.process(settings={"TASQ_DATABASE_URL": f"sqlite:///{ledger_file}"}) as worker:
        assert await exited(worker) == 3
        (line,) = worker.output().splitlines()
    assert line.startswith(f"error: the ledger at sqlite:///{ledger_file} has schema '9999', ")
    assert line.endswith("update tasquencer (a newer release made this schema)")
    assert ledger_file.read_bytes()[100:] == before  # all but the header, which says that it has a log


async def test_a_setting_out_of_range_is_refused(stage: Stage) -> None:
    async with stage.process("--concurrent-calls", "0") as worker:
        assert await exited(worker) == 2
        assert "--concurrent-calls" in worker.output()


# Stopping.


async def test_a_signal_lets_the_call_under_way_end_and_the_next_worker_goes_on(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with ScriptedProvider(holding := Holding()) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        stopped: list[WorkflowHandle[Any, Any]] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            async with stage.worker() as worker:
                for task in stopped:  # nothing is lost, and nobody asks again
                    assert (await finished(task))["attempts"] == 1
                stopped.append(await stage.start())
                await provider.wait_for_requests(len(stopped))
                worker.send(number)
                await says(worker, "stopping")
                holding.release()
                assert await exited(worker) == 0
                assert "Traceback" not in worker.output() and "Fatal" not in worker.output()
            assert (await provider.wait_for_end(len(stopped) - 1)).complete
        with suppress(RPCError):  # it may have ended
            await stopped[-1].terminate()


async def test_a_call_that_outlasts_the_grace_period_fails_and_the_next_worker_goes_on(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with ScriptedProvider([stall()], then=ok()) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        async with stage.worker("--grace-period", "0.3") as worker:
            task = await stage.start(**SOON)
            await provider.wait_for_requests(1)
            worker.send(signal.SIGTERM)
            assert await exited(worker) == 0
        assert (await provider.wait_for_end(0)).client_left
        async with stage.worker():
            assert (await finished(task))["attempts"] == 2
        items = await stage.work_items(task)
        assert states(items) == [(FAILED, FailureKind.WORKER_SHUTDOWN), (COMPLETED, None)]
        await assert_one_request_for_each_work_item(stage, task)


async def test_a_second_signal_stops_it_at_once(dev_server: EmbeddedTemporal, tmp_path: Path) -> None:
    async with ScriptedProvider([stall()]) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        async with stage.worker() as worker:
            task = await stage.start()
            await provider.wait_for_requests(1)
            worker.send(signal.SIGTERM)
            await says(worker, "stopping")
            worker.send(signal.SIGINT)
            assert await exited(worker) == 128 + signal.SIGINT
            assert "second signal" in worker.output()
        await task.terminate()


# Being killed.


async def test_a_worker_killed_in_a_call_costs_one_attempt_and_no_second_request(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with ScriptedProvider([stall()], then=ok()) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        async with stage.worker() as worker:
            task = await stage.start(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **SOON)
            await provider.wait_for_requests(1)
            worker.send(signal.SIGKILL)
            assert await exited(worker) == -signal.SIGKILL
        async with stage.worker():
            assert (await finished(task))["attempts"] == 2
        lost, completed = await stage.work_items(task)
        assert states([lost, completed]) == [(FAILED, FailureKind.WORKER_LOST), (COMPLETED, None)]
        assert lost.failure is not None and lost.failure.outcome_unknown
        await assert_one_request_for_each_work_item(stage, task)


async def test_a_worker_killed_in_the_backoff_brings_no_request_forward(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with ScriptedProvider([rate_limited(str(ASKED_SECONDS))], then=ok()) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        async with stage.worker() as worker:
            task = await stage.start()
            waiting = await stage.work_item(task, 1, INITIALIZED)
            worker.send(signal.SIGKILL)
            assert await exited(worker) == -signal.SIGKILL
        async with stage.worker():
            assert (await finished(task))["attempts"] == 2
        failed, completed = await stage.work_items(task)
        assert states([failed, completed]) == [(FAILED, FailureKind.RATE_LIMITED), (COMPLETED, None)]
        assert (completed.id, completed.not_before) == (waiting.id, waiting.not_before)
        assert failed.ended_at is not None
        assert provider.requests[1].at >= failed.ended_at + timedelta(seconds=ASKED_SECONDS)
        await assert_one_request_for_each_work_item(stage, task)
