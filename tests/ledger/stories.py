"""Entries to record: the life of a work item, one step at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pydantic import JsonValue

from tasquencer.core.entries import DomainRecord, LedgerEntry
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import DelayReason, Transition, WorkItem, WorkItemState

START = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
FAILURE = Failure.of(FailureKind.RATE_LIMITED, "429: slow down", retry_after_seconds=7.5, status_code=429)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


_END = after(2)
_PAYLOAD: dict[str, JsonValue] = {"question": "Why?", "sizes": [1, 2.5, None, True]}


def ai_job(status: str, /, **values: JsonValue) -> DomainRecord:
    """A whole row of `ai_jobs`."""
    empty = ("result", "last_error", "finish_reason", "provider_request_id", "input_tokens", "output_tokens")
    row: dict[str, JsonValue] = {
        "prompt": "Why?",
        "model": "m",
        "max_retries": 3,
        "attempt": 0,
        "status": status,
    }
    row |= dict.fromkeys((*empty, "cost_usd", "latency_seconds", "cached_tokens", "reasoning_tokens"))
    return DomainRecord(table="ai_jobs", values=row | values)


@dataclass
class Life:
    """One work item. Each method returns the entry of the next step."""

    id: str = "a"
    task_id: str = "task"
    run_id: str = "run"
    lineage: str = "main"
    attempt: int = 0
    payload: JsonValue = field(default_factory=lambda: dict(_PAYLOAD))
    created_at: datetime = START
    delay_seconds: float = 0.0
    delay_reason: DelayReason = DelayReason.FIRST_TRY
    item: WorkItem = field(init=False)
    sequence: int = field(init=False, default=-1)

    def initialized(self, record: DomainRecord | None = None) -> LedgerEntry:
        self.item = WorkItem(
            id=self.id,
            task_id=self.task_id,
            run_id=self.run_id,
            task_type="SomeTask",
            lineage=self.lineage,
            attempt=self.attempt,
            state=WorkItemState.INITIALIZED,
            payload=self.payload,
            delay_seconds=self.delay_seconds,
            delay_reason=self.delay_reason,
            not_before=self.created_at + timedelta(seconds=self.delay_seconds),
            created_at=self.created_at,
        )
        return self._entry(None, self.created_at, record)

    def started(self, record: DomainRecord | None = None, **update: object) -> LedgerEntry:
        at = after(1)
        return self._become(WorkItemState.STARTED, at, record, {"started_at": at, "worker": "w1"} | update)

    def completed(
        self, result: JsonValue = "because", record: DomainRecord | None = None, at: datetime = _END
    ) -> LedgerEntry:
        return self._become(WorkItemState.COMPLETED, at, record, {"ended_at": at, "result": result})

    def failed(
        self, failure: Failure = FAILURE, record: DomainRecord | None = None, at: datetime = _END
    ) -> LedgerEntry:
        return self._become(WorkItemState.FAILED, at, record, {"ended_at": at, "failure": failure})

    def canceled(self, record: DomainRecord | None = None) -> LedgerEntry:
        return self._become(WorkItemState.CANCELED, _END, record, {"ended_at": _END}, reason="enough")

    def until(self, state: WorkItemState) -> list[LedgerEntry]:
        """All entries of a life that ends in this state."""
        entries = [self.initialized()]
        if state is not WorkItemState.INITIALIZED:
            entries.append(self.started())
        if state is WorkItemState.COMPLETED:
            entries.append(self.completed())
        elif state is WorkItemState.FAILED:
            entries.append(self.failed())
        elif state is WorkItemState.CANCELED:
            entries.append(self.canceled())
        return entries

    def _become(
        self,
        state: WorkItemState,
        at: datetime,
        record: DomainRecord | None,
        update: dict[str, object],
        reason: str | None = None,
    ) -> LedgerEntry:
        before = self.item.state
        # As tasks do: the payload travels with the first entry only.
        self.item = self.item.model_copy(update={"state": state, "payload": None, **update})
        return self._entry(before, at, record, reason)

    def _entry(
        self,
        before: WorkItemState | None,
        at: datetime,
        record: DomainRecord | None,
        reason: str | None = None,
    ) -> LedgerEntry:
        self.sequence += 1
        transition = Transition(
            work_item_id=self.id,
            sequence=self.sequence,
            previous_state=before,
            next_state=self.item.state,
            at=at,
            actor="task",
            reason=reason,
        )
        return LedgerEntry(transition=transition, work_item=self.item, record=record)
