"""`python -m benchmarks.control`: how fast a running task obeys, measured at the provider.

From `handle.cancel()` to the end of the connection, in the middle of a call; and from `retry_now`, in the
middle of a long backoff, to the next request. Temporal's dev server, the worker process's own options, a
ledger on SQLite, one task at a time. The worker runs in a process of its own.

First with a server that pushes cancels, then with one that does not. There a cancel reaches a call in the
answer to a heartbeat, so how long it takes depends on where between two heartbeats it comes: each try waits
for a random part of that time first (from a fixed seed). `--heartbeat SECONDS`, which may be repeated, tries
other intervals than the product's.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle

import worker
from benchmarks.figures import known, markdown, print_facts, save
from tasquencer.ai import AiCalls
from tasquencer.ai.provider.client import make_client
from tasquencer.devkit.http_server import Exchange, HttpServer
from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import PUSHED_CANCELS, embedded_temporal
from tasquencer.sql import SqlLedger
from tasquencer.temporal import TasquencerPlugin
from tasquencer.temporal.ai_calls import HEARTBEAT_INTERVAL
from tasquencer.temporal.running import Tuning

__all__ = ["HangingProvider", "Measurement"]

TASK_QUEUE = "control"
SEED = 20

Handle = WorkflowHandle[Any, Any]


@dataclass(frozen=True)
class Aim:
    """What is measured, and how many seconds it may take."""

    name: str
    median: float
    worst: float | None


PUSHED_CANCEL = Aim("cancel → connection closed", 0.1, None)
CANCEL = Aim("cancel → connection closed", 0.3, 1.5)
RETRY_NOW = Aim("retry_now → next request", 0.3, None)


@dataclass(frozen=True)
class Measurement:
    """The seconds of each try, with calls that send a heartbeat this often; None: cancels are pushed."""

    aim: Aim
    heartbeat: timedelta | None
    seconds: Sequence[float]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def p90(self) -> float:
        """The smallest value that nine tenths of the tries do not exceed."""
        return sorted(self.seconds)[ceil(0.9 * len(self.seconds)) - 1]

    @property
    def worst(self) -> float:
        return max(self.seconds)

    @property
    def reached(self) -> bool:
        """Whether the aim is."""
        return self.median < self.aim.median and (self.aim.worst is None or self.worst < self.aim.worst)


class HangingProvider:
    """Fails a prompt that begins with `fail` the first time; every other request it never answers.

    It logs when a request was complete and when its client left, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.arrivals: asyncio.Queue[float] = asyncio.Queue()
        self.departures: asyncio.Queue[float] = asyncio.Queue()
        self._failed: set[bytes] = set()
        self._server = HttpServer(self._handle)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve at the base URL that is handed out."""
        async with self._server:
            yield f"{self._server.origin}/v1"

    def check_quiet(self) -> None:
        """Nothing came or went that nobody waited for."""
        assert self.arrivals.empty() and self.departures.empty(), "there were more requests than tries"

    async def _handle(self, exchange: Exchange) -> None:
        self.arrivals.put_nowait(time.monotonic())
        body = exchange.request.body
        if b'"fail ' in body and body not in self._failed:
            self._failed.add(body)
            await exchange.respond(503, [("content-type", "application/json")], b"{}")
            return
        try:
            await asyncio.Event().wait()
        finally:
            self.departures.put_nowait(time.monotonic())


class Bench:
    """The tries, one at a time."""

    def __init__(self, client: Client, provider: HangingProvider, heartbeat: timedelta) -> None:
        self._client = client
        self._provider = provider
        self._heartbeat = heartbeat
        self._random = random.Random(SEED)

    async def cancel(self) -> float:
        """From `handle.cancel()` being called to the provider seeing the connection closed."""
        handle = await self._start("wait")
        await self._next(self._provider.arrivals)
        await self._any_phase()
        asked = time.monotonic()
        seconds = await self._canceled(handle) - asked
        self._provider.check_quiet()
        return seconds

    async def retry_now(self) -> float:
        """From sending `retry_now` to the provider receiving the request."""
        handle = await self._start("fail")
        await self._next(self._provider.arrivals)
        async with asyncio.timeout(30):
            while "initialized" not in [one["state"] for one in await handle.query("work_items")]:
                await asyncio.sleep(0.01)
        await self._any_phase()
        asked = time.monotonic()
        acting = asyncio.create_task(handle.execute_update("retry_now", {"actor": "benchmark"}))
        seconds = await self._next(self._provider.arrivals) - asked
        await acting
        await self._canceled(handle)
        self._provider.check_quiet()
        return seconds

    async def _start(self, kind: str) -> Handle:
        name = f"{kind}-{uuid4()}"
        request = {"prompt": f"{kind} {name}", "retry": {"initial_interval_seconds": 3600}}
        return await self._client.start_workflow("AiAgentTask", request, id=name, task_queue=TASK_QUEUE)

    async def _any_phase(self) -> None:
        # Past the first heartbeat, which goes out immediately, and then anywhere between two of them.
        await asyncio.sleep(self._heartbeat.total_seconds() * (1 + self._random.random()))

    async def _canceled(self, handle: Handle) -> float:
        """Cancel the task; when the provider saw its call's connection closed."""
        await handle.cancel()
        gone = await self._next(self._provider.departures)
        try:
            await handle.result()
        except WorkflowFailureError:
            return gone
        raise AssertionError("the task has a result though it was canceled")

    @staticmethod
    async def _next(log: asyncio.Queue[float]) -> float:
        async with asyncio.timeout(30):
            return await log.get()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.control",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tries", type=_positive(int), default=50, help="tries of each kind (default: 50)")
    product = HEARTBEAT_INTERVAL.total_seconds()
    parser.add_argument(
        "--heartbeat",
        type=_positive(float),
        action="append",
        metavar="SECONDS",
        help=f"seconds between two heartbeats of a call (default: the product's, {product:g})",
    )
    parser.add_argument("--quick", action="store_true", help="3 tries of each kind: does it run at all?")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything measured to this file, too"
    )
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)  # be the worker: address, base URL, ledger
    options = parser.parse_args()
    heartbeats = [timedelta(seconds=seconds) for seconds in options.heartbeat or [product]]
    if options.work:
        address, base_url, ledger = options.work
        asyncio.run(_work(address, base_url, ledger, heartbeats[0]))
    else:
        asyncio.run(_run(3 if options.quick else options.tries, heartbeats, options.json))


