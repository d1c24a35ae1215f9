"""Finds the ends of observed attempts that their worker did not see, by asking Temporal.

A worker may die, an attempt may time out, or another process may complete it asynchronously. The next attempt
settles the previous one. The reconciler settles attempts without a next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import JsonValue
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.failure.v1 import Failure as FailureMessage
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import (
    DescribeActivityExecutionRequest,
    DescribeWorkflowExecutionRequest,
)
from temporalio.client import Client
from temporalio.exceptions import FailureError
from temporalio.service import RPCError, RPCStatusCode

from tasquencer.ai.record import AI_JOBS
from tasquencer.core.entries import DomainRecord, LedgerEntry
from tasquencer.core.errors import LedgerConflict
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import Transition, WorkItem, WorkItemState
from tasquencer.ledger.contract import Ledger, OpenWorkItem, WorkItemFilter
from tasquencer.temporal.failures import failure_of
from tasquencer.temporal.foreign import hides_messages, without_details
from tasquencer.temporal.observed_attempt import ACTIVITY_ID, STANDALONE, TEMPORAL, Attempt

__all__ = ["Ends", "end_entry"]

_LOOK_SECONDS = 1.0
"""How long the next attempt waits for Temporal's failure of the previous one."""

_LOST = Failure.of(
    FailureKind.WORKER_LOST, "no outcome was recorded: its worker died or was cut off", outcome_unknown=True
)


def end_entry(
    item: WorkItem,
    state: WorkItemState,
    *,
    at: datetime,
    result: JsonValue = None,
    failure: Failure | None = None,
    reason: str | None = None,
    actor: str = TEMPORAL,
) -> LedgerEntry:
    """Return the entry that ends a started work item."""
    update = {"state": state, "result": result, "failure": failure, "ended_at": at}
    return LedgerEntry(
        transition=Transition(
            work_item_id=item.id,
            sequence=2,
            previous_state=WorkItemState.STARTED,
            next_state=state,
            at=at,
            actor=actor,
            reason=reason,
        ),
        work_item=item.model_copy(update=update),
    )


