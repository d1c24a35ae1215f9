"""`python -m benchmarks.peers`: compares tasks per second with native retry, DBOS and Restate, in one run.

Each task is one AI call that fails twice, with 50 ms backoff before each retry, against the same provider and
with the same number of running tasks. Each side has its own worker process. One client process serves all.
The sides take turns, round by round, and each round begins with another side.

Temporal runs twice: with its default timers, where a timer and a native retry fire up to a second late, and
with exact timers, like the peers. Its dev server keeps the histories in memory, or with `--temporal-on-disk`
in a SQLite file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from uuid import uuid4

from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
from temporalio.client import Client

from benchmarks.bare import BACKOFF
from benchmarks.figures import (
    add_options,
    fsync_seconds,
    known,
    markdown,
    milliseconds,
    positive,
    print_facts,
    save,
    spread,
)
from benchmarks.measure import BARE_QUEUE, EXACT_TIMERS, TASK_QUEUE, Round, as_request
from benchmarks.processes import cpu_seconds, module_running
from benchmarks.provider import failing
from tasquencer.devkit.processes import ChildProcess, answers, free_port
from tasquencer.devkit.temporal_server import embedded_temporal
from tasquencer.sql import upgrade
from tests.support.postgres import EmbeddedPostgres, embedded_postgres

FAILURES = 2
PYTHON = Path(".venv-peers/bin/python")
RESTATE = Path(__file__).parent / "node_modules/.bin/restate-server"
PORTS_OF_RESTATE = ("ingress", "admin", "node")

NATIVE, OURS = "Temporal's native retry", "AiAgentTask, ledger on PostgreSQL"
DBOS, RESTATE_NAME = "DBOS", "Restate"


class Side(ABC):
    """One of the ways to do the work, running."""

    def __init__(self, name: str, keeps: str, worker: int, servers: Sequence[int]) -> None:
        self.name = name
        self.keeps = keeps
        self._worker = worker
        self._servers = servers

    @abstractmethod
    def client(self) -> AbstractAsyncContextManager[Caller]:
        """What carries out one task after the other."""

    def cpu(self) -> tuple[float, float]:
        """Seconds so far of the worker, and of the servers."""
        return cpu_seconds(self._worker), sum(map(cpu_seconds, self._servers))


class Caller:
    """Carries out one task after the other."""

    async def call(self, prompt: str) -> str:
        """Do one task; the answer."""
        raise NotImplementedError


class TemporalSide(Side, Caller):
    """Workflows of the worker process that `python -m benchmarks` measures, too."""

    def __init__(
        self, name: str, keeps: str, worker: int, servers: Sequence[int], client: Client, *, native: bool
    ) -> None:
        super().__init__(name, keeps, worker, servers)
        self._client = client
        self._native = native

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Caller]:
        yield self

    async def call(self, prompt: str) -> str:
        workflow, queue = ("BareAsk", BARE_QUEUE) if self._native else ("AiAgentTask", TASK_QUEUE)
        argument = prompt if self._native else as_request(prompt)
        result = await self._client.execute_workflow(workflow, argument, id=str(uuid4()), task_queue=queue)
        return str(result if self._native else result["text"])


class Lines(Caller):
    """A prompt a line, an answer a line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def call(self, prompt: str) -> str:
        self._writer.write(f"{prompt}\n".encode())
        return (await self._reader.readline()).decode().strip()


