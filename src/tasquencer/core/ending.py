"""The end of a task, and what is to follow it."""

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
    """What a hook learns about the end of its task; every work item has ended, too.

    Attributes:
        task_id: The Temporal workflow id.
        task_type: The workflow type.
        error_type: Of a task that failed: `RetriesExhausted` …; else None.
        message: What happened last, in one line, where the task failed; else None.
        counts: Of its work items and lineages.
    """

    task_id: str
    task_type: str
    state: TaskEndState
    error_type: str | None
    message: str | None
    counts: Counts


@dataclass(frozen=True)
class FollowUp:
    """A workflow that is started as the last act of a task, and lives on without it.

    Attributes:
        workflow: Its type.
        input: Its only argument.
        id: Its workflow id; None: the task's with `/follow-up` behind it. Where a workflow of that id is
            running already, none is started.
        task_queue: None: the task's.
    """

    workflow: str
    input: JsonValue
    id: str | None = None
    task_queue: str | None = None


TaskEndHook = Callable[[TaskEnd], FollowUp | None]
"""Called once, when a task that has begun a work item has ended. Pure: no clock, no random, no I/O."""
