"""Running tasks in tests: a worker with the plugin and a ledger, on either Temporal server."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.update.v1 import UpdateRef
from temporalio.api.workflowservice.v1 import PollWorkflowExecutionUpdateRequest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from tasquencer.ai import AiCalls
from tasquencer.batch.store import BatchStore
from tasquencer.core.work_item import WorkItem
from tasquencer.ledger.contract import Ledger, WorkItemFilter
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tests.support.patience import PATIENCE_SECONDS, eventually


def executable(name: str) -> str:
    """Path of a program that a package put beside the interpreter, or that is on the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found is not None, f"{name} is missing: run `make setup`"
    return found


_MANY_CALLS = 100

IMPORTING_TESTS_ONCE = SandboxedWorkflowRunner(
    restrictions=SandboxRestrictions.default.with_passthrough_modules("tests", "pytest", "_pytest")
)
"""A sandbox that does not import the tests' modules and pytest again for each workflow."""


@dataclass(frozen=True)
class Tasks:
    """Starts tasks on a worker of this test's own and looks at what became of them."""

    client: Client
    task_queue: str
    ledger: Ledger

    async def start(self, workflow: str, *args: Any) -> WorkflowHandle[Any, Any]:
        """Start a task with a new id."""
        return await self.client.start_workflow(
            workflow, args=args, id=f"{workflow}-{uuid4()}", task_queue=self.task_queue
        )

    async def run(self, workflow: str, *args: Any) -> tuple[Any, WorkflowHandle[Any, Any]]:
        """Start a task and wait for its result."""
        handle = await self.start(workflow, *args)
        return await handle.result(), handle

    async def failure(self, workflow: str, *args: Any) -> tuple[ApplicationError, WorkflowHandle[Any, Any]]:
        """Start a task and wait for the error it fails with."""
        handle = await self.start(workflow, *args)
        return await failure_of_task(handle), handle

    async def work_items(self, handle: WorkflowHandle[Any, Any]) -> list[WorkItem]:
        """The task's work items in the ledger, oldest first."""
        return await self.ledger.work_items(WorkItemFilter(task_id=handle.id, oldest_first=True, limit=2000))


async def failure_of_task(handle: WorkflowHandle[Any, Any]) -> ApplicationError:
    """Wait for the error that the task fails with."""
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    cause = caught.value.cause
    assert isinstance(cause, ApplicationError), repr(cause)
    return cause


OF_A_SLOW_WRITE = "look for news"
"""Summary of the timer that a task starts after a write that was slow. On a busy machine any write may be."""


async def history(handle: WorkflowHandle[Any, Any]) -> list[HistoryEvent]:
    """The events of the task's run, without the timers by which it looks for news."""
    events = [event async for event in handle.fetch_history_events()]
    looks = {event.event_id for event in events if _looks_for_news(event)}
    return [event for event in events if _timer_of(event) not in looks]


async def comes_to(handle: WorkflowHandle[Any, Any], attributes: str) -> None:
    """Return when the history has an event with these attributes.

    The write to the ledger comes first. The next step, such as a timer, may wait for a slow write.
    """

    async def probe() -> bool:
        return any(event.WhichOneof("attributes") == attributes for event in await history(handle))

    await eventually(probe, attributes)


async def update_that_waits(handle: WorkflowHandle[Any, Any], name: str, *args: Any) -> asyncio.Task[Any]:
    """Send an update while there is no worker, and return once the server has it; its answer comes later."""
    client, update_id = handle._client, str(uuid4())
    answer = asyncio.create_task(handle.execute_update(name, args=args, id=update_id))
    sent = PollWorkflowExecutionUpdateRequest(
        namespace=client.namespace,
        update_ref=UpdateRef(
            workflow_execution=WorkflowExecution(workflow_id=handle.id), update_id=update_id
        ),
    )

    async def is_there() -> bool:
        if answer.done():
            answer.result()  # raises what went wrong
        try:
            await client.workflow_service.poll_workflow_execution_update(sent)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return False
        return True

    await eventually(is_there, f"the update {name} on the server")
    return answer