class Ingress(Caller):
    """Restate's HTTP interface on a connection that stays open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def call(self, prompt: str) -> str:
        body = json.dumps(prompt).encode()
        head = f"POST /Ask/ask HTTP/1.1\r\nhost: restate\r\ncontent-length: {len(body)}\r\n"
        self._writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        answered = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(answered.partition("content-length:")[2].partition("\r\n")[0])
        content = await self._reader.readexactly(length)
        assert answered.split()[1] == "200", content
        return str(json.loads(content))


class SocketSide(Side):
    """A peer that is reached on a port."""

    def __init__(
        self,
        name: str,
        keeps: str,
        worker: int,
        servers: Sequence[int],
        port: int,
        caller: type[Lines] | type[Ingress],
    ) -> None:
        super().__init__(name, keeps, worker, servers)
        self._port = port
        self._caller = caller

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Caller]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            yield self._caller(reader, writer)
        finally:
            writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, quick="1 round of 20 tasks")
    parser.add_argument("--tasks", type=positive, default=100, help="tasks of a round (100)")
    parser.add_argument("--concurrency", type=positive, default=20, help="tasks under way at once (20)")
    parser.add_argument("--temporal-on-disk", action="store_true", help="keep Temporal's histories in a file")
    parser.add_argument("--python", type=Path, default=PYTHON, help=f"with the peers installed ({PYTHON})")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tasks = 1, 20
    if not options.python.exists() or not RESTATE.exists():
        parser.error("the peers are not installed: run `make peers`, which needs npm")
    asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> None:
    begin = time.monotonic()
    async with AsyncExitStack() as running:
        provider = await running.enter_async_context(module_running("the provider", "benchmarks.provider"))
        origin = provider.last_line()
        postgres = await running.enter_async_context(embedded_postgres(durable=True))
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="tasquencer-bench-")))
        sides: list[Side] = []
        version = ""
        for timers, settings in (("exact timers", EXACT_TIMERS), ("as released", {})):
            file = folder / f"{timers}.db" if options.temporal_on_disk else None
            temporal = await running.enter_async_context(
                embedded_temporal(ui=False, dynamic_config=settings, database_file=file)
            )
            ledger = await postgres.create_database(f"ledger {timers}")
            await upgrade(ledger)
            arguments = ["--address", temporal.address, "--base-url", f"{origin}/v1", "--ledger", ledger]
            arguments += ["--folder", str(folder)]
            worker = await running.enter_async_context(
                module_running("the worker", "benchmarks.worker", *arguments)
            )
            client = await Client.connect(temporal.address)
            info = await client.workflow_service.get_system_info(GetSystemInfoRequest())
            version = info.server_version
            kept = "on disk" if options.temporal_on_disk else "in memory"
            history, pids = f"history {kept}", [temporal.pid, postgres.pid]
            sides += [
                TemporalSide(
                    f"{NATIVE}, {timers}",
                    f"the last failure; {history}",
                    worker.pid,
                    pids,
                    client,
                    native=True,
                ),
                TemporalSide(
                    f"{OURS}, {timers}",
                    f"every attempt, before and after; ledger fsynced, {history}",
                    worker.pid,
                    pids,
                    client,
                    native=False,
                ),
            ]
        peers = [
            await running.enter_async_context(_dbos(options.python, postgres, origin)),
            await running.enter_async_context(_restate(options.python, folder, origin)),
        ]
        sides[2:2] = peers
        told = known(
            version,
            postgresql=f"{postgres.version}, fsync on",
            peers=await _versions(options.python),
            fsync=f"{milliseconds(fsync_seconds())} for 4 kB at the median",
        )
        told["temporal server"] = f"{version}, dev server, {history}"
        told["load"] = (
            f"{options.rounds} rounds of {options.tasks} tasks, {options.concurrency} at once; each fails "
            f"{FAILURES} times, {BACKOFF.total_seconds() * 1000:g} ms backoff"
        )
        print_facts(told)
        measured: dict[str, list[Round]] = {side.name: [] for side in sides}
        for side in sides:  # what is made once and kept (connections, statements) is not counted
            await _round(side, 2 * options.concurrency, options.concurrency, origin)
        for turn in range(options.rounds):
            first = turn % len(sides)
            for side in sides[first:] + sides[:first]:
                made = await _round(side, options.tasks, options.concurrency, origin)
                measured[side.name].append(made)
    table = _table(sides, measured)
    print(table)
    print(f"\nTook {time.monotonic() - begin:.0f} s. Each figure is the median of its rounds.")
    everything = [
        {"side": side.name, "keeps": side.keeps, "rounds": list(map(asdict, measured[side.name]))}
        for side in sides
    ]
    name = "peers-on-disk" if options.temporal_on_disk else "peers"
    save(options.json, told, {name: table}, {"sides": everything})


def _table(sides: Sequence[Side], measured: dict[str, list[Round]]) -> str:
    ours = {timers: measured[f"{OURS}, {timers}"] for timers in ("exact timers", "as released")}
    rows = []
    for side in sides:
        rounds = measured[side.name]
        speeds = [one.tasks_per_second for one in rounds]
        shares = [
            [mine.tasks_per_second / one.tasks_per_second for mine, one in zip(own, rounds, strict=True)]
            for own in ours.values()
        ]
        rows.append(
            [
                side.name,
                f"{median(speeds):.1f}",
                spread(speeds, 1),
                *(f"{median(values):.2f} ({spread(values)})" for values in shares),
                milliseconds(median(one.latency_seconds for one in rounds)),
                milliseconds(median(one.worker_cpu_seconds / one.tasks for one in rounds)),
                milliseconds(median(one.server_cpu_seconds / one.tasks for one in rounds)),
                side.keeps,
            ]
        )
    header = ["", "tasks/s", "(range)", *(f"ours, {timers} / this" for timers in ours)]
    return markdown([*header, "latency", "worker CPU", "server CPU", "what is kept"], rows)


async def _round(side: Side, tasks: int, at_once: int, origin: str) -> Round:
    """Run tasks, a limited number at a time, and check that each made exactly the expected requests."""
    before = await _requests(origin)
    name, numbers, latencies = uuid4().hex, iter(range(tasks)), list[float]()

    async def run_some() -> None:
        async with side.client() as caller:
            for number in numbers:
                begin = time.perf_counter()
                answer = await caller.call(failing(FAILURES, f"{name}-{number}"))
                latencies.append(time.perf_counter() - begin)
                assert answer == "Forty-two.", answer

    worker, server = side.cpu()
    begin = time.perf_counter()
    await asyncio.gather(*(run_some() for _ in range(at_once)))
    seconds = time.perf_counter() - begin
    used = [after - earlier for after, earlier in zip(side.cpu(), (worker, server), strict=True)]
    made = {key: count - before[key] for key, count in (await _requests(origin)).items()}
    expected = {"answered": tasks, "failed": tasks * FAILURES}
    assert made == expected, f"{side.name}: expected {expected} requests, the provider counted {made}"
    return Round(tasks, seconds, median(latencies), *used)


async def _requests(origin: str) -> dict[str, int]:
    def get() -> dict[str, int]:
        with urllib.request.urlopen(origin, timeout=10) as response:
            counts: dict[str, int] = json.load(response)
            return counts

    return await asyncio.to_thread(get)


@asynccontextmanager
async def _dbos(python: Path, postgres: EmbeddedPostgres, origin: str) -> AsyncIterator[Side]:
    await postgres.create_database("dbos")
    url = postgres.url_of("dbos").replace("+asyncpg", "+psycopg")
    app = module_running("DBOS", "benchmarks.peers.dbos_app", url, f"{origin}/v1", python=python)
    async with app as worker:
        port = int(worker.last_line())
        keeps = "the last outcome, fsynced; waits for a retry in memory"
        yield SocketSide(DBOS, keeps, worker.pid, [postgres.pid], port, Lines)


@asynccontextmanager
async def _restate(python: Path, folder: Path, origin: str) -> AsyncIterator[Side]:
    ports = {name: free_port() for name in PORTS_OF_RESTATE}
    options = ["--listen-mode", "tcp", "--bind-ip", "127.0.0.1", "--bind-port", str(ports["node"])]
    options += ["--base-dir", str(folder / "restate"), "--node-name", "bench", "--no-logo"]
    environment = {
        "PATH": os.environ["PATH"],
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LOG_FILTER": "error",
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ports['ingress']}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{ports['admin']}",
        "DO_NOT_TRACK": "1",
    }
    server = ChildProcess("Restate", [RESTATE, *options], environment=environment)
    service = free_port()
    try:

        async def is_ready() -> bool:
            return await answers(ports["admin"]) and await answers(ports["ingress"])

        await server.wait_ready(is_ready, timeout_seconds=60)
        app = module_running(
            "Restate's service", "benchmarks.peers.restate_app", str(service), f"{origin}/v1", python=python
        )
        async with app as worker:
            await asyncio.to_thread(_register, ports["admin"], service)
            keeps = "the last outcome and durable retries, fsynced"
            yield SocketSide(RESTATE_NAME, keeps, worker.pid, [server.pid], ports["ingress"], Ingress)
    finally:
        server.kill()


def _register(admin: int, service: int) -> None:
    body = json.dumps({"uri": f"http://127.0.0.1:{service}"}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{admin}/deployments", body, {"content-type": "application/json"}
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


async def _versions(python: Path) -> str:
    code = "from importlib.metadata import version as v; print(*map(v, ('dbos', 'restate-sdk', 'openai')))"
    process = await asyncio.create_subprocess_exec(python, "-c", code, stdout=asyncio.subprocess.PIPE)
    dbos, restate, client = (await process.communicate())[0].decode().split()
    package = json.loads(
        (RESTATE.parents[1] / "@restatedev/restate-server/package.json").read_text(encoding="utf-8")
    )
    return f"dbos {dbos}, restate-server {package['version']}, restate-sdk {restate}, openai {client}"


if __name__ == "__main__":
    main()
