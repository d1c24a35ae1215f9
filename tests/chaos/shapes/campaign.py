"""A campaign: programs run while their workers die, and everything that anybody knows of them is gathered."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle, WorkflowQueryFailedError
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError

from tasquencer.core.work_item import WorkItem
from tasquencer.sql import SqlLedger
from tasquencer.sql.databases import Database, database_at
from tasquencer.temporal import data_converter
from tests.chaos.events import Events
from tests.chaos.ledger_rows import ended_since, read_ledger
from tests.chaos.parts import Postgres, Temporal
from tests.chaos.shapes.people import People
from tests.chaos.shapes.program import CONSTRUCTS, Program, program_of
from tests.chaos.shapes.witnesses import ShapeAccount, kept_in_caches, read_requests, read_runs
from tests.chaos.shapes.worker import QUEUE
from tests.chaos.shapes.workers import SHAPES, Reaper, ShapeWorker

__all__ = ["Campaign", "ShapeOptions", "Stage", "end_of", "run_shapes", "stage_of", "watch"]

_AT_ONCE = 10
_SOON = {"limit.historyCount.suggestContinueAsNew": 60}
_TASK_TIMEOUT = timedelta(seconds=3)
_SNAP_SECONDS = 0.5
_QUERY = timedelta(seconds=10)


@dataclass(frozen=True)
class ShapeOptions:
    """What to run.

    Attributes:
        seed: The seed of the first program. The others' count up from it.
        caches: For each worker, how many workflows it keeps in memory.
        gap_seconds: The mean time from one death to the next.
        patience_seconds: How long a task may stand still after the last worker's death.
        call_seconds: See `Program`.
        longest_backoff: Seconds before a first retry, at most.
    """

    seed: int = 1
    tasks: int = 1000
    deaths: int = 200
    constructs: Sequence[str] = CONSTRUCTS
    caches: Sequence[int] = (1000, 2)
    ledger: str = "sqlite"
    gap_seconds: float = 1.0
    patience_seconds: float = 40.0
    call_seconds: float = 5.0
    longest_backoff: float = 2.0

    def programs(self) -> list[Program]:
        """Which these are."""
        programs = [program_of(self.seed + number, self.constructs) for number in range(self.tasks)]
        return [
            replace(
                program,
                call_seconds=self.call_seconds,
                backoff=min(program.backoff, self.longest_backoff),
            )
            for program in programs
        ]


@dataclass
class Campaign:
    """What came of it."""

    options: ShapeOptions
    accounts: list[ShapeAccount]
    events: Events
    seconds: float
    deaths: int
    looks: int


@dataclass
class Stage:
    """The parts that run.

    Attributes:
        glance: See `tests.chaos.provider.glance_at`.
    """

    options: ShapeOptions
    folder: Path
    client: Client
    ledger: Database
    glance: str
    workers: list[ShapeWorker]
    events: Events
    faults_over: asyncio.Event = field(default_factory=asyncio.Event)
    sightings: dict[str, WorkItem] = field(default_factory=dict)


async def run_shapes(
    options: ShapeOptions, folder: Path, programs: Sequence[Program] | None = None
) -> Campaign:
    """Run the options' programs, or those given, to their ends; logs and ledger stay in the folder."""
    begin = time.monotonic()
    programs = options.programs() if programs is None else programs
    async with stage_of(options, folder) as stage:
        reaper = Reaper(stage.workers, random.Random(f"deaths {options.seed}"), options.gap_seconds)
        dying = asyncio.create_task(reaper.work(options.deaths))
        watching = asyncio.create_task(watch(stage))
        places = asyncio.Semaphore(_AT_ONCE)
        tasks = [asyncio.create_task(_task(stage, program, places)) for program in programs]

        async def until_calm() -> None:
            await dying
            stage.faults_over.set()

        calm = asyncio.create_task(until_calm())
        people = await asyncio.gather(*tasks)
        dying.cancel()
        calm.cancel()
        watching.cancel()
        for one in (dying, calm, watching):
            with suppress(asyncio.CancelledError):
                await one
        accounts = await _accounts(stage, people)
        deaths = sum(worker.deaths for worker in stage.workers)
    return Campaign(
        options=options,
        accounts=accounts,
        events=stage.events,
        seconds=time.monotonic() - begin,
        deaths=deaths,
        looks=sum(one.looks for one, _ in people),
    )


