"""Rounds of tasks against the worker process, and what each round cost."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
from temporalio.client import Client

from benchmarks.bare import BACKOFF, HEARTBEAT_TIMEOUT, MAX_RETRIES
from benchmarks.processes import cpu_seconds, module_running
from benchmarks.provider import failing, waiting
from tasquencer.devkit.temporal_server import embedded_temporal

__all__ = [
    "BARE_QUEUE",
    "COMPARISONS",
    "EXACT_TIMERS",
    "TASK_QUEUE",
    "UNRECORDED_QUEUE",
    "Bench",
    "Comparison",
    "Round",
    "Side",
    "as_request",
    "running",
]

TASK_QUEUE = "ai-agent"
UNRECORDED_QUEUE = "ai-agent-unrecorded"
BARE_QUEUE = "bare"

EXACT_TIMERS = {"history.timerProcessorMaxTimeShift": "10ms"}
"""By default the server fires a timer and a native retry alike up to a second late (measured: 0.95 s at the
median for both). So a backoff of 50 ms takes a second on both sides, in which the machine is idle; with this
setting the work counts, not the wait."""


@dataclass(frozen=True)
class Side:
    """One of the ways to do the work.

    Attributes:
        aim: What our throughput divided by this side's should be at least, if that is an aim of its own.
    """

    name: str
    workflow: str
    task_queue: str
    make_input: Callable[[str], Any]
    aim: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Ways to do the same work; the first is the yardstick, the second what has to come close to it.

    Attributes:
        failures: How often each prompt fails before it is answered.
        aim: What the second side's throughput divided by the yardstick's should be at least.
        latency_aim: How many seconds longer a task of the second side should take at most.
        at_once: Tasks under way at once, where that is not for the options to say.
        pause_seconds: From the end of a task to the start of the next. One right after the other, they come
            to take 100 ms each on all sides: the worker polls no faster, and nothing else is seen.
        prompts: In one task; with more than one, a round is one task.
    """

    name: str
    title: str
    failures: int
    sides: tuple[Side, ...]
    aim: float | None = None
    latency_aim: float | None = None
    at_once: int | None = None
    pause_seconds: float = 0.0
    server_settings: Mapping[str, str] = field(default_factory=dict)
    prompts: int = 1

    def tasks(self, wanted: int) -> int:
        """Return the number of tasks of a round: the wanted number, or a quarter of it if each takes long."""
        if self.prompts > 1:
            return 1
        return max(1, wanted // 4) if self.failures or self.pause_seconds else wanted


@dataclass(frozen=True)
class Round:
    """What one round of one side took; the CPU times are of the whole round, in seconds."""

    tasks: int
    seconds: float
    latency_seconds: float
    worker_cpu_seconds: float
    server_cpu_seconds: float

    @property
    def tasks_per_second(self) -> float:
        return self.tasks / self.seconds


def as_request(prompt: str) -> dict[str, Any]:
    """The request of an `AiAgentTask` that retries as the yardstick does."""
    retry = {"initial_interval_seconds": BACKOFF.total_seconds(), "backoff_coefficient": 1}
    heartbeat = HEARTBEAT_TIMEOUT.total_seconds()
    return {
        "prompt": prompt,
        "max_retries": MAX_RETRIES,
        "retry": retry,
        "heartbeat_timeout_seconds": heartbeat,
    }


_TASK = Side("AiAgentTask, ledger on SQLite", "AiAgentTask", TASK_QUEUE, as_request)
_UNRECORDED = Side("AiAgentTask, no ledger", "AiAgentTask", UNRECORDED_QUEUE, as_request)


FAN_OUT_PROMPTS = 500
FAN_OUT_CONCURRENCY = 50
FAN_OUT_MILLISECONDS = 100


def _many(name: str) -> dict[str, Any]:
    prompts = [waiting(FAN_OUT_MILLISECONDS, f"{name} {number}") for number in range(FAN_OUT_PROMPTS)]
    return {"prompts": prompts, "concurrency": FAN_OUT_CONCURRENCY}


def _bare(name: str, workflow: str = "BareAsk", aim: float | None = None) -> Side:
    return Side(name, workflow, BARE_QUEUE, lambda prompt: prompt, aim)


_FAILURES = f"two failures, {BACKOFF.total_seconds() * 1000:g} ms backoff"
_RETRIES = (_bare("Temporal's native retry"), _TASK)

COMPARISONS = (
    Comparison(
        "A",
        "no failures",
        0,
        (
            _bare("workflow with one activity"),
            _TASK,
            _UNRECORDED,
            _bare("rows written, in the activity", "AskInActivity"),
            _bare("rows written, an activity for each write", "AskBetweenActivities", aim=1.5),
        ),
        aim=0.95,
    ),
    Comparison("B", f"{_FAILURES}, the server as released (timers up to 1 s late)", 2, _RETRIES, aim=0.90),
    Comparison("C", f"{_FAILURES}, the server's timers exact", 2, _RETRIES, server_settings=EXACT_TIMERS),
    Comparison(
        "D",
        f"{FAN_OUT_PROMPTS} prompts in one task, {FAN_OUT_CONCURRENCY} at once, a provider that takes "
        f"{FAN_OUT_MILLISECONDS} ms",
        0,
        (
            Side("workflow with as many activities", "BareFanOut", BARE_QUEUE, _many),
            Side("AiFanOutTask, ledger on SQLite", "AiFanOutTask", TASK_QUEUE, _many),
        ),
        aim=1 / 1.3,
        prompts=FAN_OUT_PROMPTS,
    ),
    Comparison(
        "L",
        "no failures, one task at a time",
        0,
        (_bare("workflow with one activity"), _TASK, _UNRECORDED),
        latency_aim=0.005,
        at_once=1,
        pause_seconds=0.2,
    ),
)


class Bench:
    """The processes that a round needs, running."""

    def __init__(self, client: Client, worker_pid: int, server_pid: int, origin: str, ledger: Path) -> None:
        self.client = client
        self.worker_pid = worker_pid
        self.server_pid = server_pid
        self._origin = origin
        self.ledger = ledger

    async def server_version(self) -> str:
        info = await self.client.workflow_service.get_system_info(GetSystemInfoRequest())
        return info.server_version

    async def round(self, side: Side, comparison: Comparison, tasks: int, concurrency: int) -> Round:
        """Run tasks, a limited number at a time, and check that each made exactly the expected requests."""
        failures, prompts = comparison.failures, comparison.prompts
        requests, recorded = await self._requests(), self._recorded()
        name, numbers, latencies = uuid4().hex, iter(range(tasks)), []

        async def run_some() -> None:
            for number in numbers:
                begin = time.perf_counter()
                await self.client.execute_workflow(
                    side.workflow,
                    side.make_input(failing(failures, f"{name}-{number}")),
                    id=f"{name}-{number}",
                    task_queue=side.task_queue,
                )
                latencies.append(time.perf_counter() - begin)
                await asyncio.sleep(comparison.pause_seconds)

        worker, server = cpu_seconds(self.worker_pid), cpu_seconds(self.server_pid)
        begin = time.perf_counter()
        await asyncio.gather(*(run_some() for _ in range(concurrency)))
        seconds = time.perf_counter() - begin
        worker, server = cpu_seconds(self.worker_pid) - worker, cpu_seconds(self.server_pid) - server

        made = {key: count - requests[key] for key, count in (await self._requests()).items()}
        expected = {"answered": tasks * prompts, "failed": tasks * failures}
        assert made == expected, f"{side.name}: expected {expected} requests, the provider counted {made}"
        if side.task_queue == TASK_QUEUE:
            new, due = self._recorded() - recorded, tasks * prompts * (failures + 1)
            assert new == due, f"{side.name}: expected {due} settled work items in the ledger, found {new}"
        return Round(tasks, seconds, median(latencies), worker, server)

    async def _requests(self) -> dict[str, int]:
        def get() -> dict[str, int]:
            with urllib.request.urlopen(self._origin, timeout=10) as response:
                counts: dict[str, int] = json.load(response)
                return counts

        return await asyncio.to_thread(get)

    def _recorded(self) -> int:
        with sqlite3.connect(self.ledger) as connection:
            query = "SELECT count(*) FROM work_items WHERE state IN ('completed', 'failed')"
            count: int = connection.execute(query).fetchone()[0]
        connection.close()
        return count


@asynccontextmanager
async def running(server_settings: Mapping[str, str]) -> AsyncIterator[Bench]:
    """Temporal's dev server in memory, the provider and the worker, each a process of its own."""
    with tempfile.TemporaryDirectory(prefix="tasquencer-bench-") as folder:
        ledger = Path(folder) / "ledger.db"
        async with (
            embedded_temporal(ui=False, dynamic_config=server_settings) as temporal,
            module_running("the provider", "benchmarks.provider") as provider,
        ):
            origin = provider.last_line()
            options = ["--address", temporal.address, "--base-url", f"{origin}/v1"]
            options += ["--ledger", f"sqlite:///{ledger}", "--folder", folder]
            async with module_running("the worker", "benchmarks.worker", *options) as worker:
                client = await Client.connect(temporal.address)
                yield Bench(client, worker.pid, temporal.pid, origin, ledger)
