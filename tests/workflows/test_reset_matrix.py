"""Tasks are reset to each of their workflow tasks, and then end in every way.

A task with retries, operators' actions, a child workflow and lineages side by side runs once. It is reset to
each of its workflow tasks, with and without the updates that came later, while it runs or after it has ended.
Then it continues, is canceled, is acted on, runs into its deadline, or is ended by its policy. In each case
no request is made twice under one key, nothing stays open, no task stands still, and every history replays.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import ResetReapplyExcludeType as Exclude, WorkflowTaskFailedCause as Cause
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import (
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.service import RPCError
from temporalio.worker import Replayer

from tasquencer import Failure, FailureKind, RetryRecipe, Task, TasquencerPlugin
from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.job import AiJob
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import as_application_error
from tasquencer.testing import InMemoryLedger
from tests.support.calls import ANSWER
from tests.support.tasks import Tasks, tasks_on
from workflows.ai_agent import AiAgentTask
from workflows.ai_fan_out import AiFanOutTask
from workflows.reconcile_ledger import ReconcileLedger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Handle = WorkflowHandle[Any, Any]

MINUTE = timedelta(minutes=1)
BEATS = timedelta(seconds=4)
STANDS_STILL_SECONDS = 60.0
_AT_ONCE = 6
FIRST_CALLS = ("retried", "prompt")
"""Lineages whose first attempt fails."""

_HARMLESS = (
    Cause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND,
    Cause.WORKFLOW_TASK_FAILED_CAUSE_RESET_STICKY_TASK_QUEUE,
    Cause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND,
    Cause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW,
    Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_UPDATE_WORKFLOW_EXECUTION_MESSAGE,
)

REQUESTS: dict[str, list[str]] = {}
"""The keys of all requests, by task."""

WAYS: dict[str, str] = {}
"""What the calls of a task come to: `fine`, `fail` (a retry may follow), `refuse` (none does), or `hang`."""


async def call(first_fails: bool) -> None:
    """What a call of the task that it belongs to comes to."""
    info = activity.info()
    task_id = info.workflow_id or ""
    REQUESTS.setdefault(task_id, []).append(info.activity_id)
    way = WAYS.get(task_id, "fine")
    while way == "hang":
        activity.heartbeat()
        await asyncio.sleep(0.2)
    await asyncio.sleep(0.05)
    if way == "fail" or (way == "fine" and first_fails):
        raise as_application_error(Failure.of(FailureKind.UNREACHABLE, "as planned"))
    if way == "refuse":
        raise as_application_error(Failure.of(FailureKind.REFUSED, "as planned"))


@activity.defn
async def work(lineage: str, attempt: int) -> str:
    await call(first_fails=lineage in FIRST_CALLS and attempt == 0)
    return lineage


@activity.defn(name="generate")
async def generate(job: AiJob) -> AiAnswer:
    key = activity.info().activity_id
    await call(first_fails=int(key[-1], 16) % 2 == 0)
    return ANSWER


@workflow.defn(sandboxed=False)
class Child:
    """Sleeps."""

    @workflow.run
    async def run(self) -> str:
        await workflow.sleep(0.1)
        return "child"


@workflow.defn(sandboxed=False)
class Everything:
    """Retries, actions of operators, a child workflow, and lineages side by side."""

    def __init__(self) -> None:
        self._task = Task(
            recipe=RetryRecipe(
                max_retries=9,
                initial_interval=timedelta(seconds=0.4),
                maximum_interval=timedelta(seconds=0.5),
            ),
            concurrency=2,
        )

    @workflow.run
    async def run(self, deadline_seconds: float | None = None) -> str:
        self._ends = self._task.deadline_after(deadline_seconds)
        await self._line("retried")
        self._task.check()
        await asyncio.gather(self._line("one"), self._line("two"), self._line("three"), self._child())
        self._task.check()
        async for work_item in self._task.attempts("well?", lineage="asked", deadline=self._ends):
            async with work_item:
                work_item.complete(await work_item.outcome(within=timedelta(seconds=1)))
        self._task.check()
        return "ended"

    async def _line(self, name: str) -> None:
        async for work_item in self._task.attempts(name, lineage=name, deadline=self._ends):
            async with work_item:
                work_item.complete(
                    await work_item.execute_activity(
                        work, name, work_item.attempt, start_to_close_timeout=MINUTE, heartbeat_timeout=BEATS
                    )
                )

    async def _child(self) -> None:
        async for work_item in self._task.attempts("child", lineage="child", deadline=self._ends):
            async with work_item:
                work_item.complete(await workflow.execute_child_workflow(Child.run))


@dataclass(frozen=True)
class Ending:
    """What happens after a reset.

    Attributes:
        way: What calls come to then.
        acts: What operators do meanwhile: `help` (ends each wait, answers what is asked), `meddle` (also
            completes, fails and cancels what is open), `cancel` (cancels the task), or nothing.
    """

    way: str = "fine"
    acts: str = "help"


ENDINGS = {
    "continues": Ending(),
    "is canceled in a call": Ending("hang", "cancel"),
    "is canceled in a backoff": Ending("fail", "cancel"),
    "is acted on": Ending("hang", "meddle"),
    "runs into its deadline": Ending("fail", "nothing"),
    "is ended by its policy": Ending("refuse", "nothing"),
}

RETRY = {"initial_interval_seconds": 0.4, "maximum_interval_seconds": 0.5}

TASKS: dict[str, Any] = {
    "Everything": None,
    "AiAgentTask": {"prompt": "?", "max_retries": 9, "retry": RETRY, "heartbeat_timeout_seconds": 4},
    "AiFanOutTask": {
        "prompts": ["?", "??", "???"],
        "concurrency": 2,
        "policy": "fail_fast",
        "heartbeat_timeout_seconds": 4,
        "max_retries": 9,
        "retry": RETRY,
    },
}

DEADLINE_SECONDS = 8.0


def given(workflow_type: str, ending: str) -> Any:
    """The workflow's input; with a deadline where the task is to run into it."""
    raw = TASKS[workflow_type]
    if ending != "runs into its deadline":
        return raw
    return DEADLINE_SECONDS if raw is None else {**raw, "deadline_seconds": DEADLINE_SECONDS}


