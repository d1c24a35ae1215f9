"""`tasq reconcile`: the command, and the schedule that makes the workers do it."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from temporalio.client import Client, ScheduleOverlapPolicy
from temporalio.service import RPCError

from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.sql import SqlLedger, upgrade
from tests.cli.conftest import Tasq
from tests.cli.processes import finish, on_a_terminal
from tests.cli.stories import Story
from tests.support.calls import Hang, ScriptedCalls
from tests.support.patience import eventually
from tests.support.tasks import tasks_on
from workflows.ai_agent import AiAgentTask

Environment = dict[str, str]


@pytest.fixture
async def environment(dev_server: EmbeddedTemporal, tmp_path: Path) -> Environment:
    ours = {
        "TASQ_DATABASE_URL": f"sqlite:///{tmp_path / 'ledger.db'}",
        "TASQ_TASK_QUEUE": f"queue-{uuid4().hex[:8]}",
        "TEMPORAL_ADDRESS": dev_server.address,
        "TEMPORAL_CONFIG_FILE": "/dev/null",
    }
    await upgrade(ours["TASQ_DATABASE_URL"])
    return {**os.environ, **ours}


@asynccontextmanager
async def terminated_task(dev_server: EmbeddedTemporal, environment: Environment) -> AsyncIterator[str]:
    """The id of a task that was terminated in its call; another one is under way."""
    ledger = SqlLedger(environment["TASQ_DATABASE_URL"])
    calls = ScriptedCalls(Hang(), Hang())
    async with tasks_on(dev_server.address, [AiAgentTask], [calls.generate], ledger=ledger) as tasks:
        handles = [await tasks.start("AiAgentTask", {"prompt": "?"}) for _ in range(2)]

        async def both_have_started() -> bool:
            return (
                len(await ledger.work_items(WorkItemFilter(states=frozenset({WorkItemState.STARTED})))) == 2
            )

        await eventually(both_have_started, "both tasks to call")
        await handles[0].terminate(reason="the wrong customer")
        yield handles[0].id
        await handles[1].terminate()


async def states(environment: Environment) -> dict[str, tuple[str, str | None]]:
    """By task, the state of its last work item, and why."""
    found = {}
    async with SqlLedger(environment["TASQ_DATABASE_URL"]) as ledger:
        for item in await ledger.work_items(WorkItemFilter(oldest_first=True)):
            found[item.task_id] = (str(item.state), (await ledger.transitions(item.id))[-1].reason)
    return found


async def test_it_settles_what_was_terminated_and_tells_what_it_did(
    dev_server: EmbeddedTemporal, environment: Environment
) -> None:
    where = f"Temporal at {dev_server.address} (namespace default)"
    async with terminated_task(dev_server, environment) as task_id:
        now = ("reconcile", "--grace", "0")
        before = await states(environment)
        too_soon = await finish("reconcile", environment=environment)
        dry = await finish(*now, "--dry-run", environment=environment)
        assert await states(environment) == before
        dry_json = await finish(*now, "--dry-run", "--json", environment=environment)
        done = await finish(*now, environment=environment)
        after = await states(environment)
        again = await finish(*now, "--json", environment=environment)
    assert too_soon.stdout == f"0 open work items checked, 0 settled; {where}\n"
    reason = "the task was terminated: the wrong customer"
    lines = dry.stdout.splitlines()
    assert lines[0].endswith(f" of task {task_id}: {reason}")
    assert lines[1:] == [
        "1 would be settled: the task was terminated",
        f"2 open work items checked, 1 would be settled; {where}",
    ]
    report = json.loads(dry_json.stdout)
    assert (report["dry_run"], report["settled"]) == (True, {"terminated": 1})
    (listed,) = report["work_items"]
    assert (listed["task_id"], listed["cause"], listed["reason"]) == (task_id, "terminated", reason)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout == (
        f"1 settled: the task was terminated\n2 open work items checked, 1 settled; {where}\n"
    )
    assert after == before | {task_id: ("canceled", reason)}
    assert json.loads(again.stdout) == {
        "open_work_items": 1, "settled": {}, "undecided": 0, "dry_run": False, "work_items": [],
    }  # fmt: skip


async def test_on_a_terminal_it_asks_where_temporal_knows_none_of_the_tasks(environment: Environment) -> None:
    async with SqlLedger(environment["TASQ_DATABASE_URL"]) as ledger:
        for name in ("forgotten", "lost"):
            await ledger.record(Story(name).start(0).entries())
    code, seen = await on_a_terminal("reconcile", environment=environment, types="n\n")
    assert code == 1
    assert "has none of the open tasks of this ledger. Is it the right one?" in " ".join(seen.split())
    assert {state for state, _ in (await states(environment)).values()} == {"started"}
    code, seen = await on_a_terminal("reconcile", environment=environment, types="y\n")
    assert code == 0
    gone = ("canceled", "Temporal no longer has this task")
    assert await states(environment) == {"forgotten": gone, "lost": gone}


async def test_the_schedule_is_created_changed_and_removed(
    dev_server: EmbeddedTemporal, environment: Environment
) -> None:
    queue = environment["TASQ_TASK_QUEUE"]
    name = f"tasq-reconcile-{queue}"
    client = await Client.connect(dev_server.address)
    handle = client.get_schedule_handle(name)

    created = await finish("reconcile", "--schedule", "5m", environment=environment)
    assert (created.code, created.stdout) == (
        0, f"schedule {name} created: every 5 min on task queue '{queue}'\n",
    )  # fmt: skip
    found = (await handle.describe()).schedule
    assert [spec.every.total_seconds() for spec in found.spec.intervals] == [300]
    assert found.policy.overlap is ScheduleOverlapPolicy.SKIP
    assert (found.action.workflow, found.action.task_queue) == ("ReconcileLedger", queue)  # type: ignore[attr-defined]

    await handle.pause(note="not now")
    changed = await finish("reconcile", "--schedule", "1h", "--json", environment=environment)
    assert json.loads(changed.stdout) == {"schedule_id": name, "every_seconds": 3600.0}
    assert changed.stderr == f"schedule {name} updated: every 1 h on task queue '{queue}'\n"
    found = (await handle.describe()).schedule
    assert [spec.every.total_seconds() for spec in found.spec.intervals] == [3600]
    assert found.state.paused

    removed = await finish("reconcile", "--unschedule", environment=environment)
    assert removed.stdout.startswith(f"schedule {name} removed")
    with pytest.raises(RPCError, match="not found"):
        await handle.describe()
    again = await finish("reconcile", "--unschedule", environment=environment)
    assert (again.code, again.stdout.startswith(f"schedule {name} does not exist")) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--schedule", "5m", "--unschedule"], 2, "choose one of --schedule, --unschedule and --dry-run"),
        (["--schedule", "5m", "--dry-run"], 2, "choose one of --schedule, --unschedule and --dry-run"),
        (["--schedule", "0.5"], 2, "--schedule: must be at least 1s"),
        (["--schedule", "often"], 2, "'often' is not a duration"),
        (["--grace", "-1"], 2, "'-1' is not a duration"),
        ([], 3, "cannot reach Temporal at 127.0.0.1:1"),
        (["--schedule", "5m"], 3, "cannot reach Temporal at 127.0.0.1:1"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_changes_nothing(
    tasq: Tasq, tell: Callable[[Story], None], arguments: list[str], code: int, says: str
) -> None:
    tell(Story("moons").start(0))
    result = tasq("reconcile", *arguments)
    assert result.exit_code == code
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "canceled" not in tasq("list", "--json").stdout


async def test_a_namespace_that_does_not_exist_settles_nothing(environment: Environment) -> None:
    async with SqlLedger(environment["TASQ_DATABASE_URL"]) as ledger:
        await ledger.record(Story("moons").start(0).entries())
    result = await finish("reconcile", environment=environment | {"TEMPORAL_NAMESPACE": "nowhere"})
    assert result.code == 3
    assert "nowhere" in result.stderr
    assert await states(environment) == {"moons": ("started", None)}
