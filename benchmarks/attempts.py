"""`python -m benchmarks.attempts`: what an attempt costs, with and without the library.

Four ways to make an AI call with retries: Temporal's native retry, the same activity observed, the same
activity adopted, and `AiAgentTask`. Each has a worker process of its own and, where it records, a ledger on
SQLite. All run first on a server that pushes cancels and then on one that does not.

Billed actions follow Temporal Cloud's rules: one for the start of the workflow, for each start of an activity
(native retries included), for each timer, signal, update and upsert of search attributes, and for each
heartbeat that reaches the server. The local activities of one workflow task are one action together. Events
come from the history, heartbeats from the worker's count of requests.

The first try is a task without failures. A further try is the difference to a task with failures, divided by
their number.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import openai
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
from temporalio.client import Client
from temporalio.worker import Worker

from benchmarks.bare import HEARTBEAT_TIMEOUT, BareAsk
from benchmarks.figures import add_options, known, markdown, milliseconds, positive, print_facts, save
from benchmarks.measure import EXACT_TIMERS, as_request
from benchmarks.processes import cpu_seconds, module_running
from benchmarks.provider import failing, waiting
from tasquencer.ai import AiCalls
from tasquencer.ai.provider.client import make_client
from tasquencer.devkit.processes import free_port
from tasquencer.devkit.temporal_server import PUSHED_CANCELS, embedded_temporal
from tasquencer.sql import SqlLedger
from tasquencer.temporal import TasquencerPlugin
from tasquencer.temporal.ai_calls import HEARTBEAT_INTERVAL
from tasquencer.temporal.cancels import heartbeat_interval
from tasquencer.temporal.running import STICKY_TIMEOUT, worker_runtime
from workflows.ai_agent import AiAgentTask

__all__ = ["Cost", "billed_actions", "table"]

FAILURES = 2
CALL_SECONDS = 4
MODEL = "instant"

_ONE_ACTION = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
    EventType.EVENT_TYPE_TIMER_STARTED,
    EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES,
}


@dataclass(frozen=True)
class Side:
    """One of the ways to make the call: its workflow, and its input from a prompt."""

    name: str
    title: str
    workflow: str
    make_input: Callable[[str], Any]


SIDES = (
    Side("native", "native retry", "BareAsk", str),
    Side("observed", "native retry, observed", "BareAsk", str),
    Side("adopted", "adopted activity", "BareAsk", str),
    Side("task", "`AiAgentTask`", "AiAgentTask", as_request),
)


@dataclass
class Cost:
    """What the tasks of one side cost on one of the servers.

    Attributes:
        events: Of a task, by its number of failures.
        actions: Billed actions of a task without heartbeats, by its number of failures.
        history_bytes: The size of a task's history, by its number of failures.
        cpu_seconds: Of the worker for a task, by its number of failures, one value for each round.
        heartbeats: In a call of `CALL_SECONDS`.
    """

    side: str
    pushed: bool
    events: dict[int, int] = field(default_factory=dict)
    actions: dict[int, int] = field(default_factory=dict)
    history_bytes: dict[int, int] = field(default_factory=dict)
    cpu_seconds: dict[int, list[float]] = field(default_factory=dict)
    heartbeats: float = 0


def billed_actions(events: Sequence[HistoryEvent]) -> int:
    """Return the billed actions of a history, without heartbeats, which no history shows."""
    actions = 0
    with_local_activities = set()
    for event in events:
        if event.event_type in _ONE_ACTION:
            actions += 1
        elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
            actions += event.activity_task_started_event_attributes.attempt
        elif event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED:
            marker = event.marker_recorded_event_attributes
            if marker.marker_name == "core_local_activity":
                with_local_activities.add(marker.workflow_task_completed_event_id)
    return actions + len(with_local_activities)


def table(costs: Sequence[Cost]) -> str:
    """Return the Markdown table: in each cell the first try, then each further one."""
    header = ["", "cancels", "events", "actions", f"heartbeats in {CALL_SECONDS} s", "worker CPU", "history"]
    rows = []
    for cost in costs:
        cpu = {failures: median(values) for failures, values in cost.cpu_seconds.items()}
        rows.append(
            [
                next(side.title for side in SIDES if side.name == cost.side),
                "pushed" if cost.pushed else "by heartbeat",
                _first_and_further(cost.events, lambda value: f"{value:g}"),
                _first_and_further(cost.actions, lambda value: f"{value:g}"),
                f"{cost.heartbeats:g}",
                _first_and_further(cpu, milliseconds),
                _first_and_further(cost.history_bytes, lambda value: f"{value / 1000:.1f} kB"),
            ]
        )
    return markdown(header, rows)


def _first_and_further(values: Mapping[int, float], shown: Callable[[float], str]) -> str:
    first = values[0]
    return f"{shown(first)} + {shown(max(0.0, (values[FAILURES] - first) / FAILURES))}"


class Bench:
    """The tasks of one side, on its worker."""

    def __init__(self, client: Client, side: Side, worker_pid: int, metrics: str, cost: Cost) -> None:
        self._client = client
        self.side = side
        self._worker_pid = worker_pid
        self._metrics = metrics
        self.cost = cost

    async def look(self, failures: int) -> None:
        """Run one task, and read its history. It also warms the worker."""
        (task_id,) = await self._run(1, 1, lambda name: failing(failures, name))
        handle = self._client.get_workflow_handle(task_id)
        events = (await handle.fetch_history()).events
        self.cost.events[failures] = len(events)
        self.cost.actions[failures] = billed_actions(events)
        info = (await handle.describe()).raw_description.workflow_execution_info
        self.cost.history_bytes[failures] = info.history_size_bytes

    async def beat(self, tasks: int) -> None:
        """Count the heartbeats of calls that take a while."""
        before = await self._heartbeats()
        await self._run(tasks, tasks, lambda name: waiting(CALL_SECONDS * 1000, name))
        self.cost.heartbeats = (await self._heartbeats() - before) / tasks

    async def measure(self, failures: int, tasks: int, concurrency: int) -> None:
        """Run a round, and read the worker's CPU time."""
        before = cpu_seconds(self._worker_pid)
        await self._run(tasks, concurrency, lambda name: failing(failures, name))
        took = cpu_seconds(self._worker_pid) - before
        self.cost.cpu_seconds.setdefault(failures, []).append(took / tasks)

    async def _run(self, tasks: int, concurrency: int, prompt: Callable[[str], str]) -> list[str]:
        ids = [uuid4().hex for _ in range(tasks)]
        remaining = iter(ids)

        async def run_some() -> None:
            for name in remaining:
                given = self.side.make_input(prompt(name))
                await self._client.execute_workflow(
                    self.side.workflow, given, id=name, task_queue=self.side.name
                )

        await asyncio.gather(*(run_some() for _ in range(concurrency)))
        return ids

    async def _heartbeats(self) -> int:
        def get() -> str:
            with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=10) as response:
                text: str = response.read().decode()
                return text

        await asyncio.sleep(0.1)  # the SDK sends a heartbeat in the background
        counted = re.findall(
            r'^temporal_request(?:_total)?\{[^}]*operation="RecordActivityTaskHeartbeat"[^}]*\} (\d+)',
            await asyncio.to_thread(get),
            re.MULTILINE,
        )
        return sum(map(int, counted))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attempts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, rounds=3, quick="1 round of 4 tasks")
    parser.add_argument("--tasks", type=positive, default=40, help="in a round (default: 40)")
    parser.add_argument("--concurrency", type=positive, default=20, help="at the same time (default: 20)")
    parser.add_argument("--work", nargs=6, help=argparse.SUPPRESS)  # be a worker
    options = parser.parse_args()
    if options.work:
        side, pushed, *rest = options.work
        asyncio.run(_work(side, *rest, pushed=pushed == "pushed"))
        return
    if options.quick:
        options.rounds, options.tasks, options.concurrency = 1, 4, 2
    asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> None:
    begin = time.monotonic()
    costs: list[Cost] = []
    for pushed in (True, False):
        settings = {**EXACT_TIMERS, **dict.fromkeys(PUSHED_CANCELS, pushed)}
        async with embedded_temporal(ui=False, dynamic_config=settings) as server:
            client = await Client.connect(server.address)
            info = await client.workflow_service.get_system_info(GetSystemInfoRequest())
            load = f"{options.rounds} rounds of {options.tasks} tasks, {options.concurrency} at the same time"
            facts = known(info.server_version, load=load)
            if pushed:
                print_facts(facts)
            async with _benches(client, server.address, pushed=pushed) as benches:
                await _measure(benches, options)
            costs += [bench.cost for bench in benches]
    costs.sort(key=lambda cost: [side.name for side in SIDES].index(cost.side))
    print(table(costs))
    print(f"\nTook {time.monotonic() - begin:.0f} s.")
    save(options.json, facts, {"attempt-costs": table(costs)}, {"costs": [asdict(cost) for cost in costs]})


