"""The status of runs by Temporal, for code in a workflow's thread, which cannot wait for an answer itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.api.enums.v1 import PendingWorkflowTaskState
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.service import RPCError

__all__ = ["Status", "StatusOfRuns", "status_of"]

_FUNCTION = "tasquencer.status_of"
"""Name of the function by which the guard of a workflow instance reaches the client."""

_SECONDS = 1.0
"""How long an answer may take. The SDK takes a workflow that says nothing for two seconds for deadlocked."""

_ROUNDING = timedelta(milliseconds=1)


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
        functions[_FUNCTION] = self._status

    def _status(self, workflow_id: str, run_id: str) -> Status | None:
        if self._loop is None or self._thread == threading.get_ident():
            return None  # in the SDK's debug mode: the thread of the event loop cannot wait for it
        asking = asyncio.run_coroutine_threadsafe(self._ask(workflow_id, run_id), self._loop)
        try:
            return asking.result(_SECONDS)
        except (RPCError, TimeoutError):
            return None
        finally:
            asking.cancel()

    async def _ask(self, workflow_id: str, run_id: str) -> Status:
        run = self._client.get_workflow_handle(workflow_id, run_id=run_id)
        return _status_in(await run.describe(rpc_timeout=timedelta(seconds=_SECONDS)))


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