async def called_at(handle: WorkflowHandle[Any, Any]) -> datetime:
    """When Temporal gave the task's only call to a worker. The worker may be late to make it."""
    (at,) = [
        event.event_time.ToDatetime(UTC)
        for event in await history(handle)
        if event.HasField("activity_task_started_event_attributes")
    ]
    return at


def _looks_for_news(event: HistoryEvent) -> bool:
    is_timer = event.HasField("timer_started_event_attributes")
    return is_timer and OF_A_SLOW_WRITE.encode() in event.user_metadata.summary.data


def _timer_of(event: HistoryEvent) -> int | None:
    """Id of the event that has started the timer of which this one tells."""
    match event.WhichOneof("attributes"):
        case "timer_started_event_attributes":
            return event.event_id
        case "timer_fired_event_attributes":
            return event.timer_fired_event_attributes.started_event_id
        case "timer_canceled_event_attributes":
            return event.timer_canceled_event_attributes.started_event_id
    return None


def timers(events: Sequence[HistoryEvent]) -> list[float]:
    """Seconds of each timer that was started, in order."""
    return [
        event.timer_started_event_attributes.start_to_fire_timeout.ToTimedelta().total_seconds()
        for event in events
        if event.HasField("timer_started_event_attributes")
    ]


def timer_summaries(events: Sequence[HistoryEvent]) -> list[str]:
    """What the Web UI says about each timer that was started, in order."""
    payloads = [
        event.user_metadata.summary for event in events if event.HasField("timer_started_event_attributes")
    ]
    return [json.loads(payload.data) if payload.data else "" for payload in payloads]


async def details(handle: WorkflowHandle[Any, Any]) -> str:
    """What the Web UI shows of the task."""
    metadata = await handle.query("__temporal_workflow_metadata")
    return str(metadata.current_details)


@asynccontextmanager
async def tasks_on(
    server: str,
    workflows: Sequence[type],
    activities: Sequence[Callable[..., Any]],
    *,
    ledger: Ledger | None = None,
    batches: BatchStore | None = None,
    task_queue: str | None = None,
    grace_period: timedelta = timedelta(0),
    calls_at_once: int = _MANY_CALLS,
    adopt_activities: Sequence[str] = (),
    calls: AiCalls | None = None,
) -> AsyncIterator[Tasks]:
    """A worker on the dev server at this address."""
    ledger = ledger or InMemoryLedger()
    plugin = TasquencerPlugin(ledger, batches, calls=calls, adopt_activities=adopt_activities)
    client = await Client.connect(server, plugins=[plugin])
    async with _worker(client, workflows, activities, task_queue, grace_period, calls_at_once) as queue:
        yield Tasks(client, queue, ledger)


@asynccontextmanager
async def tasks_on_skipped_time(
    workflows: Sequence[type], activities: Sequence[Callable[..., Any]], *, ledger: Ledger | None = None
) -> AsyncIterator[Tasks]:
    """A worker on a time-skipping server, where an hour of backoff takes no time.

    Without activities it leaves the calls in the queue. Not for tests in which calls are stopped in the
    workflow task that records something: this server then never ends that workflow task, with a bare
    workflow too.
    """
    ledger = ledger or InMemoryLedger()
    async with (
        await WorkflowEnvironment.start_time_skipping(
            test_server_existing_path=executable("temporal-test-server"),
            test_server_startup_timeout=timedelta(seconds=PATIENCE_SECONDS),
            plugins=[TasquencerPlugin(ledger)],
        ) as environment,
        _worker(environment.client, workflows, activities, None, timedelta(0), _MANY_CALLS) as queue,
    ):
        yield Tasks(environment.client, queue, ledger)


@asynccontextmanager
async def _worker(
    client: Client,
    workflows: Sequence[type],
    activities: Sequence[Callable[..., Any]],
    task_queue: str | None,
    grace_period: timedelta,
    calls_at_once: int,
) -> AsyncIterator[str]:
    queue = task_queue or f"queue-{uuid4()}"
    async with Worker(
        client,
        task_queue=queue,
        workflows=workflows,
        activities=activities,
        workflow_runner=IMPORTING_TESTS_ONCE,
        max_concurrent_activities=calls_at_once,
        max_heartbeat_throttle_interval=timedelta(milliseconds=50),
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
        graceful_shutdown_timeout=grace_period,
        no_remote_activities=not activities,
    ):
        yield queue
