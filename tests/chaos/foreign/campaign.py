"""A campaign of foreign workflows and agents: they run while their workers die."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.worker import Replayer

from tasquencer.core.work_item import WorkItem
from tasquencer.temporal import TasquencerPlugin
from tasquencer.temporal.reconciling import Reconciliation
from tasquencer.temporal.schedules import RECONCILE_WORKFLOW
from tasquencer.testing import InMemoryLedger
from tests.chaos.foreign.application import HEARTBEAT_TIMEOUT, SEEN, TAKEN, Call, Mixed, Script
from tests.chaos.foreign.worker import ADOPTED, OBSERVED, RETRIES
from tests.chaos.ledger_rows import LedgerRows, read_ledger
from tests.chaos.provider import Glance, glance_at
from tests.chaos.shapes.campaign import ShapeOptions, Stage, end_of, stage_of, watch
from tests.chaos.shapes.program import Program
from tests.chaos.shapes.witnesses import ShapeAccount, read_runs
from tests.chaos.shapes.worker import QUEUE
from tests.chaos.shapes.workers import Reaper
from tests.support import answers
from tests.support.answers import Answer
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import ProviderRequest, ScriptedProvider
from workflows.ai_agent import AiAgentTask

__all__ = ["Execution", "ForeignAccount", "ForeignCampaign", "ForeignTask", "run_foreign", "task_of"]

_AT_ONCE = 10
_LEAD = 4
"""So many tasks are started ahead of the deaths."""

_TASK_TIMEOUT = timedelta(seconds=3)
_GRACE_SECONDS = 2.0
"""The reconciler leaves alone what has ended later."""


@dataclass(frozen=True)
class ForeignTask:
    """One task.

    Attributes:
        script: None: it is an agent.
        cancel_at: Seconds after its start; None: it is not canceled.
    """

    name: str
    script: Script | None
    cancel_at: float | None = None

    @property
    def retries(self) -> int:
        """Of each of its lineages."""
        return RETRIES if self.script is None else self.script.attempts - 1


@dataclass(frozen=True)
class Execution:
    """An execution of an activity or of a tool, or a request of the model.

    Attributes:
        key: Id of its work item.
        activity: Id of its activity; None: a request of the model.
        attempt: From 1, as Temporal gave it. 0: Temporal gave none.
        held: The states that the ledger knew of the work item then; None: nobody could look.
    """

    key: str
    what: str
    activity: str | None = None
    attempt: int = 0
    held: Sequence[str] | None = None


@dataclass
class ForeignAccount:
    """All that is known of one task.

    Attributes:
        known: Its runs, and its work items after the reconciler.
        left_open: Its work items that were open when the reconciler came.
        result: Of a completed foreign workflow.
        died: When the workers' processes were seen dead, by their ids.
    """

    task: ForeignTask
    known: ShapeAccount
    executions: Sequence[Execution] = ()
    left_open: Sequence[WorkItem] = ()
    result: Sequence[dict[str, Any] | None] = ()
    died: Mapping[str, datetime] = field(default_factory=dict)


@dataclass
class ForeignCampaign:
    """What came of it."""

    options: ShapeOptions
    accounts: list[ForeignAccount]
    reconciled: Reconciliation
    deaths: int
    seconds: float


@dataclass
class _Model:
    """The provider: an answer is decided by the request's key alone."""

    glance: Glance | None = None
    held: dict[str, Sequence[str] | None] = field(default_factory=dict)

    async def answer(self, request: ProviderRequest) -> Answer:
        key = request.idempotency_key or ""
        self.held[key] = await self.glance.states(key) if self.glance is not None else None
        dice = random.Random(key)
        await asyncio.sleep(dice.uniform(0, 0.6))
        turns = sum(message["role"] == "assistant" for message in request.body["messages"])
        kind = dice.random()
        if kind < 0.15:
            return answers.status(503)
        if kind < 0.2:
            return answers.rate_limited()
        if turns >= 3 or kind < 0.3:
            return answers.ok("Done.")
        names = dice.choices(["steady", "shaky"], k=dice.randint(1, 3))
        return answers.tools(*[(name, {}) for name in names])


def task_of(seed: int) -> ForeignTask:
    """The task that the seed stands for: one in three is an agent, half are canceled."""
    dice = random.Random(f"foreign {seed}")
    cancel_at = round(dice.uniform(0, 3), 3) if dice.random() < 0.5 else None
    if seed % 3 == 0:
        return ForeignTask(f"agent-{seed}", None, cancel_at)
    calls = [
        Call(activity, dice.choice([0, 0, 1, 2, 2, 4]), dice.choice([5, 50, 300, 800]))
        for activity in (SEEN, TAKEN)
        for _ in range(dice.randint(1, 3))
    ]
    dice.shuffle(calls)
    return ForeignTask(f"foreign-{seed}", Script(dice.randint(2, 5), calls), cancel_at)