@asynccontextmanager
async def stage_of(
    options: ShapeOptions, folder: Path, module: str = SHAPES, more: Mapping[str, str] | None = None
) -> AsyncIterator[Stage]:
    """Run the parts for the length of the block.

    Args:
        module: The workers' program.
        more: Variables of its environment.
    """
    events = Events()
    async with AsyncExitStack() as stack:
        temporal = Temporal(folder, _SOON if "continue_as_new" in options.constructs else {})
        stack.push_async_callback(temporal.stop)
        await temporal.start()
        file = folder / "ledger.db"
        url, glance = f"sqlite:///{file}", str(file)
        if options.ledger == "postgresql":
            postgres = Postgres(folder)
            stack.push_async_callback(postgres.stop)
            await postgres.create()
            url = glance = postgres.url()
        async with SqlLedger(url):  # makes the schema, before the workers would do that together
            pass
        workers = []
        for number, cache in enumerate(options.caches):
            environment = {
                "SHAPES_TEMPORAL": temporal.address,
                "SHAPES_LEDGER": url,
                "SHAPES_GLANCE": glance,
                "SHAPES_CACHE": str(cache),
                **(more or {}),
            }
            worker = ShapeWorker(f"worker-{number}", folder, environment, events, module)
            stack.push_async_callback(worker.end)
            workers.append(worker)
        await asyncio.gather(*(worker.start() for worker in workers))
        ledger = database_at(url)
        stack.push_async_callback(ledger.close)
        quiet = LoggingConfig(filter=TelemetryFilter(core_level="OFF", other_level="OFF"))
        runtime = Runtime(telemetry=TelemetryConfig(logging=quiet))
        client = await Client.connect(temporal.address, data_converter=data_converter, runtime=runtime)
        yield Stage(options, folder, client, ledger, glance, workers, events)


async def _task(stage: Stage, program: Program, places: asyncio.Semaphore) -> tuple[People, str]:
    """Run one program to its end, or until patience is over; the run that it began with beside its people."""
    async with places:
        handle = await stage.client.start_workflow(
            "AnyShape",
            program.as_json(),
            id=f"{program.name}-{os.urandom(3).hex()}",
            task_queue=QUEUE,
            task_timeout=_TASK_TIMEOUT,
        )
        first = handle.first_execution_run_id or ""
        people = People(stage.client, program, stage.client.get_workflow_handle(handle.id))
        going = [asyncio.create_task(people.act(act)) for act in program.acts]
        looking = asyncio.create_task(people.look()) if program.looked_at else None
        try:
            last_act, begin = max((act.at for act in program.acts), default=0.0), time.monotonic()
            await end_of(
                stage,
                people.handle,
                lambda: len(people.replies) == len(program.acts) or time.monotonic() - begin > last_act + 30,
            )
        finally:
            if looking is not None:
                looking.cancel()
            for one in going:
                one.cancel()
            await asyncio.gather(*going, *([looking] if looking else []), return_exceptions=True)
        return people, first


async def end_of(stage: Stage, handle: WorkflowHandle[Any, Any], acted: Callable[[], bool]) -> None:
    """Return once the task has ended and been acted on, or has stood still for as long as patience lasts."""
    still_since = time.monotonic()
    seen = (0, "")
    while True:
        await asyncio.sleep(0.2)
        with suppress(RPCError):
            described = await handle.describe()
            if (described.history_length, described.run_id) != seen or not stage.faults_over.is_set():
                seen, still_since = (described.history_length, described.run_id), time.monotonic()
            if described.status is not WorkflowExecutionStatus.RUNNING and acted():
                return
        if time.monotonic() - still_since > stage.options.patience_seconds:
            return


async def watch(stage: Stage) -> None:
    """Note work items that have ended, as they are seen first."""
    while True:
        await asyncio.sleep(_SNAP_SECONDS)
        with suppress(*stage.ledger.outages):
            for item in await ended_since(stage.ledger, stage.sightings.keys()):
                stage.sightings[item.id] = item


async def _answer(people: People) -> tuple[Any, str]:
    """What the task says of its work items, or None and why it does not say it."""
    reason = ""
    for _ in range(3):
        try:
            return await people.handle.query("work_items", rpc_timeout=_QUERY), ""
        except RPCError as error:  # a busy machine, as a rule
            reason = f"RPCError: {error}"
        except WorkflowQueryFailedError as error:
            return None, f"WorkflowQueryFailedError: {error}"[:300]
    return None, reason[:300]


async def _accounts(stage: Stage, people: Sequence[tuple[People, str]]) -> list[ShapeAccount]:
    requests = read_requests(stage.folder / "requests.jsonl")
    deaths = [event.at for event in stage.events]
    answers: dict[str, tuple[Any, str]] = {}
    for one, _ in people:
        answers[one.handle.id] = await _answer(one)
    rows = await read_ledger(stage.ledger)
    kept = kept_in_caches(stage.folder.glob("*.log"))
    accounts = []
    for one, first in people:
        task_id = one.handle.id
        runs, left = await read_runs(stage.client, task_id, first, one.made_runs)
        items = rows.items.get(task_id, [])
        begin = min((item.created_at for item in items), default=datetime.now(UTC))
        accounts.append(
            ShapeAccount(
                program=one.program,
                task_id=task_id,
                runs=runs,
                left_runs=left,
                items=items,
                transitions={item.id: rows.transitions[item.id] for item in items},
                requests=requests.get(task_id, []),
                sightings=[item for item in stage.sightings.values() if item.task_id == task_id],
                superseded=[held for item in items for held in rows.superseded.get(item.id, ())],
                listed=answers[task_id][0],
                query_error=answers[task_id][1],
                deaths=[at for at in deaths if at >= begin - timedelta(seconds=5)],
                kept=kept,
                replies=one.replies,
            )
        )
    return accounts
