"""The histories' account: what Temporal knows of a task, over all its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.enums.v1 import WorkflowTaskFailedCause
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

__all__ = ["DEADLOCK_CODE", "History", "Trouble", "read_history"]


DEADLOCK_CODE = "[TMPRL1101]"
"""The SDK's word for a workflow task that got no further for two seconds; the server gives it out again."""


@dataclass(frozen=True)
class Trouble:
    """A workflow task that failed, from its start to its failure."""

    began_at: datetime
    failed_at: datetime
    message: str

    @property
    def is_deadlock(self) -> bool:
        """Whether the SDK gave it up because its worker did not come to an end with it for two seconds."""
        return DEADLOCK_CODE in self.message


@dataclass
class History:
    """A task's history.

    Attributes:
        runs: Run ids, the first one first.
        run_started_at: When the last of them began.
        state: `completed`, `failed`, `canceled`, `terminated`, `timed out`, or `open`.
        error_type: Of the failure.
        scheduled: When each call was scheduled, by activity id; several times for an id would be one each.
        tries: The highest attempt of any activity, as Temporal counts them.
        lost_at: When the workflow tasks began that came to nothing.
        troubles: Workflow tasks that failed, other than for a new run of the same decision.
    """

    runs: list[str] = field(default_factory=list)
    started_at: datetime | None = None
    run_started_at: datetime | None = None
    closed_at: datetime | None = None
    cancel_at: datetime | None = None
    state: str = "open"
    result: Mapping[str, Any] = field(default_factory=dict)
    error_type: str = ""
    message: str = ""
    scheduled: list[tuple[str, datetime]] = field(default_factory=list)
    tries: int = 0
    lost_at: set[datetime] = field(default_factory=set)
    troubles: list[Trouble] = field(default_factory=list)


_HARMLESS = (
    # Something new came while the workflow task ran: the server has it decided again.
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND,
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_STICKY_TASK_QUEUE,
    WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND,
)


async def read_history(client: Client, task_id: str) -> History:
    """The whole chain of runs."""
    chain: list[Sequence[HistoryEvent]] = []
    run_id: str | None = None
    while True:
        fetched = await client.get_workflow_handle(task_id, run_id=run_id).fetch_history()
        chain.insert(0, fetched.events)
        run_id = fetched.events[0].workflow_execution_started_event_attributes.continued_execution_run_id
        if not run_id:
            break
    history = History()
    for events in chain:
        began = {event.event_id: _time(event.event_time) for event in events}
        for event in events:
            _take(history, event, began)
    return history


def _take(history: History, event: HistoryEvent, began: Mapping[int, datetime]) -> None:
    at = _time(event.event_time)
    match event.WhichOneof("attributes"):
        case "workflow_execution_started_event_attributes":
            started = event.workflow_execution_started_event_attributes
            history.runs.append(started.original_execution_run_id)
            history.started_at, history.run_started_at = history.started_at or at, at
        case "workflow_execution_cancel_requested_event_attributes":
            history.cancel_at = min(history.cancel_at or at, at)
        case "workflow_execution_completed_event_attributes":
            payloads = event.workflow_execution_completed_event_attributes.result.payloads
            history.state, history.closed_at = "completed", at
            history.result = json.loads(payloads[0].data)
        case "workflow_execution_failed_event_attributes":
            failure = event.workflow_execution_failed_event_attributes.failure
            history.state, history.closed_at = "failed", at
            history.error_type = failure.application_failure_info.type
            history.message = failure.message
        case "workflow_execution_canceled_event_attributes":
            history.state, history.closed_at = "canceled", at
        case "workflow_execution_terminated_event_attributes":
            history.state, history.closed_at = "terminated", at
        case "workflow_execution_timed_out_event_attributes":
            history.state, history.closed_at = "timed out", at
        case "activity_task_scheduled_event_attributes":
            scheduled = event.activity_task_scheduled_event_attributes
            if scheduled.activity_type.name == "generate":
                history.scheduled.append((scheduled.activity_id, at))
        case "activity_task_started_event_attributes":
            history.tries = max(history.tries, event.activity_task_started_event_attributes.attempt)
        case "workflow_task_failed_event_attributes":
            failed = event.workflow_task_failed_event_attributes
            began_at = began.get(failed.started_event_id, at)
            history.lost_at.add(began_at)
            if failed.cause not in _HARMLESS:
                cause = WorkflowTaskFailedCause.Name(failed.cause)
                history.troubles.append(Trouble(began_at, at, f"{cause}: {failed.failure.message[:600]}"))
        case "workflow_task_timed_out_event_attributes":
            timed_out = event.workflow_task_timed_out_event_attributes
            history.lost_at.add(began.get(timed_out.started_event_id, at))


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)