async def run_foreign(options: ShapeOptions, folder: Path) -> ForeignCampaign:
    """Run the tasks to their ends; logs and ledger stay in the folder."""
    begin = time.monotonic()
    model = _Model()
    tasks = [task_of(options.seed + number) for number in range(options.tasks)]
    async with (
        ScriptedProvider(model.answer) as provider,
        stage_of(
            options, folder, "tests.chaos.foreign.worker", {"FOREIGN_PROVIDER": provider.base_url}
        ) as stage,
    ):
        model.glance = glance_at(stage.glance)
        reaper = Reaper(stage.workers, random.Random(f"deaths {options.seed}"), options.gap_seconds)
        watching = asyncio.create_task(watch(stage))
        dying = asyncio.create_task(reaper.work(options.deaths))
        dying.add_done_callback(lambda _: stage.faults_over.set())
        places = asyncio.Semaphore(_AT_ONCE)
        going = []
        for number, task in enumerate(tasks):
            # In step with the deaths, so that none comes too late.
            while number > _LEAD + (options.tasks - _LEAD) * reaper.done / max(options.deaths, 1):
                await asyncio.sleep(0.05)
            await places.acquire()
            going.append(asyncio.create_task(_carried_out(stage, task)))
            going[-1].add_done_callback(lambda _: places.release())
        handles = await asyncio.gather(*going)
        await dying
        await asyncio.sleep(2 * _GRACE_SECONDS)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        before = await read_ledger(stage.ledger)
        reconciled = await stage.client.execute_workflow(
            RECONCILE_WORKFLOW,
            {"grace_seconds": _GRACE_SECONDS},
            id="foreign-reconcile",
            task_queue=QUEUE,
            result_type=Reconciliation,
            execution_timeout=timedelta(seconds=PATIENCE_SECONDS),
        )
        after = await read_ledger(stage.ledger)
        executions = _executions(folder / "executions.jsonl")
        owners = {item.id: item.task_id for items in after.items.values() for item in items}
        for request in provider.requests:
            key = request.idempotency_key or ""
            # One without a work item counts as the first task's, so that the checks find it.
            task_id = owners.get(key, tasks[0].name)
            executions.setdefault(task_id, []).append(Execution(key, "model", held=model.held.get(key)))
        accounts = [
            await _account(stage, task, handle, before, after, executions)
            for task, handle in zip(tasks, handles, strict=True)
        ]
        deaths = sum(worker.deaths for worker in stage.workers)
    return ForeignCampaign(options, accounts, reconciled, deaths, time.monotonic() - begin)


async def _carried_out(stage: Stage, task: ForeignTask) -> WorkflowHandle[Any, Any]:
    request: Any = task.script
    if task.script is None:
        request = {
            "prompt": "?",
            "tools": ["steady", "shaky"],
            "max_turns": 6,
            "max_retries": RETRIES,
            "retry": {"initial_interval_seconds": 0.1},
            "heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT.total_seconds(),
            "attempt_timeout_seconds": 30,
        }
    handle = await stage.client.start_workflow(
        "AiAgentTask" if task.script is None else "Mixed",
        request,
        id=task.name,
        task_queue=QUEUE,
        task_timeout=_TASK_TIMEOUT,
    )

    async def cancel() -> None:
        if task.cancel_at is not None:
            await asyncio.sleep(task.cancel_at)
            await handle.cancel()

    canceling = asyncio.create_task(cancel())
    try:
        await end_of(stage, handle, lambda: True)
    finally:
        canceling.cancel()
        await asyncio.gather(canceling, return_exceptions=True)
    return handle


def _executions(log: Path) -> dict[str, list[Execution]]:
    found: dict[str, list[Execution]] = {}
    for line in log.read_text().splitlines():
        facts = json.loads(line)
        found.setdefault(facts.pop("task"), []).append(Execution(**facts))
    return found


async def _account(
    stage: Stage,
    task: ForeignTask,
    handle: WorkflowHandle[Any, Any],
    before: LedgerRows,
    after: LedgerRows,
    executions: dict[str, list[Execution]],
) -> ForeignAccount:
    replayer = Replayer(
        workflows=[Mixed, AiAgentTask],
        plugins=[TasquencerPlugin(InMemoryLedger(), observe_activities=OBSERVED, adopt_activities=ADOPTED)],
    )
    first = handle.first_execution_run_id or ""
    runs, left = await read_runs(stage.client, task.name, first, replayer=replayer)
    items = after.items.get(task.name, [])
    result: Any = ()
    if task.script is not None and runs[-1].state == "completed":
        with suppress(WorkflowFailureError):
            result = await handle.result()
    known = ShapeAccount(
        program=Program(seed=0, name=json.dumps(asdict(task)), retries=task.retries),
        task_id=task.name,
        runs=runs,
        left_runs=left,
        items=items,
        transitions={item.id: after.transitions[item.id] for item in items},
        sightings=[item for item in stage.sightings.values() if item.task_id == task.name],
        superseded=[held for item in items for held in after.superseded.get(item.id, ())],
        deaths=[event.at for event in stage.events],
    )
    left_open = [item for item in before.items.get(task.name, ()) if not item.state.is_terminal]
    died = {str(event.pid): event.at for event in stage.events}
    return ForeignAccount(task, known, executions.get(task.name, ()), left_open, result, died)
