"""Starting a task on Temporal and following it to its end."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

from pydantic import JsonValue
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import (
    Client,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
)
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import (
    ApplicationError,
    CancelledError,
    FailureError,
    TerminatedError,
    TimeoutError as TimedOutError,
    WorkflowAlreadyStartedError,
)
from temporalio.service import RPCError, RPCStatusCode

from tasquencer.cli.display import Display
from tasquencer.cli.errors import CommandFailed, ExitCode
from tasquencer.core.wording import one_line
from tasquencer.core.work_item import WorkItem

__all__ = [
    "DRAFT_TYPE",
    "FAN_OUT_TYPE",
    "LAST_QUERY_TIMEOUT",
    "QUERY_TIMEOUT",
    "TASK_TYPE",
    "FollowedTask",
    "Outcome",
    "WorkerWatch",
    "find_task",
    "follow",
    "outcome_of",
    "send_update",
    "start_task",
]

TASK_TYPE = "AiAgentTask"
FAN_OUT_TYPE = "AiFanOutTask"
DRAFT_TYPE = "ReviewedDraft"

_POLL_SECONDS = 0.5
QUERY_TIMEOUT = timedelta(seconds=2)
LAST_QUERY_TIMEOUT = timedelta(seconds=10)
"""Of a look after which there is no other one; the worker may have to replay the whole history for it."""

_SILENCE_SECONDS = 3.0
"""How long no worker answers before we look whether there is one."""
_LONG_SILENCE_SECONDS = 10.0
_ANSWER_SECONDS = 20
_POLLER_FRESHNESS = timedelta(seconds=75)
"""A worker polls at least once a minute; the server lists it for five minutes after its last poll."""

_BACKSTOP_MARGIN = timedelta(minutes=10)
"""How long after its deadline Temporal ends a task whose workers are gone."""

Handle = WorkflowHandle[Any, Any]


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        result: What it returned, if it completed.
        error_type: `RetriesExhausted` …; `Canceled`, `Terminated` or `TimedOut`; None if it completed.
        failure: The last failure, where the task gave one.
    """

    result: JsonValue = None
    error_type: str | None = None
    message: str = ""
    failure: JsonValue = None


@dataclass(frozen=True)
class FollowedTask:
    """A task to be followed.

    Attributes:
        max_retries: Of its recipe; None if that is not known.
    """

    client: Client
    handle: Handle
    task_queue: str
    max_retries: int | None

    @property
    def id(self) -> str:
        """The task's id."""
        return self.handle.id


async def start_task(
    client: Client,
    request: Mapping[str, JsonValue],
    *,
    task_id: str,
    task_queue: str,
    task_type: str = TASK_TYPE,
) -> FollowedTask:
    """Start a task. Raises `CommandFailed` if there is or was one with that id."""
    try:
        handle = await client.start_workflow(
            task_type,
            dict(request),
            id=task_id,
            task_queue=task_queue,
            execution_timeout=_backstop(request),
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            static_summary=_summary(request),
        )
    except WorkflowAlreadyStartedError:
        raise CommandFailed(
            f"there is already a task {task_id!r}: see it with `tasq watch {shlex.quote(task_id)}`, "
            "or choose another --id"
        ) from None
    return FollowedTask(client, handle, task_queue, _max_retries(request))


async def find_task(client: Client, task_id: str) -> FollowedTask:
    """A task that was started before, by whomever. Raises `CommandFailed` if there is none."""
    handle = client.get_workflow_handle(task_id)
    try:
        description = await handle.describe()
        started = await anext(handle.fetch_history_events(page_size=1))
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND and not error.message.startswith("Namespace"):
            raise CommandFailed(
                f"Temporal has no task {task_id!r} (any more): `tasq list` shows what the ledger knows"
            ) from None
        raise
    max_retries = None
    if description.workflow_type in (TASK_TYPE, FAN_OUT_TYPE, DRAFT_TYPE):
        payloads = started.workflow_execution_started_event_attributes.input.payloads
        request = (await client.data_converter.decode(payloads) or [None])[0]
        max_retries = _max_retries(request) if isinstance(request, dict) else None
    return FollowedTask(client, handle, description.task_queue, max_retries)


async def follow(task: FollowedTask, display: Display) -> Outcome:
    """Show the task's work items until it ends; return how it ended."""
    watch = _Watch(task, display)
    watching = asyncio.create_task(watch.run())
    try:
        outcome = await outcome_of(task.handle)
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    await watch.look(LAST_QUERY_TIMEOUT)
    return outcome


@dataclass
class _Watch:
    task: FollowedTask
    display: Display

    def __post_init__(self) -> None:
        self._workers = WorkerWatch(self.task.client, self.task.task_queue, self.display.say)

    async def run(self) -> None:
        while True:
            if not await self.look():
                await self._workers.silent()
            await asyncio.sleep(_POLL_SECONDS)

    async def look(self, within: timedelta = QUERY_TIMEOUT) -> bool:
        """Show the present work items; False if no worker answers."""
        items = await _work_items(self.task.handle, within)
        if items is None:
            return False
        self._workers.answered()
        self.display.show(items)
        return True


