"""`python -m benchmarks.lateness`: how late a retry leaves, measured where its request is received.

From the planned start to the provider receiving the request. Planned is, for both sides, the end of the
failed request plus the backoff; for ours also the work item's `not_before`, which is recorded (it lies a
little later: the failure has to reach the workflow first). On two Temporal servers: as released, and with
exact timers. The sides take turns, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import tempfile
import time
import urllib.request
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
from temporalio.client import Client

from benchmarks.bare import BACKOFF
from benchmarks.figures import (
    add_options,
    known,
    markdown,
    milliseconds,
    p50_p99,
    positive,
    print_facts,
    save,
)
from benchmarks.measure import BARE_QUEUE, EXACT_TIMERS, TASK_QUEUE, as_request
from benchmarks.processes import module_running
from benchmarks.provider import failing
from tasquencer.devkit.temporal_server import embedded_temporal

FAILURES = 2
NATIVE, OURS = "Temporal's native retry", "AiAgentTask"
FROM_END, FROM_PLAN = "end of the failed request + backoff", "not_before"


@dataclass(frozen=True)
class Server:
    """A Temporal server, with the worker of both sides."""

    timers: str
    client: Client
    ledger: Path


Side = tuple[str, str]
"""Whose retry, and the server's timers."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lateness", description=__doc__)
    add_options(parser, quick="1 round of 10 tasks")
    parser.add_argument("--tasks", type=positive, default=40, help="tasks of a round, two retries each (40)")
    parser.add_argument("--concurrency", type=positive, default=4, help="tasks under way at once (4)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tasks = 1, 10
    asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> None:
    begin = time.monotonic()
    seconds: dict[tuple[Side, str], list[float]] = {}
    async with AsyncExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="tasquencer-bench-")))
        provider = await running.enter_async_context(
            module_running("the provider", "benchmarks.provider", "--arrivals")
        )
        origin = provider.last_line()
        servers: list[Server] = []
        version = ""
        for timers, settings in (("as released", {}), ("exact timers", EXACT_TIMERS)):
            temporal = await running.enter_async_context(embedded_temporal(ui=False, dynamic_config=settings))
            ledger = folder / f"{timers}.db"
            arguments = ["--address", temporal.address, "--base-url", f"{origin}/v1"]
            arguments += ["--ledger", f"sqlite:///{ledger}", "--folder", str(folder)]
            await running.enter_async_context(module_running("the worker", "benchmarks.worker", *arguments))
            client = await Client.connect(temporal.address)
            info = await client.workflow_service.get_system_info(GetSystemInfoRequest())
            version = info.server_version
            servers.append(Server(timers, client, ledger))
        told = known(version)
        told["load"] = (
            f"{options.rounds} rounds of {options.tasks} tasks with {FAILURES} retries, "
            f"{options.concurrency} at once, {BACKOFF.total_seconds() * 1000:g} ms backoff"
        )
        print_facts(told)
        sides = [(whose, server) for server in servers for whose in (NATIVE, OURS)]
        for whose, server in sides:  # what is made once and kept is not counted
            await _round(whose, server, options.concurrency, options.concurrency, origin)
        for turn in range(options.rounds):
            first = turn % len(sides)
            for whose, server in sides[first:] + sides[:first]:
                late = await _round(whose, server, options.tasks, options.concurrency, origin)
                for planned, values in late.items():
                    seconds.setdefault(((whose, server.timers), planned), []).extend(values)
    rows = [
        [f"{whose}, {timers}", planned, str(len(late)), *p50_p99(late), milliseconds(min(late))]
        for ((whose, timers), planned), late in sorted(seconds.items(), reverse=True)
    ]
    table = markdown(["", "planned start", "retries", "p50", "p99", "earliest"], rows)
    print(table)
    print(f"\nTook {time.monotonic() - begin:.0f} s.")
    everything = [
        {"side": whose, "timers": timers, "planned": planned, "seconds": late}
        for ((whose, timers), planned), late in seconds.items()
    ]
    save(options.json, told, {"lateness": table}, {"sides": everything})


async def _round(whose: str, server: Server, tasks: int, at_once: int, origin: str) -> dict[str, list[float]]:
    """Run tasks; how late each of their retries was, by what its start is reckoned from."""
    name, numbers = uuid4().hex, iter(range(tasks))

    async def run_some() -> None:
        for number in numbers:
            prompt = failing(FAILURES, f"{name}-{number}")
            workflow, queue = ("BareAsk", BARE_QUEUE) if whose == NATIVE else ("AiAgentTask", TASK_QUEUE)
            argument = prompt if whose == NATIVE else as_request(prompt)
            await server.client.execute_workflow(workflow, argument, id=f"{name}-{number}", task_queue=queue)

    await asyncio.gather(*(run_some() for _ in range(at_once)))
    arrivals = await asyncio.to_thread(_arrivals, origin)
    assert len(arrivals) == tasks and all(len(times) == FAILURES + 1 for times in arrivals.values()), arrivals
    backoff = BACKOFF.total_seconds()
    late = {
        FROM_END: [
            times[attempt] - (times[attempt - 1] + backoff)
            for times in arrivals.values()
            for attempt in range(1, FAILURES + 1)
        ]
    }
    if whose == OURS:
        planned = await asyncio.to_thread(_not_before, server.ledger, name)
        late[FROM_PLAN] = [
            times[attempt] - planned[prompt.rpartition(" ")[2], attempt]
            for prompt, times in arrivals.items()
            for attempt in range(1, FAILURES + 1)
        ]
        assert min(late[FROM_PLAN]) >= 0, "a retry left before its work item's not_before"
    return late


def _arrivals(origin: str) -> dict[str, list[float]]:
    with urllib.request.urlopen(origin, timeout=10) as response:
        told: dict[str, dict[str, list[float]]] = json.load(response)
    return told["arrivals"]


def _not_before(ledger: Path, name: str) -> dict[tuple[str, int], float]:
    query = "SELECT task_id, attempt, not_before FROM work_items WHERE task_id LIKE ? || '-%'"
    with closing(sqlite3.connect(ledger)) as connection:
        return {
            (task, attempt): datetime.fromisoformat(planned).replace(tzinfo=UTC).timestamp()
            for task, attempt, planned in connection.execute(query, (name,))
        }


if __name__ == "__main__":
    main()
