"""`tasq run` and `tasq watch`: a real server, a real worker, and an HTTP provider that follows a script."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.client import Client, WorkflowExecutionStatus

from tasquencer.cli.application import find_worker
from tasquencer.cli.demo_parts import AnsweringModel, running_worker, worker_environment
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.settings import Settings
from tasquencer.temporal.converter import data_converter
from tests.cli.processes import finish, on_a_terminal, start, until
from tests.support.answers import insufficient_quota, ok, rate_limited, slow, status
from tests.support.provider import ScriptedProvider

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = {
    "moons": [rate_limited("3000"), status(503), ok("Io, Europa, Ganymede.")],
    "json": [ok("as JSON")],
    "paid twice": [ok("", usage=(3, 12)), ok("the answer", usage=(3, 12))],
    "no money": [insufficient_quota()],
    "no money, as JSON": [insufficient_quota()],
    "detached": [ok("found again")],
    "terminal": [rate_limited("55"), ok("with \x1b[2J a table")],
    "later": [ok("later")],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def environment(
    dev_server: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, str]]:
    """The environment of `tasq`, while a worker serves its task queue."""
    folder = tmp_path_factory.mktemp("run")
    settings = Settings(database_url=f"sqlite:///{folder / 'ledger.db'}", task_queue="cli-tests")
    async with ScriptedProvider(SCRIPT, then=slow(pause_seconds=600)) as provider:
        model = AnsweringModel(
            "scripted", None, provider.base_url, {"OPENAI_API_KEY": "test", "TASQ_MODEL": "m"}
        )
        variables = worker_environment(os.environ, dev_server, settings, model, provider.base_url, folder)
        async with running_worker(find_worker(Path.cwd()), variables):
            yield variables


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(dev_server: EmbeddedTemporal) -> Client:
    return await Client.connect(dev_server.address, data_converter=data_converter)


async def test_the_answer_goes_to_standard_output_and_the_attempts_to_standard_error(
    environment: dict[str, str], client: Client
) -> None:
    running = await start(
        "run", "moons", "--id", "moons", "--initial-interval", "100ms", environment=environment
    )
    await running.says("retry 1 of 3 waits: 50 min asked by the provider after rate_limited")
    hurried = await finish("retry-now", "moons", "--yes", environment=environment)
    assert hurried.code == 0, hurried.stderr
    ran = await running.finish()
    assert (ran.code, ran.stdout) == (0, "Io, Europa, Ganymede.\n")
    assert "first try failed after" in ran.stderr and "rate_limited: " in ran.stderr
    assert "provider_error: " in ran.stderr
    assert re.search(r"retry 2 of 3 completed after .+\n3 attempts · .+ · task moons\n$", ran.stderr)

    shown = json.loads((await finish("show", "moons", "--json", environment=environment)).stdout)
    assert [item["failure_kind"] for item in shown["work_items"]] == ["rate_limited", "provider_error", None]


async def test_the_task_carries_its_prompt_as_summary(environment: dict[str, str], client: Client) -> None:
    ran = await finish("run", "later", "--detach", "--id", "summed-up", environment=environment)
    assert (ran.code, ran.stdout, ran.stderr) == (0, "summed-up\n", "")
    described = await client.get_workflow_handle("summed-up").describe()
    assert await described.static_summary() == "later"


async def test_the_result_comes_as_json(environment: dict[str, str]) -> None:
    ran = await finish("run", "json", "--json", environment=environment)
    assert ran.code == 0
    result = json.loads(ran.stdout)
    assert (result["text"], result["attempts"]) == ("as JSON", 1)
    assert {"model", "finish_reason", "work_item_id", "input_tokens", "output_tokens", "cost_usd"} < set(
        result
    )


async def test_run_and_show_print_the_tokens_of_all_attempts(environment: dict[str, str]) -> None:
    options = ("--id", "paid", "--initial-interval", "100ms")
    ran = await finish("run", "paid twice", *options, environment=environment)
    assert ran.stderr.splitlines()[-1].startswith("2 attempts · 6 tokens in, 24 out · cost ")
    shown = await finish("show", "paid", environment=environment)
    assert " · 6 tokens in, 24 out · cost " in shown.stdout.splitlines()[-1]


async def test_a_failed_task_is_one_line_and_status_1(environment: dict[str, str]) -> None:
    ran = await finish("run", "no money", "--id", "poor", environment=environment)
    assert (ran.code, ran.stdout) == (1, "")
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("error: NotRetryable: first try failed with quota_exceeded: ")
    assert last.endswith("(task poor: `tasq show poor` shows all attempts)")


async def test_a_failure_comes_as_json(environment: dict[str, str]) -> None:
    ran = await finish("run", "no money, as JSON", "--json", "--id", "poor-json", environment=environment)
    told = json.loads(ran.stdout)
    assert (ran.code, told["task_id"], told["error"]["type"]) == (1, "poor-json", "NotRetryable")
    assert told["error"]["message"].startswith("first try failed with quota_exceeded")
    assert told["error"]["failure"]["kind"] == "quota_exceeded"


async def test_a_detached_task_can_be_watched_and_its_id_is_taken(environment: dict[str, str]) -> None:
    started = await finish("run", "detached", "--detach", environment=environment)
    assert started.code == 0 and re.fullmatch(r"ai-agent-[0-9a-f]{8}\n", started.stdout)
    task_id = started.stdout.strip()

    watched = await finish("watch", task_id, environment=environment)
    assert (watched.code, watched.stdout) == (0, "found again\n")
    again = await finish("watch", task_id, environment=environment)
    assert (again.code, again.stdout) == (0, "found again\n")
    assert "first try completed after" in again.stderr

    taken = await finish("run", "detached", "--id", task_id, environment=environment)
    assert (taken.code, taken.stdout) == (1, "")
    assert taken.stderr.startswith(f"error: there is already a task '{task_id}': see it with `tasq watch")
    assert taken.stderr.count("\n") == 1


async def test_a_terminal_gets_a_live_table_that_counts_down(environment: dict[str, str]) -> None:
    def counted(screen: str) -> list[int]:
        return [int(seconds) for seconds in re.findall(r"starts in (\d+) s", screen)]

    async def hurry(screen: Callable[[], str]) -> None:
        await until(lambda: len(set(counted(screen()))) > 1, screen)
        hurried = await finish("retry-now", "counted-down", "--yes", environment=environment)
        assert hurried.code == 0, hurried.stderr

    command = ("run", "terminal", "--id", "counted-down")
    code, screen = await on_a_terminal(*command, environment=environment, meanwhile=hurry)
    assert code == 0, screen
    left = counted(screen)
    assert left == sorted(left, reverse=True), left
    assert "55 s asked by the provider" in screen and "rate_limited" in screen
    assert "retry 1 of 3" in screen
    assert "with \N{REPLACEMENT CHARACTER}[2J a table" in screen  # the model does not steer the terminal
    assert "2 attempts · " in screen


async def test_ctrl_c_stops_watching_and_not_the_task(environment: dict[str, str], client: Client) -> None:
    running = await start("run", "slow", "--id", "slow", environment=environment)
    await running.says("first try started")
    running.interrupt()
    ended = await running.finish()
    assert (ended.code, ended.stdout) == (130, "")
    assert ended.stderr.endswith(
        "stopped watching; task slow continues. Watch it again: tasq watch slow · "
        "cancel it: tasq cancel slow\n"
    )
    handle = client.get_workflow_handle("slow")
    assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING

    await handle.cancel()
    watched = await finish("watch", "slow", environment=environment)
    assert watched.code == 1
    assert "error: Canceled: the task was canceled (task slow: " in watched.stderr


async def test_a_terminated_task_is_status_1(environment: dict[str, str], client: Client) -> None:
    running = await start("run", "slow", "--id", "ended", "--json", environment=environment)
    await running.says("first try started")
    await client.get_workflow_handle("ended").terminate("by the test")
    ended = await running.finish()
    assert ended.code == 1
    assert json.loads(ended.stdout)["error"]["type"] == "Terminated"


async def test_a_queue_that_nobody_polls_is_said(environment: dict[str, str]) -> None:
    nobody = {**environment, "TASQ_TASK_QUEUE": "nobody-polls-this"}
    running = await start("run", "hello", "--id", "lonely", environment=nobody)
    await running.says("no worker polls task queue 'nobody-polls-this': start one with tasq worker")
    running.interrupt()
    ended = await running.finish()
    assert ended.code == 130
    assert ended.stderr.count("no worker polls") == 1


async def test_an_unknown_task_cannot_be_watched(environment: dict[str, str]) -> None:
    watched = await finish("watch", "nobody", environment=environment)
    assert watched.code == 1
    assert (
        watched.stderr.startswith("error: Temporal has no task 'nobody'") and watched.stderr.count("\n") == 1
    )


@pytest.mark.parametrize("command", [["run", "hello"], ["watch", "hello"]])
async def test_an_unknown_namespace_is_one_line_and_status_3(
    environment: dict[str, str], command: list[str]
) -> None:
    ran = await finish(*command, environment={**environment, "TEMPORAL_NAMESPACE": "nowhere"})
    assert ran.code == 3
    assert ran.stderr.startswith("error: Temporal: Namespace nowhere is not found (set TEMPORAL_NAMESPACE")
    assert ran.stderr.count("\n") == 1


async def test_an_id_that_temporal_refuses_is_one_line_and_status_2(environment: dict[str, str]) -> None:
    ran = await finish("run", "hello", "--id", "y" * 1001, environment=environment)
    assert ran.code == 2
    assert ran.stderr.startswith("error: Temporal refuses the request: ") and ran.stderr.count("\n") == 1
