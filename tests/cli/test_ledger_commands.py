from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tasquencer.sql import SCHEMA_VERSION
from tests.cli.conftest import Tasq
from tests.cli.stories import NOON, Story

Tell = Callable[[Story], None]


@pytest.fixture
def told(tell: Tell) -> Tell:
    """Three tasks: one completed after a retry, one that waits, one canceled by a person."""
    tell(Story("moons").start(0).fail(0.25).start(1.25).complete(3.25))
    tell(Story("waiting", begin=10).start(10).fail(11))
    tell(Story("given-up", begin=20).start(20).cancel(21, actor="alice", reason="wrong customer"))
    return tell


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ([], ["given-up-0", "waiting-1", "waiting-0", "moons-1", "moons-0"]),
        (["--state", "failed"], ["waiting-0", "moons-0"]),
        (["--state", "completed", "--state", "canceled"], ["given-up-0", "moons-1"]),
        (["--failure-kind", "rate_limited", "--task", "moons"], ["moons-0"]),
        (["--failure-kind", "timed_out"], []),
        (["--since", "2026-11-23T12:00:11"], ["given-up-0", "waiting-1"]),
        (["--limit", "2"], ["given-up-0", "waiting-1"]),
        (["--limit", "2", "--page", "2"], ["waiting-0", "moons-1"]),
        (["--limit", "2", "--page", "3"], ["moons-0"]),
    ],
)
def test_list_has_the_wanted_work_items_newest_first(
    tasq: Tasq, arguments: list[str], ids: list[str]
) -> None:
    result = tasq("list", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert [item["id"] for item in json.loads(result.stdout)] == ids


@pytest.mark.usefixtures("told")
def test_list_draws_a_table_and_says_when_there_is_another_page(tasq: Tasq) -> None:
    result = tasq("list", "--limit", "1", "--page", "4")
    row = " ".join(result.stdout.splitlines()[-1].split())
    assert row == "2026-11-23 12:00:00 moons retry 1 of 3 completed 1 s backoff 2 s"
    assert result.stderr == "There are more: --page 5\n"
    assert "More" not in tasq("list", "--limit", "1", "--page", "5").stderr


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ([], ["given-up", "waiting", "moons"]),
        (["--state", "started"], ["waiting"]),
        (["--type", "OtherTask"], []),
        (["--model", "small"], ["given-up", "waiting", "moons"]),
        (["--model", "large"], []),
        (["--metadata", "customer=4711"], []),
        (["--since", "2026-11-23T12:00:11"], ["given-up", "waiting"]),
        (["--limit", "1", "--page", "3"], ["moons"]),
    ],
)
def test_tasks_has_the_wanted_tasks_the_last_active_first(
    tasq: Tasq, arguments: list[str], ids: list[str]
) -> None:
    result = tasq("tasks", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert [task["task_id"] for task in json.loads(result.stdout)] == ids


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("command", ["list", "tasks"])
def test_without_temporal_a_list_is_complete_but_for_the_pauses(tasq: Tasq, command: str) -> None:
    drawn = tasq(command)
    assert drawn.exit_code == 0
    assert {"moons", "waiting", "given-up"} < set(drawn.stdout.split())
    assert drawn.stderr.startswith("pauses are unknown: ") and drawn.stderr.count("\n") == 1
    as_json = tasq(command, "--json")
    paused = {(one["task_id"], one["state"]): one["paused"] for one in json.loads(as_json.stdout)}
    is_unknown = {key for key, pause in paused.items() if pause is None}
    assert is_unknown == {("waiting", "initialized" if command == "list" else "started")}
    assert {pause for key, pause in paused.items() if key not in is_unknown} == {False}
    assert as_json.stderr == ""


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("command", ["list", "tasks"])
def test_a_list_without_open_tasks_does_not_ask_temporal(tasq: Tasq, command: str) -> None:
    assert tasq(command, "--state", "canceled").stderr == ""


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("command", [["list"], ["tasks"], ["show", "waiting"]])
def test_a_list_waits_two_seconds_for_temporal(
    tasq: Tasq, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("TEMPORAL_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        drawn = tasq(*command)
    assert drawn.exit_code == 0
    assert "waiting" in drawn.stdout
    assert drawn.stderr == "pauses are unknown: Temporal did not answer within 2 s\n"


@pytest.mark.usefixtures("told")
def test_tasks_draws_a_table_with_state_attempts_cost_and_age(tasq: Tasq) -> None:
    result = tasq("tasks", "--limit", "1", "--page", "3")
    row = " ".join(result.stdout.splitlines()[-1].split())
    assert row.startswith("2026-11-23 12:00:00 moons AiAgentTask completed 2 12 tokens in, 34 out $0.0012 ")
    assert "No such tasks in the ledger sqlite:///" in tasq("tasks", "--model", "none").stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--state", "waiting"], "--state: 'waiting' is none of started, completed, failed, canceled"),
        (["--since", "yesterday"], "--since: "),
        (["--metadata", "customer"], "--metadata: 'customer' is not key=value"),
    ],
)
def test_what_tasks_cannot_look_for_is_a_usage_error(tasq: Tasq, arguments: list[str], problem: str) -> None:
    result = tasq("tasks", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {problem}")


def test_since_a_duration_ago_counts_from_now(tasq: Tasq, tell: Tell) -> None:
    now = (datetime.now(UTC) - NOON).total_seconds()
    tell(Story("old", begin=now - 7200))
    tell(Story("new", begin=now - 1800))
    result = tasq("list", "--since", "1h", "--json")
    assert [item["task_id"] for item in json.loads(result.stdout)] == ["new"]


@pytest.mark.usefixtures("told")
def test_list_as_json_has_the_names_of_the_ledger(tasq: Tasq) -> None:
    (item,) = json.loads(tasq("list", "--state", "failed", "--task", "moons", "--json").stdout)
    assert {"id", "task_id", "run_id", "task_type", "lineage", "attempt", "state", "failure"} < set(item)
    assert {"delay_seconds", "delay_reason", "not_before", "created_at", "started_at", "ended_at"} < set(item)
    assert (item["failure_kind"], item["failure_message"]) == ("rate_limited", "slow down")
    assert "payload" not in item and "result" not in item


def test_an_empty_ledger_is_no_error(tasq: Tasq) -> None:
    result = tasq("list")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No such work items in the ledger.\n")
    assert json.loads(tasq("list", "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--state", "done"], "--state: 'done' is none of initialized, started, completed, failed, canceled"),
        (["--since", "yesterday"], "--since: 'yesterday' is neither"),
        (["--limit", "0"], "--limit"),
        (["--page", "0"], "--page"),
    ],
)
def test_wrong_filters_are_refused(tasq: Tasq, arguments: list[str], message: str) -> None:
    result = tasq("list", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.usefixtures("told")
def test_show_tells_every_work_item_of_a_task_oldest_first(tasq: Tasq) -> None:
    result = tasq("show", "moons")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == "task moons (AiAgentTask)"
    assert lines[1] == "prompt: Name three moons."
    assert lines[-3].startswith("first try failed none 2026-11-23 12:00:00 250 ms rate_limited: slow down")
    assert lines[-2].startswith("retry 1 of 3 completed 1 s backoff 2026-11-23 12:00:01 2 s")
    assert lines[-1].startswith(
        "2 work items: 1 completed, 1 failed · 12 tokens in, 34 out · cost $0.0012 · "
    )
    assert "wrong customer" not in result.stdout


@pytest.mark.usefixtures("told")
def test_show_tells_who_changed_what_and_why(tasq: Tasq) -> None:
    result = tasq("show", "given-up", "--transitions")
    line = next(line for line in result.stdout.splitlines() if "alice" in line)
    assert line.split() == ["2026-11-23", "12:00:21.000", "canceled", "alice", "wrong", "customer"]


@pytest.mark.usefixtures("told")
def test_show_as_json_has_work_items_jobs_transitions_and_totals(tasq: Tasq) -> None:
    shown = json.loads(tasq("show", "moons", "--json").stdout)
    first, second = shown["work_items"]
    assert (shown["task_id"], shown["task_type"]) == ("moons", "AiAgentTask")
    assert [change["next_state"] for change in first["transitions"]] == ["initialized", "started", "failed"]
    assert first["failure_kind"] == "rate_limited"
    assert second["result"]["text"] == second["ai_job"]["result"] == "Io, Europa, Ganymede."
    assert shown["totals"] == {
        "work_items": 2,
        "states": {"failed": 1, "completed": 1},
        "input_tokens": 12,
        "output_tokens": 34,
        "cost_usd": 0.0012,
    }


def test_show_has_all_work_items_of_a_long_task(tasq: Tasq, tell: Tell) -> None:
    story = Story("long", max_retries=1000)
    for number in range(700):
        at = number * 40_000_000.0
        story.start(at).fail(at + 1)
    tell(story)
    shown = json.loads(tasq("show", "long", "--json").stdout)
    assert [item["attempt"] for item in shown["work_items"]] == list(range(701))


def test_an_unknown_task_is_one_line_and_status_1(tasq: Tasq) -> None:
    result = tasq("show", "nobody")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the ledger sqlite:///")
    assert "ledger.db has no task 'nobody'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_db_upgrade_brings_the_schema_and_can_run_again(tasq: Tasq) -> None:
    before = tasq("db", "version")
    assert (before.exit_code, before.stdout) == (1, "none\n")
    assert "run `tasq db upgrade`" in before.stderr
    assert tasq("db", "upgrade").stdout == f"The ledger went from no schema to schema {SCHEMA_VERSION}.\n"
    assert tasq("db", "upgrade").stdout == f"The ledger already has schema {SCHEMA_VERSION}.\n"
    after = tasq("db", "version")
    assert (after.exit_code, after.stdout) == (0, f"{SCHEMA_VERSION}\n")


@pytest.mark.parametrize("command", [["list"], ["show", "x"], ["db", "upgrade"], ["db", "version"]])
def test_a_database_that_cannot_be_reached_is_one_line_and_status_3(
    tasq: Tasq, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("TASQ_DATABASE_URL", "postgresql://user:s3cret@127.0.0.1:1/nowhere")
    result = tasq(*command)
    assert result.exit_code == 3
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "127.0.0.1" in result.stderr and "s3cret" not in result.output


@pytest.mark.parametrize("command", [["list"], ["db", "version"]])
@pytest.mark.parametrize("url", ["no url", "mysql://user:s3cret@host/x"])
def test_a_database_url_that_means_nothing_is_one_line_and_status_2(
    tasq: Tasq, monkeypatch: pytest.MonkeyPatch, command: list[str], url: str
) -> None:
    monkeypatch.setenv("TASQ_DATABASE_URL", url)
    result = tasq(*command)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: TASQ_DATABASE_URL: ") and result.stderr.count("\n") == 1
    assert "s3cret" not in result.output


def test_a_ledger_of_a_newer_release_is_one_line_and_status_3(tasq: Tasq, tmp_path: Path) -> None:
    tasq("db", "upgrade")
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        (table,) = next(
            row for row in database.execute("SELECT name FROM sqlite_master") if "version" in row[0]
        )
        database.execute(f"UPDATE {table} SET version_num = '9999'")
    result = tasq("list")
    assert result.exit_code == 3
    assert "'9999'" in result.stderr and result.stderr.count("\n") == 1


def test_prune_removes_old_tasks_when_told_to(tasq: Tasq, tell: Tell) -> None:
    now = (datetime.now(UTC) - NOON).total_seconds()
    tell(Story("old", begin=now - 7200).start(now - 7199).complete(now - 7198))
    tell(Story("old-and-open", begin=now - 7200).start(now - 7199))
    tell(Story("new", begin=now - 1800).start(now - 1799).complete(now - 1798))

    prune = ("ledger", "prune", "--ended-before", "1h")
    assert tasq(*prune, "--dry-run").stdout.startswith(
        "1 task with 1 work item would be removed: ended before"
    )
    assert json.loads(tasq(*prune, "--yes", "--json").stdout) == {
        "tasks": 1,
        "work_items": 1,
        "batches": 0,
        "dry_run": False,
    }
    assert tasq(*prune).stdout.startswith("0 tasks with 0 work items removed")  # nothing to ask about
    left = [item["task_id"] for item in json.loads(tasq("list", "--json").stdout)]
    assert left == ["new", "old-and-open"]


@pytest.mark.parametrize("time", ["soon", "2999-01-01"])
def test_prune_refuses_a_time_that_is_none_or_to_come(tasq: Tasq, time: str) -> None:
    result = tasq("ledger", "prune", "--ended-before", time, "--yes")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --ended-before: ")
    assert len(result.stderr.splitlines()) == 1
