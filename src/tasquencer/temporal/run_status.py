"""The status of runs by Temporal, for code in a workflow's thread, which cannot wait for an answer itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, PendingWorkflowTaskState
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryReverseRequest
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.service import RPCError

__all__ = ["Status", "StatusOfRuns", "is_lost", "may_join", "status_of"]

_FUNCTION = "tasquencer.status_of"
"""Name of the function by which the guard of a workflow instance reaches the client."""

_IS_LOST = "tasquencer.is_lost"
"""Name of the function by which the guard asks about one workflow task."""

_JOINS = "tasquencer.joins"
"""Name of the function by which the guard asks about the workflow tasks after one."""

_SECONDS = 0.8
"""How long an answer may take. The SDK takes a workflow that says nothing for two seconds for deadlocked, and
one activation may ask twice."""

_ROUNDING = timedelta(milliseconds=1)

_PAGE = 20
"""Events to read at a time, newest first."""

T = TypeVar("T")


@dataclass(frozen=True)
class Status:
    """The status of a run.

    Attributes:
        is_closed: True if the run has ended.
        waits: True if its next workflow task has not reached a worker yet.
        began: When the workflow task under way began. None if there is none.
    """

    is_closed: bool
    waits: bool = False
    began: datetime | None = None

    def is_past(self, began: datetime) -> bool:
        """Return whether the workflow task that began at this time is over."""
        return self.is_closed or self.waits or (self.began is not None and self.began - began > _ROUNDING)


class StatusOfRuns:
    """Asks Temporal for the status of runs. One per worker."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def run_here(self) -> None:
        """Let the client run in the running event loop: the worker's."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.get_running_loop()
            self._thread = threading.get_ident()

    def offer(self, functions: MutableMapping[str, Callable[..., Any]]) -> None:
        """Offer the question to the guards of the worker's workflows."""
        functions[_FUNCTION] = lambda *run: self._answer(lambda: self._status(*run))
        functions[_IS_LOST] = lambda *task: self._answer(lambda: self._is_lost(*task))
        functions[_JOINS] = lambda *task: self._answer(lambda: self._joins(*task))

    def _answer(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        if self._loop is None or self._thread == threading.get_ident():
            return None  # in the SDK's debug mode: the thread of the event loop cannot wait for it
        asking = asyncio.run_coroutine_threadsafe(ask(), self._loop)
        try:
            return asking.result(_SECONDS)
        except (RPCError, TimeoutError):
            return None
        finally:
            asking.cancel()

    async def _status(self, workflow_id: str, run_id: str) -> Status:
        run = self._client.get_workflow_handle(workflow_id, run_id=run_id)
        return _status_in(await run.describe(rpc_timeout=timedelta(seconds=_SECONDS)))

    async def _is_lost(self, workflow_id: str, run_id: str, event_id: int, began: datetime) -> bool:
        status = await self._status(workflow_id, run_id)
        if status.is_closed or not (status.waits or status.began):
            return False  # after a lost workflow task, the next one is always pending
        return not status.is_past(began) or not await self._is_completed(workflow_id, run_id, event_id)

    async def _is_completed(self, workflow_id: str, run_id: str, event_id: int) -> bool:
        return event_id + 1 in await self._completed_from(workflow_id, run_id, event_id + 1)

    async def _joins(self, workflow_id: str, run_id: str, event_id: int) -> bool:
        return bool(await self._completed_from(workflow_id, run_id, event_id + 2))

    async def _completed_from(self, workflow_id: str, run_id: str, first: int) -> list[int]:
        """Return the events from the first one on that complete a workflow task, newest first."""
        request = GetWorkflowExecutionHistoryReverseRequest(
            namespace=self._client.namespace,
            execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
            maximum_page_size=_PAGE,
        )
        found: list[int] = []
        while True:
            page = await self._client.workflow_service.get_workflow_execution_history_reverse(request)
            for event in page.history.events:
                if event.event_id < first:
                    return found
                if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                    found.append(event.event_id)
            if not page.next_page_token:
                return found
            request.next_page_token = page.next_page_token


def _status_in(described: WorkflowExecutionDescription) -> Status:
    pending = described.raw_description.pending_workflow_task
    has_begun = pending.state == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_STARTED
    return Status(
        is_closed=described.status is not WorkflowExecutionStatus.RUNNING,
        waits=pending.state == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED,
        began=pending.started_time.ToDatetime(UTC) if has_begun else None,
    )


def status_of(functions: Mapping[str, Callable[..., Any]], workflow_id: str, run_id: str) -> Status | None:
    """Return the status of the run, or None if nobody knows it."""
    ask = functions.get(_FUNCTION)
    answer = None if ask is None else ask(workflow_id, run_id)
    return answer if isinstance(answer, Status) else None


def is_lost(
    functions: Mapping[str, Callable[..., Any]],
    workflow_id: str,
    run_id: str,
    event_id: int,
    began: datetime,
) -> bool:
    """Return whether no worker has completed the workflow task that began with this event at this time.

    False if nobody knows.
    """
    ask = functions.get(_IS_LOST)
    return ask is not None and bool(ask(workflow_id, run_id, event_id, began))


def may_join(
    functions: Mapping[str, Callable[..., Any]], workflow_id: str, run_id: str, event_id: int
) -> bool:
    """Return whether the current activation may join the events of several workflow tasks.

    The SDK joins a workflow task without commands with the next one, if a worker has completed it.

    Args:
        event_id: The start of the last workflow task before.

    Returns:
        True also if nobody knows.
    """
    ask = functions.get(_JOINS)
    return ask is None or ask(workflow_id, run_id, event_id) is not False
