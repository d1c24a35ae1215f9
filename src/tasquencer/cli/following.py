"""Starts a task on Temporal and follows it to its end.

Progress is read from the ledger. A query makes a worker run a part of the workflow's code, and queries have
left running workflows with histories that other workers could not replay. So the task itself is queried only
if the ledger cannot be read or does not have the task.
"""

from __future__ import annotations

import asyncio
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from pydantic import JsonValue
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
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
from temporalio.service import RPCError

from tasquencer.cli.display import Display
from tasquencer.cli.errors import CommandFailed, ExitCode
from tasquencer.cli.ledger_view import LedgerView
from tasquencer.cli.worker_watch import WorkerWatch, has_begun
from tasquencer.core.actions import TRY_AGAIN
from tasquencer.core.display_text import markdown_line
from tasquencer.core.wording import counted
from tasquencer.core.work_item import WorkItem
from tasquencer.temporal.not_found import is_missing

__all__ = [
    "DRAFT_TYPE",
    "FAN_OUT_TYPE",
    "LAST_QUERY_TIMEOUT",
    "QUERY_TIMEOUT",
    "TASK_TYPE",
    "Absence",
    "FollowedTask",
    "Outcome",
    "described",
    "find_task",
    "follow",
    "outcome_of",
    "send_update",
    "start_task",
    "work_items_by_query",
]

TASK_TYPE = "AiAgentTask"
FAN_OUT_TYPE = "AiFanOutTask"
DRAFT_TYPE = "ReviewedDraft"

_POLL_SECONDS = 0.5
_REST = 4
"""The wait after a look, as a multiple of the time that the look took."""

_UNKNOWN_SECONDS = 5.0
"""How long the ledger may lack a task that has begun before the task itself is queried."""
_ASK_AGAIN_SECONDS = 2.0

QUERY_TIMEOUT = timedelta(seconds=2)
LAST_QUERY_TIMEOUT = timedelta(seconds=10)
"""Timeout of a single, last query. The worker may have to replay the whole history for it."""

_ANSWER_SECONDS = 20
_TRY_AGAIN_SECONDS = 0.3
"""The pause after an update that came while the task was writing to the ledger."""

_BACKSTOP_MARGIN = timedelta(minutes=10)
"""How long after its deadline Temporal ends a task whose workers are gone."""