async def update(run: Handle, name: str, **action: Any) -> None:
    refused = (WorkflowUpdateFailedError, WorkflowUpdateRPCTimeoutOrCancelledError, RPCError, TimeoutError)
    with contextlib.suppress(*refused):
        async with asyncio.timeout(5):
            await run.execute_update(name, {"actor": "anna", **action})


async def attend(run: Handle, acts: str, over: asyncio.Event) -> None:
    """Do to the run what its operators do, until it is over."""
    turn = 0
    if acts == "cancel":
        await asyncio.sleep(0.3)
        with contextlib.suppress(RPCError):
            await run.cancel()
    while acts in ("help", "meddle") and not over.is_set():
        items: list[dict[str, Any]] = []
        with contextlib.suppress(RPCError, WorkflowQueryFailedError):
            items = await run.query("work_items", rpc_timeout=timedelta(seconds=5))
        for item in items:
            if item["state"] == "initialized" and item["attempt"] > 0:
                await update(run, "retry_now")
            if item["state"] != "started":
                continue
            known = {"work_item_id": item["id"]}
            if item["lineage"] == "asked":
                await update(run, "complete_work_item", **known, result="yes")
            elif acts == "meddle":
                turn += 1
                match turn % 3:
                    case 0:
                        await update(run, "cancel_work_item", **known)
                    case 1:
                        result = {"text": "so"} if item["lineage"].startswith(("main", "prompt")) else "so"
                        await update(run, "complete_work_item", **known, result=result)
                    case _:
                        await update(run, "fail_work_item", **known, reason="so be it")
        await asyncio.sleep(0.1)


