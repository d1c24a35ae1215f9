"""`python -m benchmarks.queries`: how long `tasq list` and `tasq show` take with a million work items.

Fills a ledger on SQLite and one on PostgreSQL (two of seven work items failed, a thousand are open, one task
has 500 prompts), then runs what the commands run: the query itself through the ledger's engine, its rows
fetched, and the whole command as a process. SQLite has no statistics, as in the product; PostgreSQL has those
that its autovacuum would make.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import sqlalchemy as sa

from benchmarks.figures import add_options, known, markdown, milliseconds, positive, print_facts, save
from benchmarks.ledger import databases
from tasquencer.ai.request import AiAgentRequest
from tasquencer.ai.review import REVIEW_KIND
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import WorkItemState
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.sql.databases import Database, SqliteDatabase, database_at
from tasquencer.sql.reading import domain_records_in, open_work_items_query, transitions_in, work_items_query
from tasquencer.sql.schema import ai_jobs

__all__ = ["fill", "questions"]

AIM_SECONDS = 0.1
FAN_OUT = "fan-out"
SPAN = timedelta(days=30)
"""The work items are spread evenly over this time; the newest is from now."""

_PAYLOAD = AiAgentRequest(prompt="PROMPT", system="Answer in one sentence.").job().model_dump_json()
_PROMPT = "Name three moons of Jupiter and say when each was found, and by whom."
_ANSWER = json.dumps({"text": "Io, Europa and Ganymede, found by Galilei in 1610. " * 8, "model": "m"})
_FAILURE = Failure.of(FailureKind.RATE_LIMITED, "429: slow down", status_code=429).model_dump_json()
_KIND = (
    "CASE WHEN i % 70000 = 0 THEN 'invalid_output' WHEN i % 7 = 0 THEN 'rate_limited' ELSE 'timed_out' END"
)

# Of seven work items three are the attempts of one task, four the only attempts of four others.
_NUMBERED = f"""
WITH RECURSIVE counted(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM counted WHERE i < :count - 1),
told AS (
  SELECT i,
    CASE WHEN i >= :count - 500 THEN '{FAN_OUT}'
      WHEN i % 7 < 3 THEN 'task-' || (i / 7 * 5) ELSE 'task-' || (i / 7 * 5 + i % 7 - 2) END AS task,
    CASE WHEN i < :count - 500 AND i % 7 < 3 THEN i % 7 ELSE 0 END AS attempt,
    CASE WHEN i >= :count - 500 THEN 'completed'
      WHEN i % 7 < 2 THEN 'failed'
      WHEN i % 7000 = 3 THEN 'canceled'
      WHEN i >= :count - 4000 AND i % 7 = 5 THEN 'started'
      WHEN i >= :count - 4000 AND i % 7 = 6 THEN 'initialized'
      ELSE 'completed' END AS state,
    {_KIND} AS kind
  FROM counted
)
"""


@dataclass(frozen=True)
class _Dialect:
    new_id: str
    json: str
    time: str
    """The time of work item i, with `:end`, `:step` (in seconds) and `:count` as parameters."""


_DIALECTS = {
    "sqlite": _Dialect(
        new_id="lower(substr(hex(randomblob(16)), 1, 8) || '-' || hex(randomblob(14)))",
        json="{}",
        time="strftime('%Y-%m-%d %H:%M:%f', :end, ((i - :count) * :step) || ' seconds') || '000'",
    ),
    "postgresql": _Dialect(
        new_id="gen_random_uuid()::text",
        json="CAST({} AS jsonb)",
        time="CAST(:end AS timestamptz) + (i - :count) * :step * interval '1 second'",
    ),
}


async def fill(database: Database, count: int) -> None:
    """Fill an empty ledger with work items, their transitions and AI jobs, past all Python code."""
    now = datetime.now(UTC)

    def insert(connection: sa.Connection) -> None:
        name = connection.dialect.name
        dialect, on_sqlite = _DIALECTS[name], name == "sqlite"
        if on_sqlite:  # ids are random: without a large cache each page would be written many times
            (usual,) = connection.exec_driver_sql("PRAGMA cache_size").one()
            connection.exec_driver_sql("PRAGMA cache_size = -4000000")
        end: object = now.strftime("%Y-%m-%d %H:%M:%S.%f") if on_sqlite else now
        values: dict[str, object] = {"count": count, "end": end, "step": SPAN.total_seconds() / count}
        values |= {"payload": _PAYLOAD, "answer": _ANSWER, "failure": _FAILURE}

        def put(target: str, select: str, *, numbered: bool = False) -> None:
            used = {key: value for key, value in values.items() if f":{key}" in select or numbered}
            connection.execute(
                sa.text(f"INSERT INTO {target} {_NUMBERED if numbered else ''} {select}"), used
            )

        moment = dialect.time
        payload = dialect.json.format("replace(:payload, 'PROMPT', task)")
        answer = dialect.json.format(":answer")
        failure = dialect.json.format("replace(:failure, 'rate_limited', kind)")
        put(
            "work_items (id, task_id, run_id, task_type, lineage, attempt, state, payload, result, "
            "failure_kind, failure_message, failure, delay_seconds, delay_reason, not_before, created_at, "
            "started_at, ended_at, worker)",
            f"SELECT {dialect.new_id}, task, task || '-run', 'AiAgentTask', "
            f"CASE WHEN task = '{FAN_OUT}' THEN 'prompt-' || i ELSE 'main' END, attempt, state, "
            f"{payload}, CASE WHEN state = 'completed' THEN {answer} END, "
            "CASE WHEN state = 'failed' THEN kind END, CASE WHEN state = 'failed' THEN '429: slow down' END, "
            f"CASE WHEN state = 'failed' THEN {failure} END, "
            "CASE WHEN attempt = 0 THEN 0 ELSE 1 END, "
            "CASE WHEN attempt = 0 THEN 'first_try' ELSE 'backoff' END, "
            f"{moment}, {moment}, CASE WHEN state <> 'initialized' THEN {moment} END, "
            f"CASE WHEN state NOT IN ('initialized', 'started') THEN {moment} END, '12345@worker' FROM told",
            numbered=True,
        )
        transitions = (
            "work_item_transitions (work_item_id, sequence, previous_state, next_state, at, actor, reason)"
        )
        put(
            transitions,
            "SELECT id, 0, NULL, 'initialized', created_at, 'task', NULL FROM work_items "
            "UNION ALL SELECT id, 1, 'initialized', 'started', started_at, 'task', NULL FROM work_items "
            "WHERE state <> 'initialized' "
            "UNION ALL SELECT id, 2, 'started', state, ended_at, 'task', NULL FROM work_items "
            "WHERE state NOT IN ('initialized', 'started')",
        )
        put(
            "ai_jobs (work_item_id, prompt, model, max_retries, attempt, status, result, last_error, "
            "finish_reason, input_tokens, output_tokens, cost_usd, latency_seconds)",
            f"SELECT id, '{_PROMPT}', 'm', 3, attempt, "
            "CASE state WHEN 'initialized' THEN 'pending' ELSE state END, "
            "CASE WHEN state = 'completed' THEN 'Io, Europa and Ganymede.' END, failure_message, "
            "CASE WHEN state = 'completed' THEN 'stop' END, 12, 9, 0.0001, 0.5 FROM work_items",
        )
        if on_sqlite:
            connection.exec_driver_sql(f"PRAGMA cache_size = {usual}")

    await database.write(insert)


@dataclass(frozen=True)
class Question:
    """A command, or another reader of the ledger, and what it asks the database."""

    name: str
    command: Sequence[str] | None
    wanted: WorkItemFilter | None


def questions(now: datetime, task: str) -> list[Question]:
    """What people ask; `task` has three attempts."""
    page = {"limit": 51}

    def listing(*options: str, **wanted: Any) -> Question:
        return Question(
            " ".join(["tasq list", *options]), ["list", *options], WorkItemFilter(**(page | wanted))
        )

    def showing(name: str, *options: str) -> Question:
        wanted = WorkItemFilter(task_id=name, limit=500, oldest_first=True)
        return Question(" ".join(["tasq show", name, *options]), ["show", name, *options], wanted)

    hour, day = now - timedelta(hours=1), now - timedelta(days=1)
    return [
        listing(),
        listing("--since", "1h", created_since=hour),
        listing("--state", "failed", states={WorkItemState.FAILED}),
        listing("--state", "failed", "--since", "1h", states={WorkItemState.FAILED}, created_since=hour),
        listing("--state", "started", states={WorkItemState.STARTED}),
        listing("--state", "canceled", states={WorkItemState.CANCELED}),
        listing("--failure-kind", "rate_limited", failure_kind="rate_limited"),
        listing(
            "--failure-kind", "rate_limited", "--since", "1d", failure_kind="rate_limited", created_since=day
        ),
        listing("--failure-kind", "invalid_output", failure_kind="invalid_output"),
        listing("--failure-kind", "unauthorized", failure_kind="unauthorized"),
        listing("--task", task, task_id=task),
        listing("--page", "100", offset=99 * 50),
        showing(task),
        showing(task, "--transitions"),
        showing(FAN_OUT),
        showing(FAN_OUT, "--transitions"),
        Question(
            "tasq review",
            ["review"],
            WorkItemFilter(
                states=frozenset({WorkItemState.STARTED}),
                payload_kind=REVIEW_KIND,
                oldest_first=True,
                limit=1000,
            ),
        ),
        Question("the reconciler's page of 1,000 open work items", None, None),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queries", description=__doc__)
    add_options(parser, rounds=7, quick="10,000 work items, 1 round")
    parser.add_argument(
        "--work-items", type=positive, default=1_000_000, help="work items in each ledger (1000000)"
    )
    parser.add_argument("--no-postgresql", action="store_true", help="measure SQLite only")
    parser.add_argument(
        "--also", metavar="SQL", action="append", default=[], help="run this once filled, to try an index"
    )
    parser.add_argument("--no-commands", action="store_true", help="measure the queries only")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.work_items = 1, 10_000
    asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> None:
    begin = time.monotonic()
    async with databases(postgresql=not options.no_postgresql) as (urls, versions):
        told = known(**versions)
        told["load"] = f"{options.rounds} rounds, {options.work_items:,} work items in each ledger"
        print_facts(told)
        opened = {name: database_at(url, command_seconds=None) for name, url in urls.items()}
        for name, database in opened.items():
            filling = time.monotonic()
            await fill(database, options.work_items)
            for statement in options.also:
                await database.write(partial(_run_sql, statement))
            await _tidy(database, urls[name])
            print(f"{name} filled in {time.monotonic() - filling:.0f} s", flush=True)
        asked = questions(datetime.now(UTC), f"task-{options.work_items // 14 * 5}")
        queries: dict[tuple[str, str], list[float]] = {}
        commands: dict[tuple[str, str], list[float]] = {}
        for turn in range(options.rounds + 1):  # the first is not counted: it fills the caches
            for question in asked:
                for name, database in opened.items():
                    key = question.name, name
                    queries.setdefault(key, []).append(await _query_seconds(database, question))
                    if question.command is not None and not options.no_commands:
                        commands.setdefault(key, []).append(_command_seconds(question.command, urls[name]))
            print(f"round {turn} of {options.rounds}", flush=True)
        plans = {
            f"{question.name}, {name}": await _plan(opened[name], question)
            for question in asked
            for name in opened
            if median(queries[question.name, name][1:]) >= AIM_SECONDS
        }
        for database in opened.values():
            await database.close()
    rows = []
    for question in asked:
        row = [f"`{question.name}`" if question.command else question.name]
        for name in urls:
            for measured in (queries, commands):
                seconds = measured.get((question.name, name), [])[1:]
                row.append(milliseconds(median(seconds)) if seconds else "")
        rows.append(row)
    table = markdown(["", *(f"{name}, {what}" for name in urls for what in ("query", "command"))], rows)
    print(f"\n{table}")
    print(f"\nQueries of {AIM_SECONDS * 1000:g} ms or more: {'; '.join(plans) or 'none'}")
    for slow, plan in plans.items():
        print(f"\n{slow}:\n  " + "\n  ".join(plan))
    print(f"\nTook {time.monotonic() - begin:.0f} s.")
    everything = [
        {
            "question": question.name,
            "database": name,
            "query_seconds": queries[question.name, name][1:],
            "command_seconds": commands.get((question.name, name), [])[1:],
        }
        for question in asked
        for name in urls
    ]
    save(options.json, told, {"queries": table}, {"questions": everything, "plans": plans})


def _run_sql(statement: str, connection: sa.Connection) -> None:
    connection.exec_driver_sql(statement)


async def _tidy(database: Database, url: str) -> None:
    """As after some time in use: SQLite's log written back, PostgreSQL vacuumed."""
    if isinstance(database, SqliteDatabase):
        file = sa.make_url(url).database
        with closing(sqlite3.connect(file or "")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    else:
        await database.read(lambda connection: connection.exec_driver_sql("VACUUM ANALYZE"))


async def _query_seconds(database: Database, question: Question) -> float:
    """What the question's queries take in the database, rows fetched, without making work items of them."""

    def ask(connection: sa.Connection) -> float:
        query = _query(question)
        connection.execute(sa.text("SELECT 1")).all()  # nobody waits for a connection or its first statement
        begin = time.perf_counter()
        rows = connection.execute(query).all()
        if question.command is not None:
            ids = [row.id for row in rows]
            if question.command[0] in ("list", "show"):
                domain_records_in(connection, ai_jobs, ids)
            if "--transitions" in question.command:
                transitions_in(connection, ids)
        return time.perf_counter() - begin

    return await database.read(ask)


def _query(question: Question) -> sa.Select[tuple[object, ...]]:
    if question.wanted is None:
        return open_work_items_query(datetime.now(UTC), None, 1000)
    return work_items_query(question.wanted)


def _command_seconds(command: Sequence[str], url: str) -> float:
    begin = time.perf_counter()
    done = subprocess.run(
        [Path(sys.executable).with_name("tasq"), *command],
        env=os.environ | {"TASQ_DATABASE_URL": url},
        capture_output=True,
        check=False,
    )
    seconds = time.perf_counter() - begin
    assert done.returncode == 0, f"tasq {' '.join(command)}: {done.stderr.decode()}"
    return seconds


async def _plan(database: Database, question: Question) -> list[str]:
    def explain(connection: sa.Connection) -> list[str]:
        on_sqlite = connection.dialect.name == "sqlite"
        compiled = _query(question).compile(
            dialect=connection.dialect, compile_kwargs={"literal_binds": True}
        )
        rows = connection.exec_driver_sql(f"EXPLAIN {'QUERY PLAN ' if on_sqlite else ''}{compiled}").all()
        return [str(row[-1]) for row in rows]

    return await database.read(explain)


if __name__ == "__main__":
    main()