class Ends:
    """Settles observed attempts with their state in Temporal.

    Args:
        client: A client for the namespace of the activities.
        ledger: An open ledger.
    """

    def __init__(self, client: Client, ledger: Ledger) -> None:
        self._client = client
        self._ledger = ledger

    async def settle_before(self, open_item: WorkItem, next_one: Attempt, wait: timedelta) -> WorkItem:
        """End the previous attempt, which is still open. Return its work item."""
        failure = None
        if not next_one.is_local:
            with contextlib.suppress(RPCError, TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    failure = await self._last_failure(open_item)
        at = max(open_item.started_at or open_item.created_at, next_one.scheduled_at - wait)
        entry = end_entry(open_item, WorkItemState.FAILED, at=at, failure=failure or _LOST)
        try:
            await self._ledger.record([await self._with_job(entry)])
        except LedgerConflict:  # it has just ended
            (known,) = await self._ledger.work_items(WorkItemFilter(work_item_id=open_item.id))
            return known
        return entry.work_item

    async def of_open(self, items: Sequence[OpenWorkItem], *, is_closed: bool) -> list[LedgerEntry]:
        """Return how these attempts of one run ended according to Temporal, without running ones.

        Args:
            is_closed: True if the run is closed. Attempts without a known end are settled with the run.
        """
        ends: list[LedgerEntry] = []
        events: list[HistoryEvent] | None = None
        pending: dict[str, Any] | None = None
        for item in items:
            (whole,) = await self._ledger.work_items(WorkItemFilter(work_item_id=item.id)) or (None,)
            if whole is None or whole.state is not WorkItemState.STARTED:
                continue
            if item.task_id.startswith(STANDALONE):
                entry = await self._standalone_end(whole)
            else:
                if pending is None and not is_closed:
                    pending = await self._pending(whole)
                known = pending or {}
                under_way = next((known[one] for one in _activity_ids(whole) if one in known), None)
                if under_way is not None:
                    if under_way.attempt <= whole.attempt + 1:
                        continue
                    entry = await self._failed(whole, under_way.last_failure)
                else:
                    if events is None:
                        events = await self._closing_events(whole)
                    entry = await self._end_in(events, whole)
            if entry is not None:
                ends.append(await self._with_job(entry))
        return ends

    async def _with_job(self, entry: LedgerEntry) -> LedgerEntry:
        """Return the entry with the row of `ai_jobs`, if the work item has one, which ends, too."""
        item = entry.work_item
        rows = await self._ledger.domain_records(AI_JOBS, [item.id])
        if item.id not in rows:
            return entry
        kept = {name: value for name, value in rows[item.id].items() if name != "work_item_id"}
        ended = {"status": item.state.value, "last_error": str(item.failure) if item.failure else None}
        record = DomainRecord(table=AI_JOBS, values=kept | ended)
        return entry.model_copy(update={"record": record})

    async def _pending(self, item: WorkItem) -> dict[str, Any]:
        found = await self._client.workflow_service.describe_workflow_execution(
            DescribeWorkflowExecutionRequest(
                namespace=self._client.namespace,
                execution=WorkflowExecution(workflow_id=item.task_id, run_id=item.run_id),
            ),
            retry=True,
        )
        return {pending.activity_id: pending for pending in found.pending_activities}

    async def _last_failure(self, item: WorkItem) -> Failure | None:
        """Return the attempt's failure if Temporal's last failure of the activity belongs to this attempt."""
        if item.task_id.startswith(STANDALONE):
            described = await self._describe_standalone(item)
            attempt, failure = described.info.attempt, described.info.last_failure
        else:
            pending = await self._pending(item)
            ours = [pending[one] for one in _activity_ids(item) if one in pending]
            if not ours:
                return None
            attempt, failure = ours[0].attempt, ours[0].last_failure
        return await self._read(failure) if attempt == item.attempt + 2 else None

    async def _describe_standalone(self, item: WorkItem) -> Any:
        request = DescribeActivityExecutionRequest(
            namespace=self._client.namespace,
            activity_id=item.task_id.removeprefix(STANDALONE),
            run_id=item.run_id,
            include_outcome=True,
            include_last_failure=True,
        )
        return await self._client.workflow_service.describe_activity_execution(request, retry=True)

    async def _standalone_end(self, item: WorkItem) -> LedgerEntry | None:
        try:
            found = await self._describe_standalone(item)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return end_entry(
                item,
                WorkItemState.CANCELED,
                at=datetime.now(UTC),
                reason="Temporal no longer has this activity",
            )
        info = found.info
        if not info.HasField("close_time"):
            if info.attempt <= item.attempt + 1:
                return None
            return await self._failed(item, info.last_failure)
        at = _after_start(item, info.close_time.ToDatetime(tzinfo=UTC))
        if info.attempt > item.attempt + 1:
            return await self._failed(item, None)
        if found.outcome.HasField("result"):
            return end_entry(item, WorkItemState.COMPLETED, at=at, reason=_ELSEWHERE)
        return await self._failed(item, found.outcome.failure, at)

    async def _closing_events(self, item: WorkItem) -> list[HistoryEvent]:
        """Return the events of the run, or none if Temporal no longer has it."""
        handle = self._client.get_workflow_handle(item.task_id, run_id=item.run_id)
        try:
            return [event async for event in handle.fetch_history_events()]
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return []

    async def _end_in(self, events: Sequence[HistoryEvent], item: WorkItem) -> LedgerEntry | None:
        """Return how the attempt ended according to the history, or None."""
        scheduled = [event.event_id for event in events if _schedules(event, item)]
        if not scheduled:
            return None
        attempt = 0
        for event in events:
            if event.HasField("activity_task_started_event_attributes"):
                started = event.activity_task_started_event_attributes
                if started.scheduled_event_id == scheduled[-1]:
                    attempt = started.attempt
            elif (closing := _closing(event, scheduled[-1])) is not None:
                at = _after_start(item, event.event_time.ToDatetime(tzinfo=UTC))
                if attempt > item.attempt + 1:
                    return await self._failed(item, None)
                if closing == "completed":
                    return end_entry(item, WorkItemState.COMPLETED, at=at, reason=_ELSEWHERE)
                if closing == "canceled":
                    return end_entry(item, WorkItemState.CANCELED, at=at, reason="canceled")
                failed = getattr(event, f"activity_task_{closing}_event_attributes")
                return await self._failed(item, failed.failure, at)
        return None

    async def _failed(
        self, item: WorkItem, failure: FailureMessage | None, at: datetime | None = None
    ) -> LedgerEntry:
        read = None if failure is None else await self._read(failure)
        at = at or _after_start(item, datetime.now(UTC))
        return end_entry(item, WorkItemState.FAILED, at=at, failure=read or _LOST)

    async def _read(self, failure: FailureMessage) -> Failure | None:
        if not failure.ByteSize():
            return None
        copied = FailureMessage()
        copied.CopyFrom(failure)
        converter = self._client.data_converter
        try:
            error = await converter.decode_failure(copied)
        except Exception:  # noqa: BLE001 - the user's codec
            return None
        if not isinstance(error, FailureError):
            return None
        read = failure_of(error)
        if converter.payload_codec is None:
            return read
        return without_details(read, message="hidden" if hides_messages(converter) else None)


_ELSEWHERE = "Temporal has its result; the worker did not record it"

_CLOSING = ("completed", "failed", "timed_out", "canceled")


def _closing(event: HistoryEvent, scheduled: int) -> str | None:
    for kind in _CLOSING:
        name = f"activity_task_{kind}_event_attributes"
        if event.HasField(name) and getattr(event, name).scheduled_event_id == scheduled:  # type: ignore[arg-type]
            return kind
    return None


def _activity_ids(item: WorkItem) -> tuple[str, str]:
    """Return the possible ids of the activity: the lineage, with and without the suffix of a second use."""
    if isinstance(item.payload, dict) and isinstance(known := item.payload.get(ACTIVITY_ID), str):
        return known, known
    return item.lineage, item.lineage.rpartition("@")[0]


def _schedules(event: HistoryEvent, item: WorkItem) -> bool:
    if not event.HasField("activity_task_scheduled_event_attributes"):
        return False
    is_before = event.event_time.ToDatetime(tzinfo=UTC) <= item.created_at + timedelta(milliseconds=1)
    return is_before and event.activity_task_scheduled_event_attributes.activity_id in _activity_ids(item)


def _after_start(item: WorkItem, at: datetime) -> datetime:
    return max(at, item.started_at or item.created_at)
