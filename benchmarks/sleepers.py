"""`python -m benchmarks.sleepers`: what tasks cost that sleep in their backoff, and how fast they wake up.

Each task makes one call, then sleeps; all wake at the same time, make a second call and end. Sides, one after
the other, each with a worker process of its own: AiAgentTasks, whose first attempt fails, and bare workflows
that make a call and sleep, in the workflow sandbox (Temporal's default) and without it.

Memory: the growth of the worker's resident memory from a few tasks to all of them asleep, by task. Then the
worker is killed and another one started as soon as all sleeps are over: how long until each task has made its
second call. And once more for ours with a workflow cache for a tenth of the tasks: how much half of them more
add to the worker's memory once the cache is full.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
from temporalio.client import Client
from temporalio.worker import Worker

from benchmarks.figures import add_options, known, markdown, positive, print_facts, save
from benchmarks.processes import memory_bytes, module_running
from benchmarks.provider import failing
from benchmarks.sleeping import BareSleeper, BareSleeperOutside
from benchmarks.worker import MODEL, BareActivities
from tasquencer.ai.provider.client import make_client
from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import embedded_temporal
from tasquencer.sql import SqlLedger
from tasquencer.temporal import TasquencerPlugin
from tasquencer.temporal.ai_calls import HEARTBEAT_INTERVAL, AiCalls
from workflows.ai_agent import AiAgentTask

QUEUE = "sleepers"
OURS, SANDBOXED, UNSANDBOXED = "AiAgentTask", "bare workflow", "bare workflow, no sandbox"
WORKFLOWS = {OURS: "AiAgentTask", SANDBOXED: "BareSleeper", UNSANDBOXED: "BareSleeperOutside"}
AIM = 1.5
WARM_UP = 500
"""Tasks after which the memory is read first, so that what the worker needs once does not count; at most half
as many as are measured."""
STARTS_AT_ONCE = 50
SLACK_SECONDS = 20.0


@dataclass(frozen=True)
class Result:
    """What a side needed."""

    side: str
    tasks: int
    cached: int
    few_bytes: int
    half_bytes: int
    all_bytes: int
    start_seconds: float
    resume_seconds: float | None

    @property
    def bytes_per_task(self) -> float:
        return (self.all_bytes - self.few_bytes) / self.tasks

    @property
    def bytes_per_later_task(self) -> float:
        """Of the second half."""
        return (self.all_bytes - self.half_bytes) / (self.tasks - self.tasks // 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sleepers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, rounds=1, quick="200 tasks")
    parser.add_argument("--tasks", type=positive, default=10_000, help="tasks asleep at once (10000)")
    parser.add_argument("--ours", action="store_true", help="only AiAgentTasks, all of them in the cache")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)  # be the worker
    options = parser.parse_args()
    if options.work:
        address, base_url, ledger, cached = options.work
        asyncio.run(_work(address, base_url, ledger, int(cached)))
        return
    if options.quick:
        options.tasks = 200
    asyncio.run(_run(options))


async def _work(address: str, base_url: str, ledger: str, cached: int) -> None:
    """Be the worker, until killed."""
    logging.getLogger("temporalio").setLevel(logging.CRITICAL)
    async with make_client(api_key="not-needed", base_url=base_url) as provider:
        worker = Worker(
            await Client.connect(address, plugins=[TasquencerPlugin(SqlLedger(ledger))]),
            task_queue=QUEUE,
            workflows=[AiAgentTask, BareSleeper, BareSleeperOutside],
            activities=[AiCalls(provider, MODEL).generate, BareActivities(provider).ask],
            max_cached_workflows=cached,
            max_concurrent_activities=100,
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
            max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
            default_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        )
        async with worker:
            while not worker.is_running:
                await asyncio.sleep(0.01)
            print("ready", flush=True)
            await asyncio.Event().wait()


async def _run(options: argparse.Namespace) -> None:
    begin = time.monotonic()
    results: list[Result] = []
    told: dict[str, str] = {}
    plan = [(side, 3 * options.tasks) for side in WORKFLOWS] + [(OURS, options.tasks // 10)]
    if options.ours:
        plan = plan[:1]
    for turn in range(options.rounds):
        for side, cached in plan[turn % len(plan) :] + plan[: turn % len(plan)]:
            async with embedded_temporal(ui=False) as temporal:
                client = await Client.connect(temporal.address)
                if not told:
                    info = await client.workflow_service.get_system_info(GetSystemInfoRequest())
                    told = known(info.server_version)
                    told["load"] = f"{options.rounds} rounds of {options.tasks:,} tasks asleep at once"
                    print_facts(told)
                result = await _side(client, temporal.address, side, options.tasks, cached)
            results.append(result)
            print(
                f"{side}, {cached:,} cached: {result.bytes_per_task / 1024:.1f} KiB a task, "
                f"resumed in {result.resume_seconds or 0:.1f} s",
                flush=True,
            )
    table = _table(results, plan)
    print(f"\n{table}")
    if not options.ours:
        cached = plan[0][1]
        share = _per_task(results, OURS, cached) / _per_task(results, SANDBOXED, cached)
        print(
            f"\n{OURS} / {SANDBOXED}: {share:.2f} (aim: {AIM:g}, {'reached' if share <= AIM else 'missed'})"
        )
    print(f"\nTook {time.monotonic() - begin:.0f} s.")
    name = "sleepers-ours" if options.ours else "sleepers"
    save(options.json, told, {name: table}, {"results": [asdict(one) for one in results]})


def _per_task(results: list[Result], side: str, cached: int) -> float:
    return median(one.bytes_per_task for one in results if (one.side, one.cached) == (side, cached))


def _table(results: list[Result], plan: list[tuple[str, int]]) -> str:
    rows = []
    for side, cached in plan:
        own = [one for one in results if (one.side, one.cached) == (side, cached)]
        resumed = [one.resume_seconds for one in own if one.resume_seconds is not None]
        rows.append(
            [
                side,
                f"{own[0].tasks:,}",
                "all" if cached > own[0].tasks else f"{cached:,}",
                f"{median(one.all_bytes for one in own) / 2**20:.0f} MiB",
                f"{median(one.bytes_per_task for one in own) / 1024:.1f} KiB",
                f"{median(one.bytes_per_later_task for one in own) / 1024:.1f} KiB",
                f"{median(resumed):.1f} s" if resumed else "",
            ]
        )
    header = ["", "tasks", "in the cache", "worker RSS", "a task", "a task of the second half"]
    return markdown([*header, "all resumed after"], rows)


async def _side(client: Client, address: str, side: str, tasks: int, cached: int) -> Result:
    with tempfile.TemporaryDirectory(prefix="tasquencer-bench-") as folder:
        async with module_running("the provider", "benchmarks.provider") as provider:
            origin = provider.last_line()
            arguments = [address, f"{origin}/v1", f"sqlite:///{Path(folder) / 'ledger.db'}", str(cached)]
            async with _worker(arguments) as worker:
                # Those of the warm-up sleep for good: what they cost is in the memory before and after.
                rate = await _fall_asleep(client, side, min(WARM_UP, tasks // 2), origin, time.time() + 7200)
                few = await _settled_memory(worker)
                expected = tasks / rate
                wake = time.time() + 1.8 * expected + SLACK_SECONDS
                begin = time.monotonic()
                await _fall_asleep(client, side, tasks // 2, origin, wake)
                half = await _settled_memory(worker)
                await _fall_asleep(client, side, tasks - tasks // 2, origin, wake)
                started = time.monotonic() - begin
                everyone = await _settled_memory(worker)
                print(
                    f"{side}, {cached:,} cached: {tasks:,} asleep after {started:.0f} s, the worker grew "
                    f"from {few / 2**20:.0f} over {half / 2**20:.0f} to {everyone / 2**20:.0f} MiB",
                    flush=True,
                )
                assert time.time() < wake, "the tasks woke before all of them slept: this machine is too busy"
            before = await _calls(origin)
            await asyncio.sleep(max(0.0, wake + 1.0 - time.time()))  # the server fires up to a second late
            begin = time.monotonic()
            async with _worker(arguments):
                await _until_calls(origin, before + tasks, tasks / rate * 10 + 60)
                resumed = time.monotonic() - begin
    return Result(side, tasks, cached, few, half, everyone, started, resumed)


@asynccontextmanager
async def _worker(arguments: list[str]) -> AsyncIterator[ChildProcess]:
    async with module_running("the worker", "benchmarks.sleepers", "--work", *arguments) as worker:
        yield worker


async def _fall_asleep(client: Client, side: str, tasks: int, origin: str, wake: float) -> float:
    """Start tasks and wait until each has made its first call; tasks per second."""
    name, numbers, before = uuid4().hex, iter(range(tasks)), await _calls(origin)

    async def start_some() -> None:
        for number in numbers:
            seconds = wake - time.time()
            prompt = failing(1, f"{name}-{number}") if side == OURS else f"answer {name}-{number}"
            arguments: list[Any] = [seconds, prompt]
            if side == OURS:
                retry = {"initial_interval_seconds": seconds, "backoff_coefficient": 1}
                arguments = [{"prompt": prompt, "retry": retry}]
            await client.start_workflow(
                WORKFLOWS[side], args=arguments, id=f"{name}-{number}", task_queue=QUEUE
            )

    begin = time.monotonic()
    await asyncio.gather(*(start_some() for _ in range(STARTS_AT_ONCE)))
    await _until_calls(origin, before + tasks, 60 + tasks / 5)
    return tasks / (time.monotonic() - begin)


async def _settled_memory(worker: ChildProcess) -> int:
    """The worker's memory once what the last calls have set in motion has come to rest."""
    await asyncio.sleep(3)
    return memory_bytes(worker.pid)


async def _calls(origin: str) -> int:
    def get() -> int:
        with urllib.request.urlopen(origin, timeout=10) as response:
            counts: dict[str, int] = json.load(response)
            return sum(counts.values())

    return await asyncio.to_thread(get)


async def _until_calls(origin: str, calls: int, timeout_seconds: float) -> None:
    async with asyncio.timeout(timeout_seconds):
        while await _calls(origin) < calls:
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    main()
