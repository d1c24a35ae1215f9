"""`python -m benchmarks.ledger`: how many transitions a second the ledger takes, and how long a write lasts.

Tasks that do nothing but write: each records what a task with one failed attempt records, six transitions
in four calls of `Ledger.record`, with its AI jobs. The sides take turns: SQLite and PostgreSQL, with group
commit and without (each call a transaction of its own). All are durable: SQLite with `synchronous=FULL`,
PostgreSQL with `fsync` and `synchronous_commit`. The entries are made before the clock runs.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from uuid import uuid4

from pydantic import JsonValue

from benchmarks.figures import (
    add_options,
    fsync_seconds,
    known,
    markdown,
    milliseconds,
    p50_p99,
    percentile,
    print_facts,
    save,
    spread,
)
from tasquencer.ai.record import ai_job_record
from tasquencer.ai.request import AiAgentRequest
from tasquencer.core.entries import LedgerEntry, cleaned
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.sql import SqlLedger, upgrade
from tasquencer.sql.group_commit import Write
from tests.support.postgres import embedded_postgres

__all__ = ["ONE_BY_ONE", "TOGETHER", "OneByOne", "batches", "databases"]

AIM = 3_000
AT_ONCE = (1, 10, 100)
TOGETHER, ONE_BY_ONE = "group commit", "one by one"

ANSWER: dict[str, JsonValue] = {
    "text": "Io, Europa and Ganymede.",
    "model": "m",
    "finish_reason": "stop",
    "provider_request_id": "req-1",
    "input_tokens": 12,
    "output_tokens": 9,
    "latency_seconds": 0.5,
}

Batches = list[list[LedgerEntry]]


class OneByOne(SqlLedger):
    """Each call of `record` is a transaction of its own; on PostgreSQL as many at once as connections."""

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        await self._write([Write([cleaned(entry) for entry in entries])])


@dataclass(frozen=True)
class Round:
    """What one round took."""

    transitions: int
    seconds: float
    latencies: list[float]

    @property
    def per_second(self) -> float:
        return self.transitions / self.seconds


Side = tuple[str, str, int]
"""Database, kind of commit, tasks at once."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    add_options(parser, quick="1 short round")
    parser.add_argument("--no-postgresql", action="store_true", help="measure SQLite only")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> None:
    begin = time.monotonic()
    measured: dict[Side, list[Round]] = {}
    async with databases(postgresql=not options.no_postgresql) as (urls, versions):
        told = known(**versions, fsync=f"{milliseconds(fsync_seconds())} for 4 kB at the median")
        told["load"] = f"{options.rounds} rounds; 6 transitions a task in 4 calls"
        print_facts(told)
        async with AsyncExitStack() as opened:
            ledgers = {
                (database, kind): await opened.enter_async_context(ledger(url))
                for database, url in urls.items()
                for kind, ledger in ((TOGETHER, SqlLedger), (ONE_BY_ONE, OneByOne))
            }
            sides = [(*which, at_once) for which in ledgers for at_once in AT_ONCE]
            for side in sides:  # what is made once and kept (connections, statements) is not counted
                await _round(ledgers[side[:2]], 2 * side[2], side[2])
            for turn in range(options.rounds):
                first = turn % len(sides)
                for side in sides[first:] + sides[:first]:
                    tasks = (4 if options.quick else 16) * {1: 5, 10: 20, 100: 50}[side[2]]
                    measured.setdefault(side, []).append(await _round(ledgers[side[:2]], tasks, side[2]))
    rows = []
    for database, kind, at_once in sides:
        rounds = measured[database, kind, at_once]
        speeds = [one.per_second for one in rounds]
        latencies = [latency for one in rounds for latency in one.latencies]
        name = f"{database}, {kind}"
        rows.append([name, str(at_once), f"{median(speeds):,.0f}", spread(speeds, 0), *p50_p99(latencies)])
    table = markdown(["", "tasks at once", "transitions/s", "(range)", "write p50", "write p99"], rows)
    print(table)
    reached = median(one.per_second for one in measured["SQLite", TOGETHER, 100])
    verdict = "reached" if reached >= AIM else "missed"
    print(f"\nSQLite, {TOGETHER}, 100 tasks at once: {reached:,.0f} transitions/s (aim: {AIM:,}, {verdict})")
    print(f"\nTook {time.monotonic() - begin:.0f} s.")
    everything = [
        {
            "database": database,
            "commit": kind,
            "at_once": at_once,
            "transitions_per_second": [one.per_second for one in measured[database, kind, at_once]],
            "p50_seconds": [percentile(one.latencies, 50) for one in measured[database, kind, at_once]],
            "p99_seconds": [percentile(one.latencies, 99) for one in measured[database, kind, at_once]],
        }
        for database, kind, at_once in sides
    ]
    save(options.json, told, {"ledger": table}, {"sides": everything})


async def _round(ledger: SqlLedger, tasks: int, at_once: int) -> Round:
    work, latencies = iter([batches() for _ in range(tasks)]), list[float]()

    async def write_some() -> None:
        for batches_of_task in work:
            for batch in batches_of_task:
                begin = time.perf_counter()
                await ledger.record(batch)
                latencies.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    await asyncio.gather(*(write_some() for _ in range(at_once)))
    return Round(6 * tasks, time.perf_counter() - begin, latencies)


def batches() -> Batches:
    """What a task writes whose first attempt fails, call by call."""
    job = AiAgentRequest(prompt="Name three moons of Jupiter.").job().model_dump(mode="json")
    name = str(uuid4())
    state = TaskState(
        task_id=f"task-{name}",
        run_id=name,
        task_type="AiAgentTask",
        recipe=RetryRecipe(),
        new_id=lambda *_: str(uuid4()),
        random=lambda _: random.random(),
        record_of=ai_job_record,
    )
    now = partial(datetime.now, UTC)
    item = state.begin(job, now=now())
    state.start(item.id, now=now())
    written = [state.take_entries()]
    state.fail(item.id, Failure.of(FailureKind.RATE_LIMITED, "429: slow down", status_code=429), now=now())
    written.append(state.take_entries())
    retry = state.latest()
    state.start(retry.id, now=retry.not_before)
    written.append(state.take_entries())
    state.complete(retry.id, ANSWER, now=retry.not_before)
    written.append(state.take_entries())
    assert [len(batch) for batch in written] == [2, 2, 1, 1]
    return written


@asynccontextmanager
async def databases(*, postgresql: bool = True) -> AsyncIterator[tuple[dict[str, str], dict[str, str]]]:
    """The URL of a migrated, durable ledger on each database, and the versions of those beside SQLite."""
    async with AsyncExitStack() as running:
        folder = running.enter_context(tempfile.TemporaryDirectory(prefix="tasquencer-bench-"))
        urls, versions = {"SQLite": f"sqlite:///{Path(folder) / 'ledger.db'}"}, {}
        if postgresql:
            server = await running.enter_async_context(embedded_postgres(durable=True))
            urls["PostgreSQL"] = server.url
            versions["postgresql"] = f"{server.version}, fsync on, on this machine"
        for url in urls.values():
            await upgrade(url)
        yield urls, versions


if __name__ == "__main__":
    main()