def _positive(number: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if (value := number(text)) <= 0:
            raise argparse.ArgumentTypeError("must be more than 0")
        return value

    parse.__name__ = number.__name__
    return parse


async def _run(tries: int, heartbeats: Sequence[timedelta], file: Path | None) -> None:
    begin = time.monotonic()
    measured: list[Measurement] = []
    for pushed in (True, False):
        settings = dict.fromkeys(PUSHED_CANCELS, pushed)
        async with embedded_temporal(ui=False, dynamic_config=settings) as server:
            client = await Client.connect(server.address)
            info = await client.workflow_service.get_system_info(GetSystemInfoRequest())
            told = known(info.server_version, load=f"{tries} tries of each kind, one at a time")
            if pushed:
                print_facts(told)
            for heartbeat in heartbeats[:1] if pushed else heartbeats:
                measured += await _measure(server.address, client, tries, heartbeat, pushed=pushed)
    print(f"\n{table(measured)}")
    print(f"\nTook {time.monotonic() - begin:.0f} s.")
    everything = [
        {
            "name": one.aim.name,
            "heartbeat": one.heartbeat.total_seconds() if one.heartbeat is not None else None,
            "seconds": one.seconds,
        }
        for one in measured
    ]
    save(file, told, {"control": table(measured)}, {"tries": everything})


async def _measure(
    address: str, client: Client, tries: int, heartbeat: timedelta, *, pushed: bool
) -> list[Measurement]:
    provider = HangingProvider()
    with tempfile.TemporaryDirectory(prefix="tasquencer-bench-") as folder:
        ledger = f"sqlite:///{Path(folder) / 'ledger.db'}"
        async with provider.running() as base_url, _worker(address, base_url, ledger, heartbeat):
            bench = Bench(client, provider, heartbeat)
            kinds: list[tuple[Aim, Callable[[], Coroutine[Any, Any, float]]]] = [
                (PUSHED_CANCEL if pushed else CANCEL, bench.cancel),
                (RETRY_NOW, bench.retry_now),
            ]
            for _, attempt in kinds:  # what is made once and kept (connections, statements) is not counted
                await attempt()
            return [
                Measurement(aim, None if pushed else heartbeat, [await attempt() for _ in range(tries)])
                for aim, attempt in kinds
            ]


@asynccontextmanager
async def _worker(address: str, base_url: str, ledger: str, heartbeat: timedelta) -> AsyncIterator[None]:
    command = [sys.executable, "-m", "benchmarks.control", "--heartbeat", str(heartbeat.total_seconds())]
    child = ChildProcess("the worker", [*command, "--work", address, base_url, ledger])

    async def has_spoken() -> bool:
        return child.output().endswith("\n") and bool(child.last_line())

    try:
        await child.wait_ready(has_spoken, timeout_seconds=30)
        yield
    finally:
        child.kill()


async def _work(address: str, base_url: str, ledger: str, heartbeat: timedelta) -> None:
    """Be the worker that `worker.py` makes, until killed; only the interval of the heartbeats may differ."""
    tuning = Tuning(grace_period=timedelta(0), heartbeat_interval=heartbeat)
    async with make_client(api_key="not-needed", base_url=base_url) as provider:
        calls = AiCalls(provider, "hanging", heartbeat_interval=heartbeat)
        client = await Client.connect(address, plugins=[TasquencerPlugin(SqlLedger(ledger), calls=calls)])
        running = worker.make_worker(client, TASK_QUEUE, tuning)
        async with running:
            while not running.is_running:  # it opens its ledger first
                await asyncio.sleep(0.01)
            print("ready", flush=True)
            await asyncio.Event().wait()


def table(measured: Sequence[Measurement]) -> str:
    """A Markdown table of the measurements."""
    header = ["", "heartbeat", "tries", "median", "p90", "worst", "aim", ""]
    rows = []
    for one in measured:
        aim = f"median < {one.aim.median:g} s"
        if one.aim.worst is not None:
            aim += f", worst < {one.aim.worst:g} s"
        seconds = [f"{value:.3f} s" for value in (one.median, one.p90, one.worst)]
        heartbeat = "pushed" if one.heartbeat is None else f"{one.heartbeat.total_seconds():g} s"
        verdict = "reached" if one.reached else "missed"
        rows.append([one.aim.name, heartbeat, str(len(one.seconds)), *seconds, aim, verdict])
    return markdown(header, rows)


if __name__ == "__main__":
    main()
