"""Notices that a running task has no worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic

from temporalio.api.enums.v1 import PendingWorkflowTaskState, TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client, WorkflowExecutionDescription
from temporalio.service import RPCError

__all__ = ["WorkerWatch", "has_begun"]

_SILENCE_SECONDS = 3.0
"""How long a task may be silent before `tasq` checks for a worker."""

_LONG_WAIT = timedelta(seconds=10)

_POLLER_FRESHNESS = timedelta(seconds=75)
"""A worker polls at least once a minute. The server lists it for five minutes after its last poll."""

_EVENTS_OF_THE_START = 2
"""The events of a workflow that no worker has seen yet: its start, and the waiting workflow task."""


@dataclass
class WorkerWatch:
    """Reports, once for each silence, that no worker runs a task. Asks the server, never the task.

    Attributes:
        say: Called with the line.
    """

    client: Client
    task_queue: str
    say: Callable[[str], None]
    _last_news: float = field(default_factory=monotonic)
    _last_look: float = 0.0
    _said: set[str] = field(default_factory=set)

    def news(self) -> None:
        """A worker has done something for the task."""
        self._last_news = monotonic()
        self._said.clear()

    @property
    def is_due(self) -> bool:
        """Return whether there has been no event, and no check, for some seconds."""
        return monotonic() - max(self._last_news, self._last_look) >= _SILENCE_SECONDS

    async def look(self, described: WorkflowExecutionDescription | None) -> None:
        """Check for a worker, because the task has been silent.

        Args:
            described: The task's description. None if the server has not answered.
        """
        self._last_look = monotonic()
        if described is None:
            return
        if not await _has_workers(self.client, self.task_queue):
            self._say_once(f"no worker polls task queue {self.task_queue!r}: start one with tasq worker")
        elif _waits_for_a_worker(described) >= _LONG_WAIT:
            seconds = _LONG_WAIT.total_seconds()
            self._say_once(f"no worker of task queue {self.task_queue!r} has answered for {seconds:g} s")

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.say(line)


def has_begun(described: WorkflowExecutionDescription) -> bool:
    """Return whether a worker has seen the workflow's current run."""
    return described.history_length > _EVENTS_OF_THE_START


def _waits_for_a_worker(described: WorkflowExecutionDescription) -> timedelta:
    """Return how long the workflow's next step has been waiting for a worker."""
    pending = described.raw_description.pending_workflow_task
    if pending.state is not PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED:
        return timedelta(0)
    return datetime.now(UTC) - pending.scheduled_time.ToDatetime(UTC)


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
        return True  # credentials without permission to ask
    oldest = datetime.now(UTC) - _POLLER_FRESHNESS
    return any(poller.last_access_time.ToDatetime(UTC) >= oldest for poller in described.pollers)
