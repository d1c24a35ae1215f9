"""`tasq ledger verify` and `tasq ledger rebuild`, beside a real server."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from temporalio.client import WorkflowHandle

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.sql import SqlLedger, upgrade
from tests.cli.conftest import Tasq
from tests.cli.processes import Finished, finish, start
from tests.support.calls import GONE, ScriptedCalls
from tests.support.patience import eventually
from tests.support.postgres import embedded_postgres, skipping_without_postgres
from tests.support.tasks import tasks_on
from workflows.ai_agent import AiAgentTask

_TABLES = ("ai_jobs", "work_item_transitions", "work_items")
_STEP = "work_item_id, sequence, previous_state, next_state, at, actor, reason"


@dataclass(frozen=True)
class Kept:
    """A ledger in a file, and the task that wrote it: two work items, six transitions."""

    file: Path
    environment: dict[str, str]
    task: WorkflowHandle[object, object]

    def rows(self, file: Path) -> list[list[tuple[object, ...]]]:
        """Everything but the worker, which no history knows."""
        with closing(sqlite3.connect(file)) as database:
            columns = [
                row[1] for row in database.execute("PRAGMA table_info(work_items)") if row[1] != "worker"
            ]
            items = database.execute(f"SELECT {', '.join(columns)} FROM work_items ORDER BY id").fetchall()
            rest = [
                database.execute(f"SELECT {columns} FROM {name} ORDER BY 1, 2").fetchall()
                for name, columns in (("ai_jobs", "*"), ("work_item_transitions", _STEP))
            ]
            return [items, *rest]

    async def with_another_ledger(self, folder: Path, *statements: str) -> tuple[Path, dict[str, str]]:
        """A copy of the ledger that was tampered with; its file, and the environment that names it."""
        file = folder / f"{uuid4()}.db"
        with closing(sqlite3.connect(self.file)) as here, closing(sqlite3.connect(file)) as copy:
            here.backup(copy)
            for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                copy.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                copy.execute(statement)
            copy.commit()
        return file, self.environment | {"TASQ_DATABASE_URL": f"sqlite:///{file}"}


@pytest.fixture(scope="module")
async def kept(dev_server: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kept]:
    file = tmp_path_factory.mktemp("kept") / "ledger.db"
    url = f"sqlite:///{file}"
    await upgrade(url)
    calls = ScriptedCalls(GONE)
    async with tasks_on(dev_server.address, [AiAgentTask], [calls.generate], ledger=SqlLedger(url)) as tasks:
        request = {"prompt": "?", "retry": {"initial_interval_seconds": 0}}
        _, handle = await tasks.run("AiAgentTask", request)

        async def listed() -> bool:
            return [one async for one in tasks.client.list_workflows(f"WorkflowId = '{handle.id}'")] != []

        await eventually(listed, "the task to be listed")
        ours = {
            "TASQ_DATABASE_URL": url,
            "TEMPORAL_ADDRESS": dev_server.address,
            "TEMPORAL_CONFIG_FILE": "/dev/null",
        }
        yield Kept(file, {**os.environ, **ours}, handle)


async def test_a_ledger_that_tells_the_same_passes(kept: Kept) -> None:
    checked = await finish("ledger", "verify", kept.task.id, environment=kept.environment)
    assert (checked.code, checked.stderr) == (0, "")
    assert checked.stdout == "1 task, 2 work items compared: 0 differences\n"


async def test_each_difference_is_one_line_and_the_exit_status_is_1(kept: Kept, tmp_path: Path) -> None:
    _, environment = await kept.with_another_ledger(
        tmp_path, "UPDATE ai_jobs SET prompt = 'x\x1b[31m'", "UPDATE work_items SET lineage = 'other'"
    )
    checked = await finish("ledger", "verify", kept.task.id, environment=environment)
    assert checked.code == 1
    *lines, summary = checked.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"task {kept.task.id}, work item ") for line in lines)
    assert "\x1b" not in checked.stdout
    assert summary == "1 task, 2 work items compared: 4 differences"
    as_json = await finish("ledger", "verify", kept.task.id, "--json", environment=environment)
    assert as_json.code == 1
    report = json.loads(as_json.stdout)
    assert (report["tasks"], report["work_items"], report["gaps"]) == (1, 2, [])
    assert {one["task_id"] for one in report["differences"]} == {kept.task.id}
    assert "lineage is 'other' in the ledger, 'main' in the history" in {
        one["problem"] for one in report["differences"]
    }


async def test_rebuild_adds_what_is_missing_and_says_so(kept: Kept, tmp_path: Path) -> None:
    emptied = [f"DELETE FROM {name}" for name in _TABLES]
    file, environment = await kept.with_another_ledger(tmp_path, *emptied)
    rebuilt = await finish("ledger", "rebuild", kept.task.id, environment=environment)
    assert (rebuilt.code, rebuilt.stderr) == (0, "")
    assert rebuilt.stdout == (
        f"task {kept.task.id}: 2 work items, 6 transitions added\n"
        "1 task replayed: 2 work items, 6 transitions added\n"
    )
    assert kept.rows(file) == kept.rows(kept.file)
    again = await finish("ledger", "rebuild", kept.task.id, "--json", environment=environment)
    assert json.loads(again.stdout) == {
        "tasks": 1, "work_items": 0, "transitions": 0, "added": [], "refused": [], "gaps": [],
    }  # fmt: skip


@pytest.mark.postgresql
async def test_rebuild_fills_an_empty_ledger_on_postgresql(kept: Kept) -> None:
    with skipping_without_postgres():
        async with embedded_postgres() as server:
            url = await server.create_database("ledger")
            await upgrade(url)
            environment = kept.environment | {"TASQ_DATABASE_URL": url}
            rebuilt = await finish("ledger", "rebuild", kept.task.id, environment=environment)
            assert (rebuilt.code, rebuilt.stderr) == (0, "")
            assert "1 task replayed: 2 work items, 6 transitions added\n" in rebuilt.stdout
            again = await finish("ledger", "rebuild", kept.task.id, environment=environment)
            assert again.stdout == "1 task replayed: 0 work items, 0 transitions added\n"
            checked = await finish("ledger", "verify", kept.task.id, environment=environment)
            assert (checked.code, checked.stderr) == (0, "")
            assert checked.stdout == "1 task, 2 work items compared: 0 differences\n"
            wanted = WorkItemFilter(task_id=kept.task.id)
            async with SqlLedger(url) as there, SqlLedger(f"sqlite:///{kept.file}") as here:
                items, rebuilt_items = await here.work_items(wanted), await there.work_items(wanted)
                for item, same in zip(items, rebuilt_items, strict=True):
                    assert same == item.model_copy(update={"worker": same.worker})
                    assert await there.transitions(item.id) == await here.transitions(item.id)


async def test_without_a_task_it_takes_those_that_temporal_lists(kept: Kept, tmp_path: Path) -> None:
    _, environment = await kept.with_another_ledger(tmp_path, "DELETE FROM ai_jobs")
    since = (await kept.task.describe()).start_time.isoformat()
    checked = await finish("ledger", "verify", "--since", since, "--json", environment=environment)
    mine = [one for one in json.loads(checked.stdout)["differences"] if one["task_id"] == kept.task.id]
    assert [one["problem"] for one in mine] == ["has no row in ai_jobs"] * 2
    limited = await finish("ledger", "verify", "--limit", "1", "--json", environment=environment)
    assert json.loads(limited.stdout)["tasks"] == 1


async def test_a_task_of_one_s_own_is_named_with_its_class(kept: Kept) -> None:
    named = ("--path", ".", "--workflow", "workflows.ai_fan_out:AiFanOutTask")
    other = await finish("ledger", "verify", kept.task.id, *named, environment=kept.environment)
    assert other.stderr.startswith(f"gap: task {kept.task.id}: run ")
    assert "is of type 'AiAgentTask': name its class with --workflow" in other.stderr
    right = await finish(
        "ledger",
        "verify",
        kept.task.id,
        *named,
        "--workflow",
        "workflows.ai_agent:AiAgentTask",
        environment=kept.environment,
    )
    assert (right.code, right.stderr) == (0, "")


async def test_no_code_of_the_current_folder_is_run_unless_it_is_named(kept: Kept, tmp_path: Path) -> None:
    for module in ("workflows/__init__.py", "workflows/ai_agent.py", "worker.py", "mine.py", "json.py"):
        file = tmp_path / module
        file.parent.mkdir(exist_ok=True)
        file.write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()")

    async def verify(*arguments: str) -> Finished:
        command = ("ledger", "verify", kept.task.id, *arguments)
        return await (await start(*command, environment=kept.environment, folder=tmp_path)).finish()

    assert (await verify()).code == 0
    assert "cannot import 'mine:Task'" in (await verify("--workflow", "mine:Task")).stderr
    assert not list(tmp_path.rglob("ran"))
    assert (await verify("--path", ".", "--workflow", "mine:Task")).code == 2
    assert (tmp_path / "ran").exists()


async def test_a_task_that_temporal_does_not_know_is_an_error(kept: Kept) -> None:
    for command in ("verify", "rebuild"):
        result = await finish("ledger", command, "nobody", environment=kept.environment)
        assert (result.code, result.stderr) == (1, "error: Temporal has no task 'nobody'\n")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--workflow", "nowhere:Task"], 2, "--workflow: cannot import 'nowhere:Task'"),
        (["--path", ".", "--workflow", "workflows.ai_agent"], 2, "cannot import 'workflows.ai_agent'"),
        (["--workflow", "json:JSONDecoder"], 2, "'json:JSONDecoder' is not a class with @workflow.defn"),
        (["--since", "yesterday"], 2, "--since: 'yesterday' is neither a duration"),
        ([], 3, "cannot reach Temporal at 127.0.0.1:1"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "rebuild"])
def test_what_cannot_be_done_is_said_in_one_line(
    tasq: Tasq, command: str, arguments: list[str], code: int, says: str
) -> None:
    result = tasq("ledger", command, *arguments)
    assert result.exit_code == code
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