@dataclass
class WorkerWatch:
    """Says, once for each silence, that no worker answers.

    Attributes:
        say: Takes the line.
    """

    client: Client
    task_queue: str
    say: Callable[[str], None]
    last_answer: float = field(default_factory=monotonic)
    said: set[str] = field(default_factory=set)

    def answered(self) -> None:
        """A worker has answered."""
        self.last_answer = monotonic()
        self.said.clear()

    async def silent(self) -> None:
        """No worker has answered this time."""
        queue, silence = self.task_queue, monotonic() - self.last_answer
        if silence >= _SILENCE_SECONDS and not await _has_workers(self.client, queue):
            self._say_once(f"no worker polls task queue {queue!r}: start one with .venv/bin/python worker.py")
        elif silence >= _LONG_SILENCE_SECONDS:
            self._say_once(f"no worker of task queue {queue!r} has answered for {_LONG_SILENCE_SECONDS:g} s")

    def _say_once(self, line: str) -> None:
        if line not in self.said:
            self.said.add(line)
            self.say(line)


async def _work_items(handle: Handle, within: timedelta) -> list[WorkItem] | None:
    """The task's own answer; None if nobody gives it, for which `outcome_of` will learn the reason."""
    try:
        items: list[WorkItem] = await handle.query(
            "work_items", result_type=list[WorkItem], rpc_timeout=within
        )
    except (RPCError, WorkflowQueryRejectedError):
        return None
    except WorkflowQueryFailedError:  # a worker answers, but this workflow has no work items
        return []
    return items


async def _has_workers(client: Client, task_queue: str) -> bool:
    try:
        described = await client.workflow_service.describe_task_queue(
            DescribeTaskQueueRequest(
                namespace=client.namespace,
                task_queue=TaskQueue(name=task_queue),
                task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
            )
        )
    except RPCError:
        return True  # who may not ask cannot tell
    oldest = datetime.now(UTC) - _POLLER_FRESHNESS
    return any(poller.last_access_time.ToDatetime(UTC) >= oldest for poller in described.pollers)


async def outcome_of(handle: Handle) -> Outcome:
    """How the task ended; waits for its end."""
    try:
        return Outcome(result=await handle.result())
    except WorkflowFailureError as error:
        return _failed(error.cause)


def _failed(cause: BaseException) -> Outcome:
    match cause:
        case ApplicationError():
            failure = cause.details[0] if cause.details else None
            return Outcome(
                error_type=cause.type or "ApplicationError", message=cause.message, failure=failure
            )
        case CancelledError():
            return Outcome(error_type="Canceled", message="the task was canceled")
        case TerminatedError():
            return Outcome(error_type="Terminated", message=f"the task was terminated: {cause.message}")
        case TimedOutError():
            return Outcome(error_type="TimedOut", message="the task ran out of its workflow timeout")
        case FailureError():
            return Outcome(error_type=type(cause).__name__, message=cause.message)
        case _:
            return Outcome(error_type=type(cause).__name__, message=str(cause))


def _backstop(request: Mapping[str, JsonValue]) -> timedelta | None:
    """Temporal's own timeout, for a task that cannot keep its deadline by itself."""
    seconds = request.get("deadline_seconds")
    return None if not isinstance(seconds, int | float) else timedelta(seconds=seconds) + _BACKSTOP_MARGIN


def _max_retries(request: Mapping[str, JsonValue]) -> int | None:
    from tasquencer.ai.request import AiAgentRequest

    value = request.get("max_retries", AiAgentRequest.model_fields["max_retries"].default)
    return value if isinstance(value, int) else None


def _summary(request: Mapping[str, JsonValue]) -> str:
    from tasquencer.ai.request import AiAgentRequest

    if isinstance(prompts := request.get("prompts"), list):
        return f"{len(prompts)} prompts"
    asked = {name: request[name] for name in ("prompt", "messages") if name in request}
    return one_line(AiAgentRequest.model_validate(asked).job().prompt, 80)


async def send_update(handle: WorkflowHandle[Any, Any], name: str, payload: Mapping[str, object]) -> Any:
    """Send an update; what the workflow answers.

    Raises:
        CommandFailed: it was refused, or no worker has answered.
    """
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            return await handle.execute_update(name, payload)
    except TimeoutError:
        raise CommandFailed(
            f"no worker has answered for {_ANSWER_SECONDS} s: start one (it may still carry out the action)",
            ExitCode.UNREACHABLE,
        ) from None
    except WorkflowUpdateFailedError as refused:
        raise CommandFailed(getattr(refused.cause, "message", None) or str(refused)) from None