async def _measure(benches: Sequence[Bench], options: argparse.Namespace) -> None:
    for bench in benches:
        for failures in (0, FAILURES):
            await bench.look(failures)
    await asyncio.gather(*(bench.beat(min(10, options.tasks)) for bench in benches))
    for _ in range(options.rounds):
        for bench in benches:
            for failures in (0, FAILURES):
                await bench.measure(failures, options.tasks, options.concurrency)


@asynccontextmanager
async def _benches(client: Client, address: str, *, pushed: bool) -> AsyncIterator[list[Bench]]:
    """Start the provider and the four workers."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tasquencer-bench-"))
        provider = await stack.enter_async_context(module_running("the provider", "benchmarks.provider"))
        benches = []
        for side in SIDES:
            metrics = f"127.0.0.1:{free_port()}"
            ledger = f"sqlite:///{Path(folder) / f'{side.name}.db'}"
            worker = await stack.enter_async_context(
                module_running(
                    f"the worker of {side.name}",
                    "benchmarks.attempts",
                    *("--work", side.name, "pushed" if pushed else "by-heartbeat"),
                    *(address, f"{provider.last_line()}/v1", ledger, metrics),
                )
            )
            benches.append(Bench(client, side, worker.pid, metrics, Cost(side.name, pushed)))
        yield benches


class Asking:
    """The AI call as people write it on plain Temporal, with heartbeats."""

    def __init__(self, client: openai.AsyncOpenAI, interval: timedelta) -> None:
        self._client = client
        self._interval = interval

    @activity.defn(name="ask")
    async def ask(self, prompt: str) -> str:
        beating = asyncio.create_task(self._beat())
        try:
            completion = await self._client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": prompt}]
            )
        finally:
            beating.cancel()
        return completion.choices[0].message.content or ""

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._interval.total_seconds())
            activity.heartbeat()


def _plugin(side: str, ledger: SqlLedger, calls: AiCalls) -> TasquencerPlugin:
    if side == "observed":
        return TasquencerPlugin(ledger, observe_activities=["ask"])
    if side == "adopted":
        return TasquencerPlugin(ledger, adopt_activities=["ask"])
    return TasquencerPlugin(ledger, calls=calls)


async def _work(side: str, address: str, base_url: str, ledger: str, metrics: str, *, pushed: bool) -> None:
    """Be the worker of a side until the process is killed."""
    interval = heartbeat_interval(HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT, pushed=pushed)
    async with make_client(api_key="not-needed", base_url=base_url) as provider:
        plugins = [] if side == "native" else [_plugin(side, SqlLedger(ledger), AiCalls(provider, MODEL))]
        client = await Client.connect(address, plugins=plugins, runtime=worker_runtime(metrics))
        is_task = side == "task"
        worker = Worker(
            client,
            task_queue=side,
            workflows=[AiAgentTask if is_task else BareAsk],
            activities=[] if is_task else [Asking(provider, interval).ask],
            max_concurrent_activities=100,
            sticky_queue_schedule_to_start_timeout=STICKY_TIMEOUT,
            max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
            default_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        )
        async with worker:
            while not worker.is_running:  # it opens its ledger first
                await asyncio.sleep(0.01)
            print("ready", flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    main()