@asynccontextmanager
async def attended(run: Handle, acts: str) -> AsyncIterator[None]:
    over = asyncio.Event()  # an update that is under way would swallow a cancel of its asyncio task
    attending = asyncio.create_task(attend(run, acts, over))
    try:
        yield
    finally:
        over.set()
        await attending


class Scene:
    """Starts tasks, resets them, and sees what is wrong with them afterwards."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._replayer = Replayer(
            workflows=[Everything, Child, AiAgentTask, AiFanOutTask],
            plugins=[TasquencerPlugin(InMemoryLedger())],
        )
        self._places = asyncio.Semaphore(_AT_ONCE)
        self.wrong: list[str] = []
        self.resets = 0

    async def after_its_end(self, workflow_type: str, ending: str, *, reapplied: bool) -> None:
        """Reset a task that has ended to each of its workflow tasks, one after the other."""
        raw = given(workflow_type, ending)
        handle = await self._tasks.start(workflow_type, *([] if raw is None else [raw]))
        async with attended(handle, "help"):
            await self._end(handle, "at first")
        for point in await self._points(handle):
            WAYS[handle.id] = ENDINGS[ending].way
            await self._reset(handle, point, ending, reapplied=reapplied)

    async def while_it_runs(self, workflow_type: str, ending: str, number: int, *, reapplied: bool) -> None:
        """Reset a task to its workflow task of that number, as soon as it has come so far."""
        async with self._places:
            await self._while_it_runs(workflow_type, ending, number, reapplied=reapplied)

    async def _while_it_runs(self, workflow_type: str, ending: str, number: int, *, reapplied: bool) -> None:
        raw = given(workflow_type, ending)
        handle = await self._tasks.start(workflow_type, *([] if raw is None else [raw]))
        async with attended(handle, "help"):
            points: list[int] = []
            while len(points) < number:
                points = await self._points(handle)
                if (await handle.describe()).status is not WorkflowExecutionStatus.RUNNING:
                    break
                await asyncio.sleep(0.1)
        WAYS[handle.id] = ENDINGS[ending].way
        await self._reset(handle, points[min(number, len(points)) - 1], ending, reapplied=reapplied)

    async def _points(self, handle: Handle) -> list[int]:
        history = await handle.fetch_history()
        return [
            event.event_id
            for event in history.events
            if event.HasField("workflow_task_completed_event_attributes")
        ]

    async def _reset(self, handle: Handle, point: int, ending: str, *, reapplied: bool) -> None:
        excluded = [] if reapplied else [Exclude.RESET_REAPPLY_EXCLUDE_TYPE_UPDATE]
        made = await self._tasks.client.workflow_service.reset_workflow_execution(
            ResetWorkflowExecutionRequest(
                namespace="default",
                workflow_execution=WorkflowExecution(
                    workflow_id=handle.id, run_id=handle.first_execution_run_id or ""
                ),
                reason="a test",
                workflow_task_finish_event_id=point,
                request_id=str(uuid4()),
                reset_reapply_exclude_types=excluded,
            )
        )
        self.resets += 1
        run = self._tasks.client.get_workflow_handle(handle.id, run_id=made.run_id)
        what = f"reset to event {point}, {'with' if reapplied else 'without'} updates, then it {ending}"
        async with attended(run, ENDINGS[ending].acts):
            await self._end(run, what)

    async def _end(self, run: Handle, what: str) -> None:
        deadline = time.monotonic() + STANDS_STILL_SECONDS
        while (await run.describe()).status is WorkflowExecutionStatus.RUNNING:
            if time.monotonic() > deadline:
                self.wrong.append(f"{run.id} ({run.run_id}) {what}: stands still")
                await run.terminate()
                return
            await asyncio.sleep(0.1)
        history = await run.fetch_history()
        for event in history.events:
            failed = event.workflow_task_failed_event_attributes
            if event.HasField("workflow_task_failed_event_attributes") and failed.cause not in _HARMLESS:
                self.wrong.append(f"{run.id} {what}: a workflow task failed: {failed.failure.message[:300]}")
        came = await self._replayer.replay_workflow(history, raise_on_replay_failure=False)
        if came.replay_failure is not None:
            self.wrong.append(f"{run.id} {what}: does not replay: {str(came.replay_failure)[:300]}")
        for row in await run.query("work_items"):
            if row["state"] in ("initialized", "started"):
                self.wrong.append(f"{run.id} {what}: {row['lineage']}#{row['attempt']} is {row['state']}")

    async def check_ledger(self, task_ids: list[str]) -> None:
        """See that nothing is open except what the reconciler has to settle, and no key was used twice."""
        for task_id in task_ids:
            for key, times in Counter(REQUESTS.get(task_id, ())).items():
                if times > 1:
                    self.wrong.append(f"{task_id}: {times} requests under the key {key}")
            known = {item.id for item in await self._items(task_id)}
            for key in REQUESTS.get(task_id, ()):
                if key not in known:
                    self.wrong.append(f"{task_id}: the request {key} has no work item")

    async def check_nothing_is_open(self, task_ids: list[str]) -> None:
        for task_id in task_ids:
            for item in await self._items(task_id):
                if not item.state.is_terminal:
                    self.wrong.append(f"{task_id}: {item.lineage}#{item.attempt} is {item.state}")

    async def _items(self, task_id: str) -> list[WorkItem]:
        return await self._tasks.ledger.work_items_of(task_id)


@pytest.mark.parametrize("reapplied", [True, False], ids=["with updates", "without updates"])
@pytest.mark.parametrize("workflow_type", TASKS)
async def test_a_task_that_has_ended_can_be_reset_to_each_of_its_workflow_tasks(
    dev_server: EmbeddedTemporal, workflow_type: str, reapplied: bool
) -> None:
    workflows = [Everything, Child, AiAgentTask, AiFanOutTask]
    REQUESTS.clear()
    async with tasks_on(dev_server.address, workflows, [work, generate]) as tasks:
        scene = Scene(tasks)
        async with asyncio.TaskGroup() as group:
            for ending in ENDINGS:
                group.create_task(scene.after_its_end(workflow_type, ending, reapplied=reapplied))
        task_ids = list(REQUESTS)
        await scene.check_ledger(task_ids)
        await scene.check_nothing_is_open(task_ids)
    print(f"{scene.resets} resets")
    assert scene.resets >= 2 * len(ENDINGS)
    assert not scene.wrong, "\n".join(scene.wrong)


@pytest.mark.parametrize("reapplied", [True, False], ids=["with updates", "without updates"])
@pytest.mark.parametrize("workflow_type", TASKS)
async def test_a_task_that_runs_can_be_reset_to_each_of_its_workflow_tasks(
    dev_server: EmbeddedTemporal, workflow_type: str, reapplied: bool
) -> None:
    workflows = [Everything, Child, AiAgentTask, AiFanOutTask, ReconcileLedger]
    REQUESTS.clear()
    async with tasks_on(dev_server.address, workflows, [work, generate]) as tasks:
        scene = Scene(tasks)
        endings = list(ENDINGS)
        most = 12 if workflow_type == "Everything" else 6
        async with asyncio.TaskGroup() as group:
            for number in range(1, most + 1):
                for ending in (endings[number % 6], endings[(number + 3) % 6]):
                    group.create_task(scene.while_it_runs(workflow_type, ending, number, reapplied=reapplied))
        task_ids = list(REQUESTS)
        await scene.check_ledger(task_ids)
        # The runs that the resets have ended left open what they were about.
        settled, _ = await tasks.run("ReconcileLedger", {"grace_seconds": 0})
        await scene.check_nothing_is_open(task_ids)
    print(f"{scene.resets} resets, {settled}")
    assert scene.resets == 2 * most
    assert not scene.wrong, "\n".join(scene.wrong)


def test_states_are_what_the_checks_take_them_for() -> None:
    assert {state.value for state in WorkItemState if not state.is_terminal} == {"initialized", "started"}
