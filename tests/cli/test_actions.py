"""`tasq retry-now`, `pause`, `resume`, `complete`, `fail`, `cancel` on tasks of a real worker."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tasquencer.cli.application import find_worker
from tasquencer.cli.demo_parts import AnsweringModel, running_worker, worker_environment
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.settings import Settings
from tests.cli.processes import finish
from tests.support.answers import ok, rate_limited, stall
from tests.support.patience import eventually
from tests.support.provider import ScriptedProvider

pytestmark = pytest.mark.asyncio(loop_scope="module")

Environment = dict[str, str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def environment(
    dev_server: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Environment]:
    """The environment of `tasq`, while a worker serves its task queue."""
    folder = tmp_path_factory.mktemp("actions")
    settings = Settings(database_url=f"sqlite:///{folder / 'ledger.db'}", task_queue="cli-actions")
    script = {"waits": [rate_limited("3000"), ok("at last")], "waits too": [rate_limited("3000")] * 2}
    async with ScriptedProvider(script, then=stall()) as provider:
        model = AnsweringModel(
            "scripted", None, provider.base_url, {"OPENAI_API_KEY": "test", "TASQ_MODEL": "m"}
        )
        variables = worker_environment(os.environ, dev_server, settings, model, provider.base_url, folder)
        async with running_worker(find_worker(Path.cwd()), variables):
            yield variables


async def task_in(environment: Environment, task_id: str, prompt: str, state: str) -> dict[str, Any]:
    """Start a task; its last work item once it is in this state."""
    started = await finish(
        "run", prompt, "--id", task_id, "--detach", "--max-retries", "1", environment=environment
    )
    assert started.code == 0, started.stderr

    async def probe() -> dict[str, Any] | None:
        shown = await finish("show", task_id, "--json", environment=environment)
        items = json.loads(shown.stdout)["work_items"] if shown.code == 0 else []
        return items[-1] if items and items[-1]["state"] == state else None

    return await eventually(probe, f"{task_id} to have a work item that is {state}")


async def transitions(environment: Environment, task_id: str, state: str) -> list[dict[str, Any]]:
    """The transitions of the task's last work item, once it is in this state."""

    async def probe() -> list[dict[str, Any]] | None:
        shown = await finish("show", task_id, "--json", environment=environment)
        item = json.loads(shown.stdout)["work_items"][-1]
        return item["transitions"] if item["state"] == state else None

    return await eventually(probe, f"the last work item of {task_id} to be {state}")


async def test_pause_holds_a_task_back_until_resume(environment: Environment) -> None:
    await task_in(environment, "held", "waits too", "initialized")
    by_anna = ("held", "--actor", "anna", "--reason", "too expensive")
    paused = await finish("pause", *by_anna, environment=environment)
    await is_listed(environment, "show", is_paused_in, "held")
    await is_listed(environment, "list", lambda listed: "paused by anna: too expensive" in listed)
    await is_listed(environment, "tasks", lambda listed: "paused by anna: too expensive" in listed)
    hurried = await finish("retry-now", "held", "--yes", environment=environment)
    resumed = await finish("resume", "held", environment=environment)
    later = await finish("show", "held", environment=environment)
    await is_listed(environment, "tasks", lambda listed: pauses_in(listed) == {"held": False}, "--json")
    assert (paused.code, hurried.code, resumed.code) == (0, 1, 0)
    assert "resume it first" in hurried.stderr
    assert "paused" not in later.stdout


def is_paused_in(shown: str) -> bool:
    return "paused by anna since" in shown and "too expensive" in shown


async def is_listed(
    environment: Environment, command: str, wanted: Callable[[str], bool], *options: str
) -> None:
    """Wait until the list has what is wanted. On a busy machine Temporal may not have answered in time.

    The same holds for the pause of a single task that is shown.
    """

    async def probe() -> bool:
        listed = await finish(command, *options, environment=environment)
        assert listed.code == 0, listed.stderr
        return wanted(listed.stdout if options else " ".join(listed.stdout.split()))

    await eventually(probe, f"tasq {command} to show the pause or its end")


