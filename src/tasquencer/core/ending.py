"""The end of a task, and the workflow that may follow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pydantic import JsonValue

from tasquencer.core.policy import Counts

__all__ = ["FollowUp", "TaskEnd", "TaskEndHook", "TaskEndState"]


class TaskEndState(StrEnum):
    """How a task ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"


@dataclass(frozen=True)
class TaskEnd:
    """The end of a task, as its hook sees it. Every work item has ended, too.

    Attributes:
        task_id: The Temporal workflow id.
        task_type: The workflow type.
        error_type: The type of the error if the task failed, such as `RetriesExhausted`, else None.
        message: If the task failed, its last event in one line, else None.
        counts: The counts of its work items and lineages.
    """

    task_id: str
    task_type: str
    state: TaskEndState
    error_type: str | None
    message: str | None
    counts: Counts


@dataclass(frozen=True)
class FollowUp:
    """A workflow that a task starts as its last act. It runs independently of the task.

    Attributes:
        workflow: Its type.
        input: Its only argument.
        id: Its workflow id. None means the task's id with `/follow-up` appended. If a workflow with that id
        is already running, no other one is started.
        task_queue: None means the task's.
    """

    workflow: str
    input: JsonValue
    id: str | None = None
    task_queue: str | None = None


TaskEndHook = Callable[[TaskEnd], FollowUp | None]
"""Called once when a task that has begun a work item has ended. Pure: no clock, no randomness, no I/O."""