Handle = WorkflowHandle[Any, Any]


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        result: Its result, if it completed.
        error_type: Such as `RetriesExhausted`, or `Canceled`, `Terminated`, `TimedOut`. None if it completed.
        failure: The last failure, if the task has one.
    """

    result: JsonValue = None
    error_type: str | None = None
    message: str = ""
    failure: JsonValue = None


@dataclass(frozen=True)
class FollowedTask:
    """A task to follow.

    Attributes:
        max_retries: From its recipe. None if that is not known.
        started_at: The start of its first run; None if Temporal no longer has that run.
    """

    client: Client
    handle: Handle
    task_queue: str
    max_retries: int | None
    started_at: datetime | None = None

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
    started_at = await _started_at(client, task_id, handle.first_execution_run_id)
    return FollowedTask(client, handle, task_queue, _max_retries(request), started_at)


async def find_task(client: Client, task_id: str) -> FollowedTask:
    """Return a task that was started earlier. Raises `CommandFailed` if there is none."""
    handle = client.get_workflow_handle(task_id)
    try:
        description = await handle.describe()
        started = await anext(handle.fetch_history_events(page_size=1))
    except RPCError as error:
        if is_missing(error):
            raise CommandFailed(
                f"Temporal has no task {task_id!r} (or no longer): `tasq list` shows the tasks of the ledger"
            ) from None
        raise
    max_retries = None
    if description.workflow_type in (TASK_TYPE, FAN_OUT_TYPE, DRAFT_TYPE):
        payloads = started.workflow_execution_started_event_attributes.input.payloads
        request = (await client.data_converter.decode(payloads) or [None])[0]
        max_retries = _max_retries(request) if isinstance(request, dict) else None
    started_at: datetime | None = description.start_time
    if (first := description.raw_description.workflow_execution_info.first_run_id) != description.run_id:
        started_at = await _started_at(client, task_id, first)
    return FollowedTask(client, handle, description.task_queue, max_retries, started_at)


async def _started_at(client: Client, task_id: str, run_id: str | None) -> datetime | None:
    """Return the start of this run."""
    found = await described(client.get_workflow_handle(task_id, run_id=run_id))
    return None if found is None else found.start_time


async def follow(task: FollowedTask, display: Display, ledger: LedgerView) -> Outcome:
    """Show the task's work items until it ends, and return how it ended."""
    watch = _Watch(task, display, ledger)
    watching = asyncio.create_task(watch.run())
    ending = asyncio.create_task(outcome_of(task.handle))
    try:
        await asyncio.wait({watching, ending}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        outcome = await ending
    finally:
        for looking in (watching, ending):
            looking.cancel()
        await asyncio.gather(watching, ending, return_exceptions=True)
    await watch.look_back()
    return outcome


class Absence:
    """How long the ledger lacks a task that has begun.

    A worker may take the task late, and then writes its first work item. The time before does not count.
    """

    def __init__(self) -> None:
        self._begun_at: float | None = None
        self._seen_at = -math.inf

    def is_due(self, now: float) -> bool:
        """Return whether it is time to look again whether the task has begun."""
        return now - self._seen_at >= _ASK_AGAIN_SECONDS

    def is_long(self, now: float, *, begun: bool) -> bool:
        """Return whether the task itself may be queried, given whether it has begun by now."""
        self._seen_at = now
        if not begun:
            self._begun_at = None
            return False
        if self._begun_at is None:
            self._begun_at = now
        return now - self._begun_at >= _UNKNOWN_SECONDS


class _Watch:
    def __init__(self, task: FollowedTask, display: Display, ledger: LedgerView) -> None:
        self._task = task
        self._display = display
        self._ledger = ledger
        self._workers = WorkerWatch(task.client, task.task_queue, display.say)
        self._states: dict[str, str] = {}
        self._absence = Absence()
        self._said: set[str] = set()

    async def run(self) -> None:
        while True:
            began = monotonic()
            await self._look()
            await asyncio.sleep(max(_POLL_SECONDS, _REST * (monotonic() - began)))

    async def look_back(self) -> None:
        """Show the work items of a task that has ended."""
        items = await self._ledger.work_items_of(self._task.id, self._task.started_at)
        self._show(items or await work_items_by_query(self._task.handle, LAST_QUERY_TIMEOUT) or ())

    async def _look(self) -> None:
        items = await self._ledger.work_items_of(self._task.id, self._task.started_at)
        if items is None:
            self._say_once(f"{self._ledger.problem}; querying the task itself")
            if (items := await work_items_by_query(self._task.handle, QUERY_TIMEOUT)) is not None:
                self._workers.news()
        elif not items and self._absence.is_due(monotonic()):
            items = await self._asked_task()
        self._show(items or ())
        if self._workers.is_due:
            await self._workers.look(await described(self._task.handle))

    async def _asked_task(self) -> list[WorkItem] | None:
        """Return the task's own work items if it has begun but the ledger does not have it."""
        found = await described(self._task.handle)
        if not self._absence.is_long(monotonic(), begun=found is not None and has_begun(found)):
            return None
        items = await work_items_by_query(self._task.handle, QUERY_TIMEOUT)
        if items is not None:
            self._workers.news()
        if items:
            self._say_once(
                "the ledger does not have this task, so the task itself is queried: "
                "is TASQ_DATABASE_URL the same as the worker's?"
            )
        return items

    def _show(self, items: Sequence[WorkItem]) -> None:
        states = {item.id: str(item.state) for item in items}
        if items and states != self._states:
            self._states = states
            self._workers.news()
        if items:
            self._display.show(items)

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._display.say(line)


async def described(handle: Handle) -> WorkflowExecutionDescription | None:
    """Return the server's description of the workflow, or None if the server does not answer."""
    try:
        return await handle.describe(rpc_timeout=QUERY_TIMEOUT)
    except RPCError:
        return None


async def work_items_by_query(handle: Handle, within: timedelta) -> list[WorkItem] | None:
    """Return the task's own work items, or None if no worker answers."""
    try:
        items: list[WorkItem] = await handle.query(
            "work_items", result_type=list[WorkItem], rpc_timeout=within
        )
    except (RPCError, WorkflowQueryRejectedError):
        return None
    except WorkflowQueryFailedError:  # a worker answers, but this workflow has no work items
        return []
    return items


async def outcome_of(handle: Handle) -> Outcome:
    """Wait for the task's end and return how it ended."""
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
    """Return Temporal's timeout for a task whose workers cannot keep its deadline."""
    seconds = request.get("deadline_seconds")
    return None if not isinstance(seconds, int | float) else timedelta(seconds=seconds) + _BACKSTOP_MARGIN


def _max_retries(request: Mapping[str, JsonValue]) -> int | None:
    from tasquencer.ai.request import AiAgentRequest

    value = request.get("max_retries", AiAgentRequest.model_fields["max_retries"].default)
    return value if isinstance(value, int) else None


def _summary(request: Mapping[str, JsonValue]) -> str:
    from tasquencer.ai.request import AiAgentRequest

    if isinstance(prompts := request.get("prompts"), list):
        return counted(len(prompts), "prompt")
    asked = {name: request[name] for name in ("prompt", "messages") if name in request}
    return markdown_line(AiAgentRequest.model_validate(asked).job().prompt, 80)


async def send_update(handle: WorkflowHandle[Any, Any], name: str, payload: Mapping[str, object]) -> Any:
    """Send an update and return the workflow's answer.

    Raises:
        CommandFailed: the update was refused, or no worker answered.
    """
    too_early: str | None = None
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            while True:
                try:
                    return await handle.execute_update(name, payload)
                except WorkflowUpdateFailedError as refused:
                    if getattr(refused.cause, "type", None) != TRY_AGAIN:
                        raise
                    too_early = getattr(refused.cause, "message", None)
                await asyncio.sleep(_TRY_AGAIN_SECONDS)
    except TimeoutError:
        problem = (
            f"no worker has answered for {_ANSWER_SECONDS} s: start one (the action may still take effect)"
        )
        if too_early is not None:
            problem = f"refused for {_ANSWER_SECONDS} s: {too_early}"
        raise CommandFailed(problem, ExitCode.UNREACHABLE) from None
    except WorkflowUpdateFailedError as refused:
        raise CommandFailed(getattr(refused.cause, "message", None) or str(refused)) from None