def pauses_in(listed: str) -> dict[str, Any]:
    return {one["task_id"]: one["paused"] for one in json.loads(listed) if one["task_id"] == "held"}


async def test_retry_now_ends_the_backoff_and_says_who_did_it(environment: Environment) -> None:
    item = await task_in(environment, "hurried", "waits", "initialized")
    acted = await finish(
        "retry-now", "hurried", "--yes", "--actor", "anna", "--reason", "it is back", environment=environment
    )
    assert (acted.code, acted.stderr) == (0, f"work item {item['id']} starts now\n")
    started = (await transitions(environment, "hurried", "completed"))[1]
    assert (started["next_state"], started["actor"], started["reason"]) == ("started", "anna", "it is back")
    # The ledger has its end a moment before the task is closed. `tasq watch` returns after that.
    assert (await finish("watch", "hurried", environment=environment)).code == 0
    again = await finish("retry-now", "hurried", "--yes", environment=environment)
    assert again.code == 1
    assert again.stderr.startswith("error: ")


async def test_complete_gives_the_answer_by_hand(environment: Environment) -> None:
    item = await task_in(environment, "by-hand", "hangs", "started")
    acted = await finish("complete", "by-hand", "from a person", "--yes", environment=environment)
    assert (acted.code, acted.stderr) == (0, f"work item {item['id']} is completed\n")
    watched = await finish("watch", "by-hand", environment=environment)
    assert (watched.code, watched.stdout) == (0, "from a person\n")


async def test_fail_lets_the_recipe_decide(environment: Environment) -> None:
    await task_in(environment, "failed-by-hand", "hangs", "started")
    acted = await finish("fail", "failed-by-hand", "--yes", "--reason", "it hangs", environment=environment)
    assert acted.code == 0
    await task_in_state(environment, "failed-by-hand", "started", attempt=1)
    assert (await finish("cancel", "failed-by-hand", "--yes", environment=environment)).code == 0


async def task_in_state(environment: Environment, task_id: str, state: str, attempt: int) -> None:
    async def probe() -> bool:
        shown = await finish("show", task_id, "--json", environment=environment)
        item = json.loads(shown.stdout)["work_items"][-1]
        return (item["attempt"], item["state"]) == (attempt, state)

    await eventually(probe, f"attempt {attempt} of {task_id} to be {state}")


async def test_cancel_ends_the_task_and_stops_its_call(environment: Environment) -> None:
    await task_in(environment, "canceled", "hangs", "started")
    acted = await finish("cancel", "canceled", "--yes", environment=environment)
    assert (acted.code, acted.stderr) == (0, "task canceled is being canceled\n")
    log = await transitions(environment, "canceled", "canceled")
    assert log[-1]["reason"] == "the task was canceled"
    # The ledger has it a moment before the task is closed. `tasq watch` returns after that.
    assert (await finish("watch", "canceled", environment=environment)).code == 1
    again = await finish("cancel", "canceled", "--yes", environment=environment)
    assert (again.code, again.stderr) == (1, "error: task 'canceled' has already ended: canceled\n")


async def test_cancel_of_one_work_item_leaves_the_verdict_to_the_policy(environment: Environment) -> None:
    await task_in(environment, "one-item", "waits too", "initialized")
    acted = await finish(
        "cancel", "one-item", "--work-item", "current", "--yes", "--reason", "enough", environment=environment
    )
    assert acted.code == 0
    watched = await finish("watch", "one-item", environment=environment)
    assert watched.code == 1
    assert "TaskFailed" in watched.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["cancel", "nobody", "--yes"], 1, "Temporal has no task 'nobody'"),
        (["retry-now", "nobody"], 2, "add --yes"),
        (["complete", "nobody"], 2, "Missing argument 'TEXT'"),
    ],
)
async def test_what_cannot_be_done_is_said_in_one_line(
    environment: Environment, arguments: list[str], code: int, says: str
) -> None:
    acted = await finish(*arguments, environment=environment)
    assert acted.code == code
    assert says in acted.stderr
    assert len(acted.stderr.splitlines()) == 1
