"""The three witnesses of a program's task: the requests' own log, the ledger, and Temporal's histories."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause as Cause
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHistory
from temporalio.worker import Replayer

from tasquencer.core.work_item import Transition, WorkItem
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tests.chaos.shapes.interpreter import AnyShape, ShapeChild
from tests.chaos.shapes.program import Program

__all__ = ["Request", "Run", "ShapeAccount", "read_requests", "read_runs"]

_HARMLESS = (
    Cause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND,
    Cause.WORKFLOW_TASK_FAILED_CAUSE_RESET_STICKY_TASK_QUEUE,
    Cause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND,
    Cause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW,
    # The answer to an update that the server has already: its workflow task was lost after that.
    Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_UPDATE_WORKFLOW_EXECUTION_MESSAGE,
)

_ENDS = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED: "completed",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED: "failed",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED: "canceled",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED: "terminated",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT: "timed out",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW: "continued",
}


@dataclass(frozen=True)
class Request:
    """A request that has arrived.

    Attributes:
        key: Id of the activity, which is that of the work item.
        held: The states that the ledger knew of the work item then; None: nobody could look.
        came: What came of it; None: its process died.
    """

    key: str
    task: str
    lineage: str
    attempt: int
    at: datetime
    tries: int
    held: Sequence[str] | None
    came: str | None = None


@dataclass
class Run:
    """One run in Temporal.

    Attributes:
        state: How it ended; `open`: it has not.
        scheduled: The calls, by activity id and the time of their scheduling.
        native: The highest attempt of each activity, by its id, as Temporal counts them.
        troubles: Workflow tasks that failed for a reason that is not harmless.
        markers: How many records, patches and other markers its history has.
        lost: How many workflow tasks ended without having been heard: what they decided is decided again.
        replay_error: Why the history does not replay; empty: it does.
    """

    run_id: str
    state: str = "open"
    error_type: str = ""
    message: str = ""
    canceled: bool = False
    closed_at: datetime | None = None
    next_run: str = ""
    scheduled: list[tuple[str, datetime]] = field(default_factory=list)
    tries: int = 0
    native: dict[str, int] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    markers: int = 0
    lost: int = 0
    replay_error: str = ""


@dataclass
class ShapeAccount:
    """All that is known of one task.

    Attributes:
        runs: The chain that counts, oldest first.
        left_runs: Those that resets have left behind.
        sightings: Ended work items as they were seen while the campaign ran.
        superseded: Work items as they were before a later decision took the place of something.
        listed: What the task says of its work items at its end; None: it does not answer.
        deaths: When workers died in the task's time.
        kept: The runs that a worker could not remove from its cache at once, whosever they are.
    """

    program: Program
    task_id: str
    runs: list[Run]
    left_runs: list[Run] = field(default_factory=list)
    items: Sequence[WorkItem] = ()
    transitions: Mapping[str, Sequence[Transition]] = field(default_factory=dict)
    requests: Sequence[Request] = ()
    sightings: Sequence[WorkItem] = ()
    superseded: Sequence[WorkItem] = ()
    listed: Sequence[Mapping[str, Any]] | None = None
    query_error: str = ""
    deaths: Sequence[datetime] = ()
    kept: Set[str] = frozenset()
    replies: Sequence[tuple[str, str]] = ()

    @property
    def last(self) -> Run:
        """The run that is the task's end."""
        return self.runs[-1]

    @property
    def is_reset(self) -> bool:
        """Whether the task has a past that does not count."""
        return bool(self.left_runs)


def kept_in_caches(logs: Iterable[Path]) -> set[str]:
    """The runs that workers could not remove from their caches at once."""
    return {
        run for log in logs for run in re.findall(r"running eviction job for run ID (\S+),", log.read_text())
    }


def read_requests(log: Path) -> dict[str, list[Request]]:
    """The requests by task, in the order of their arrival."""
    if not log.exists():
        return {}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    came = {line["key"]: line["came"] for line in lines if "came" in line}
    found = defaultdict[str, list[Request]](list)
    for line in lines:
        if "came" not in line:
            found[line["task"]].append(
                Request(
                    key=line["key"],
                    task=line["task"],
                    lineage=line["lineage"],
                    attempt=line["attempt"],
                    at=datetime.fromtimestamp(line["at"], UTC),
                    tries=line["try"],
                    held=line["held"],
                    came=came.get(line["key"]),
                )
            )
    return found


async def read_runs(
    client: Client, task_id: str, first: str, made: Sequence[str] = (), replayer: Replayer | None = None
) -> tuple[list[Run], list[Run]]:
    """The runs that count, and those that resets have left behind; each was replayed."""
    if replayer is None:
        replayer = Replayer(workflows=[AnyShape, ShapeChild], plugins=[TasquencerPlugin(InMemoryLedger())])
    runs: dict[str, Run] = {}
    waiting = [first, *made]
    while waiting:
        run_id = waiting.pop(0)
        if run_id in runs:
            continue
        history = await client.get_workflow_handle(task_id, run_id=run_id).fetch_history()
        runs[run_id] = _run(run_id, history.events)
        runs[run_id].replay_error = await _replay_error(replayer, history)
        if runs[run_id].next_run:
            waiting.append(runs[run_id].next_run)
    described = await client.get_workflow_handle(task_id).describe()
    chain: list[Run] = []
    current: str | None = described.run_id
    while current is not None and current in runs:
        chain.insert(0, runs[current])
        current = next((one.run_id for one in runs.values() if one.next_run == current), None)
    return chain, [one for one in runs.values() if one not in chain]


async def _replay_error(replayer: Replayer, history: WorkflowHistory) -> str:
    came = await replayer.replay_workflow(history, raise_on_replay_failure=False)
    return "" if came.replay_failure is None else str(came.replay_failure)[:400]


def _run(run_id: str, events: Sequence[HistoryEvent]) -> Run:
    run, ids = Run(run_id), dict[int, str]()
    for event in events:
        at = _time(event.event_time)
        if event.event_type in _ENDS:
            run.state, run.closed_at = _ENDS[event.event_type], at
        match event.WhichOneof("attributes"):
            case "workflow_execution_continued_as_new_event_attributes":
                run.next_run = event.workflow_execution_continued_as_new_event_attributes.new_execution_run_id
            case "workflow_execution_failed_event_attributes":
                failure = event.workflow_execution_failed_event_attributes.failure
                run.error_type, run.message = failure.application_failure_info.type, failure.message
            case "workflow_execution_cancel_requested_event_attributes":
                run.canceled = True
            case "activity_task_scheduled_event_attributes":
                scheduled = event.activity_task_scheduled_event_attributes
                ids[event.event_id] = scheduled.activity_id
                if scheduled.activity_type.name == "work":
                    run.scheduled.append((scheduled.activity_id, at))
            case "marker_recorded_event_attributes":
                run.markers += 1
            case "workflow_task_timed_out_event_attributes":
                run.lost += 1
            case "activity_task_started_event_attributes":
                started = event.activity_task_started_event_attributes
                run.tries = max(run.tries, started.attempt)
                run.native[ids[started.scheduled_event_id]] = started.attempt
            case "workflow_task_failed_event_attributes":
                failed = event.workflow_task_failed_event_attributes
                run.lost += 1
                if failed.cause not in _HARMLESS:
                    run.troubles.append(f"{Cause.Name(failed.cause)}: {failed.failure.message[:400]}")
    return run


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)
