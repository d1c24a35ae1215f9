"""A run: starts the parts and the tasks, lets the nemesis loose, and gathers the accounts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from temporalio import exceptions
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import (
    ApplicationError,
    CancelledError,
    TerminatedError,
    WorkflowAlreadyStartedError,
)
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError

from tasquencer.batch.rows import task_id_of
from tasquencer.core.work_item import WorkItem
from tasquencer.devkit.processes import free_port
from tasquencer.settings import DEFAULT_TASK_QUEUE
from tasquencer.sql import SqlLedger
from tasquencer.sql.databases import Database, database_at
from tasquencer.temporal import data_converter
from tasquencer.temporal.batch_calls import BATCH_WORKFLOW
from tasquencer.temporal.reconciling import Reconciliation
from tasquencer.temporal.schedules import RECONCILE_WORKFLOW
from tests.chaos.accounts import Account, BatchAccount, TaskRun, calls_in, make_account
from tests.chaos.events import BUSY, Events
from tests.chaos.histories import read_history
from tests.chaos.ledger_rows import ended_since, read_ledger
from tests.chaos.nemesis import Nemesis
from tests.chaos.operators import Handle, Operators
from tests.chaos.parts import Postgres, Provider, Temporal
from tests.chaos.plan import Options, TaskPlan, plan_faults, plan_rows, plan_tasks
from tests.chaos.wire import Wire
from tests.chaos.workers import WorkerPart
from tests.support.batches import filled_batch
from tests.support.patience import PATIENCE_SECONDS

__all__ = ["Outcome", "run"]

_AT_ONCE = 30
"""Tasks under way at once, at most."""

_ROWS_AT_ONCE = 4
"""Of the batch."""

_ALL = 2**30
"""Bytes of the rows of a page."""

_LEAD = 12
"""So many tasks are started ahead of the faults."""

_AGAIN_SECONDS = 0.3

_GRACE_SECONDS = 2.0
"""The reconciler leaves alone what has ended later."""

_RECONCILED_WITHIN = timedelta(seconds=PATIENCE_SECONDS)

_NAP_SECONDS = 0.1

_BUSY_SECONDS = 0.5
"""A machine that is this late for a nap, or takes this time to write a small file, counts as busy."""

_ANSWERED_SECONDS = 60
"""An action on a task has its answer this time after the task's end. Temporal's long polls take 20 s."""


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        rss: Memory of each worker in MB, once a second, with the time and the process.
        cached: How many workflows the witness kept in memory, at the same times.
        sightings: How many work items were seen ended while it ran.
        unlooked: How many requests arrived while the provider could not look into the ledger.
        reconciled: What the reconciler did at the end.
        batch: None: there was none.
    """

    options: Options
    accounts: Sequence[Account]
    events: Events
    rss: Mapping[str, Sequence[tuple[datetime, int, float]]]
    cached: Sequence[int]
    seconds: float
    sightings: int
    unlooked: int
    reconciled: Reconciliation
    batch: BatchAccount | None


@dataclass
class _Stage:
    options: Options
    folder: Path
    client: Client
    ledger_url: str
    ledger: Database
    nemesis: Nemesis
    events: Events
    provider: Provider
    sightings: dict[str, WorkItem] = field(default_factory=dict)
    runs: list[TaskRun] = field(default_factory=list)


async def run(options: Options, folder: Path) -> Outcome:
    """Carry the plan out; everything that was written on the way stays in the folder."""
    begin = time.monotonic()
    async with _stage(options, folder) as stage:
        rows = plan_rows(options)
        if rows:
            await _start_batch(stage, rows)
        watching = asyncio.gather(_watch(stage), _watch_machine(stage))
        faults = asyncio.create_task(stage.nemesis.work(plan_faults(options), options.faults))
        await _work(stage, faults, rows)
        await faults
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        reconciled = await _reconcile(stage)
        accounts = await _accounts(stage)
        batch = await _batch_account(stage, rows, accounts) if rows else None
    stage.events.save(folder / "events.jsonl")
    return Outcome(
        options=options,
        accounts=accounts,
        events=stage.events,
        rss={worker.name: worker.rss for worker in stage.nemesis.workers},
        cached=[count for worker in stage.nemesis.workers for count in worker.cached],
        seconds=time.monotonic() - begin,
        sightings=len(stage.sightings),
        unlooked=sum(call.held is None for account in accounts for call in account.story.calls),
        reconciled=reconciled,
        batch=batch,
    )


@asynccontextmanager
async def _stage(options: Options, folder: Path) -> AsyncIterator[_Stage]:
    events, disk_full = Events(), folder / "disk-full"
    async with AsyncExitStack() as stack:
        temporal = Temporal(folder)
        stack.push_async_callback(temporal.stop)
        await temporal.start()
        postgres = None
        if options.is_postgres:
            postgres = Postgres(folder)
            stack.push_async_callback(postgres.stop)
            await postgres.create()
        file = folder / "ledger.db"
        ledger_url = f"sqlite:///{file}" if postgres is None else postgres.url()
        provider = await stack.enter_async_context(
            Provider.running(options.seed, folder, str(file) if postgres is None else ledger_url)
        )
        workers = []
        names = [f"worker {number}" for number in range(options.workers)]
        for name in [*names, *(["witness"] if options.witness else [])]:
            wires = {
                "temporal": await stack.enter_async_context(Wire(temporal.port)),
                "provider": await stack.enter_async_context(Wire(provider.port)),
            }
            url = ledger_url
            if postgres is not None:
                wires["postgres"] = await stack.enter_async_context(Wire(postgres.port))
                url = postgres.url(wires["postgres"].port)
            environment = {"TASQ_DATABASE_URL": url, "CHAOS_DISK_FULL": str(disk_full)}
            if name == "witness":
                environment["TASQ_METRICS_ADDRESS"] = f"127.0.0.1:{free_port()}"
            worker = WorkerPart(name, folder, wires, environment, events)
            stack.push_async_callback(worker.end)
            workers.append(worker)
        await asyncio.gather(*(worker.start() for worker in workers))
        ledger = database_at(ledger_url)
        stack.push_async_callback(ledger.close)
        client = await Client.connect(
            temporal.address, data_converter=data_converter, runtime=_quiet_runtime()
        )
        nemesis = Nemesis(temporal, workers, events, disk_full, postgres)
        yield _Stage(options, folder, client, ledger_url, ledger, nemesis, events, provider)


def _quiet_runtime() -> Runtime:
    """Without a warning for each request that finds the server killed."""
    quiet = LoggingConfig(filter=TelemetryFilter(core_level="ERROR", other_level="ERROR"))
    return Runtime(telemetry=TelemetryConfig(logging=quiet))


async def _start_batch(stage: _Stage, rows: Sequence[TaskPlan]) -> None:
    batch_id = _batch_id(stage)
    async with SqlLedger(stage.ledger_url) as ledger:
        await filled_batch(ledger.batches, batch_id, {plan.name: plan.request for plan in rows})
    await stage.client.start_workflow(
        BATCH_WORKFLOW, {"concurrency": _ROWS_AT_ONCE}, id=batch_id, task_queue=DEFAULT_TASK_QUEUE
    )


def _batch_id(stage: _Stage) -> str:
    return f"chaos-{stage.options.seed}-batch"


async def _follow_batch(stage: _Stage, rows: Sequence[TaskPlan], going: list[asyncio.Task[None]]) -> None:
    """Take part in the task of each row as soon as there is one; they begin in this order."""
    for plan in rows:
        task_id = task_id_of(_batch_id(stage), plan.name)
        handle: Handle = stage.client.get_workflow_handle(task_id)
        while True:
            try:
                await handle.describe()
                break
            except RPCError:
                await asyncio.sleep(_AGAIN_SECONDS)
        going.append(asyncio.create_task(_task(stage, plan, task_id, handle)))


async def _batch_account(
    stage: _Stage, rows: Sequence[TaskPlan], accounts: Sequence[Account]
) -> BatchAccount:
    batch_id = _batch_id(stage)
    result = None
    with suppress(TimeoutError, WorkflowFailureError):
        async with asyncio.timeout(_ANSWERED_SECONDS):
            result = await stage.client.get_workflow_handle(batch_id).result()
    async with SqlLedger(stage.ledger_url) as ledger:
        page = {"after": -1, "limit": len(rows), "most_bytes": _ALL}
        answers = await ledger.batches.answers(batch_id, order="position", **page)
        others = await ledger.batches.unanswered(batch_id, **page)
    history = await read_history(stage.client, batch_id)
    _, query_error = await _answer(stage.client.get_workflow_handle(batch_id), "progress")
    states = {account.story.task_id: account.history.state for account in accounts}
    ended = {plan.name: states.get(task_id_of(batch_id, plan.name), "missing") for plan in rows}
    recorded = {row.row_id: row.state.value for row in others}
    recorded |= {row.row_id: "completed" for row in answers}
    return BatchAccount(result, recorded, ended, history, query_error)


async def _work(stage: _Stage, faults: asyncio.Task[None], rows: Sequence[TaskPlan]) -> None:
    """Start the tasks, in step with the faults, and wait for their ends, or until time is up."""
    places = asyncio.Semaphore(_AT_ONCE)
    going: list[asyncio.Task[None]] = []
    options = stage.options
    following = asyncio.create_task(_follow_batch(stage, rows, going))
    for number, plan in enumerate(plan_tasks(options)):
        while number > _LEAD + options.tasks * stage.nemesis.done / max(options.faults, 1):
            if faults.done():
                break
            await asyncio.sleep(0.05)
        await places.acquire()
        task = asyncio.create_task(_task(stage, plan, task_id=_task_id(stage, plan)))
        task.add_done_callback(lambda _: places.release())
        going.append(task)
    await faults
    with suppress(TimeoutError):
        async with asyncio.timeout(options.patience_seconds):
            await following
            await asyncio.wait(going)
    for task in (following, *going):
        task.cancel()
    for error in await asyncio.gather(following, *going, return_exceptions=True):
        if isinstance(error, Exception):
            raise error


def _task_id(stage: _Stage, plan: TaskPlan) -> str:
    return f"chaos-{stage.options.seed}-{plan.name.replace(' ', '-')}"


async def _task(stage: _Stage, plan: TaskPlan, task_id: str, handle: Handle | None = None) -> None:
    """Start it, unless somebody has, and take part in it until it ends."""
    mine = TaskRun(plan, task_id, datetime.now(UTC))
    stage.runs.append(mine)
    if handle is None:
        handle = await _start(stage.client, plan, task_id)
    people = Operators(handle, stage.ledger)
    acting = [
        asyncio.create_task(people.act(operator, number)) for number, operator in enumerate(plan.operators)
    ]
    try:
        mine.outcome = await _outcome(handle)
        if acting:
            await asyncio.wait(acting, timeout=_ANSWERED_SECONDS)
    finally:
        for task in acting:
            task.cancel()
        await asyncio.gather(*acting, return_exceptions=True)
        mine.acts, mine.uncertain = people.acts, frozenset(people.uncertain)
        mine.terminated_because = people.terminated_because


async def _start(client: Client, plan: TaskPlan, task_id: str) -> Handle:
    while True:
        try:
            return await client.start_workflow(
                plan.workflow,
                plan.request,
                id=task_id,
                task_queue=DEFAULT_TASK_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                run_timeout=None
                if plan.run_timeout_seconds is None
                else timedelta(seconds=plan.run_timeout_seconds),
            )
        except WorkflowAlreadyStartedError:  # and the answer was lost
            return client.get_workflow_handle(task_id)
        except RPCError:
            await asyncio.sleep(_AGAIN_SECONDS)


async def _outcome(handle: Handle) -> tuple[str, Mapping[str, Any], str, str]:
    while True:
        try:
            return "completed", await handle.result(), "", ""
        except WorkflowFailureError as error:
            if isinstance(error.cause, CancelledError):
                return "canceled", {}, "", ""
            if isinstance(error.cause, TerminatedError):
                return "terminated", {}, "", ""
            if isinstance(error.cause, exceptions.TimeoutError):
                return "timed out", {}, "", ""
            kind = error.cause.type if isinstance(error.cause, ApplicationError) else None
            return "failed", {}, kind or type(error.cause).__name__, getattr(error.cause, "message", "")
        except RPCError:
            await asyncio.sleep(_AGAIN_SECONDS)


async def _watch(stage: _Stage) -> None:
    """Note what is seen of ended work items, and of the workers' memory."""
    while True:
        await asyncio.sleep(1)
        for worker in stage.nemesis.workers:
            await worker.sample()
        with suppress(*stage.ledger.outages):
            for item in await ended_since(stage.ledger, stage.sightings.keys()):
                stage.sightings[item.id] = item


async def _watch_machine(stage: _Stage) -> None:
    """Note when the machine keeps everybody waiting: that excuses what it makes late."""
    file = stage.folder / "nap"
    while True:
        begin = datetime.now(UTC)
        if await asyncio.to_thread(_delay, file) > _BUSY_SECONDS:
            event = stage.events.begin(BUSY)
            event.at = begin
            stage.events.end(event)


def _delay(file: Path) -> float:
    """How late one is after a nap, or how long a small file takes to be written: the longer of the two."""
    begin = time.monotonic()
    time.sleep(_NAP_SECONDS)
    woken = time.monotonic()
    with file.open("wb") as written:
        written.write(b"awake")
        written.flush()
        os.fsync(written.fileno())
    return max(woken - begin - _NAP_SECONDS, time.monotonic() - woken)


async def _reconcile(stage: _Stage) -> Reconciliation:
    """Have the workers settle what tasks have left open that were cut off."""
    await asyncio.sleep(_GRACE_SECONDS)
    return await stage.client.execute_workflow(
        RECONCILE_WORKFLOW,
        {"grace_seconds": _GRACE_SECONDS},
        id="chaos-reconcile",
        task_queue=DEFAULT_TASK_QUEUE,
        result_type=Reconciliation,
        execution_timeout=_RECONCILED_WITHIN,
    )


async def _answer(handle: Handle, query: str) -> tuple[Any, str]:
    """Return a workflow's own answer, or None and the reason why it gives none."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await handle.query(query), ""
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the workflow's account
        return None, f"{type(error).__name__}: {error}"[:600]


async def _accounts(stage: _Stage) -> list[Account]:
    last = stage.events.end_of_faults() or datetime.now(UTC)
    slots = asyncio.Semaphore(8)

    async def look(task: TaskRun) -> None:
        async with slots:
            handle: Handle = stage.client.get_workflow_handle(task.task_id)
            task.listed, task.query_error = await _answer(handle, "work_items")

    await asyncio.gather(*(look(task) for task in stage.runs))
    rows = await read_ledger(stage.ledger)
    calls = calls_in(stage.provider.log)
    seen: dict[str, list[WorkItem]] = {}
    for item in stage.sightings.values():
        seen.setdefault(item.task_id, []).append(item)
    events = list(stage.events)
    return [
        make_account(
            task,
            await read_history(stage.client, task.task_id),
            rows,
            calls.get(task.plan.name, []),
            seen.get(task.task_id, []),
            events,
            last,
        )
        for task in stage.runs
    ]
