"""Work items: one durable record for each attempt, immutable after its end."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue

from tasquencer.core.failure import Failure

__all__ = ["LEGAL_TRANSITIONS", "DelayReason", "Transition", "WorkItem", "WorkItemState"]


class WorkItemState(StrEnum):
    """The state of a work item: `initialized → started → completed | failed | canceled`."""

    INITIALIZED = "initialized"
    """Recorded, and waiting for its delay to pass."""
    STARTED = "started"
    """Its call may be under way."""
    COMPLETED = "completed"
    """Ended with a result."""
    FAILED = "failed"
    """Ended with a failure. It is never tried again: a retry is another work item."""
    CANCELED = "canceled"
    """Ended by a person or by its task, without its own outcome."""

    @property
    def is_terminal(self) -> bool:
        """True for the states that nothing leaves."""
        return self in _TERMINAL


_TERMINAL = frozenset({WorkItemState.COMPLETED, WorkItemState.FAILED, WorkItemState.CANCELED})

LEGAL_TRANSITIONS: dict[WorkItemState | None, frozenset[WorkItemState]] = {
    None: frozenset({WorkItemState.INITIALIZED}),
    WorkItemState.INITIALIZED: frozenset({WorkItemState.STARTED, WorkItemState.CANCELED}),
    WorkItemState.STARTED: _TERMINAL,
    WorkItemState.COMPLETED: frozenset(),
    WorkItemState.FAILED: frozenset(),
    WorkItemState.CANCELED: frozenset(),
}
"""The states that may follow each state. None means not created yet."""


class DelayReason(StrEnum):
    """The reason for a work item's wait before it starts."""

    FIRST_TRY = "first_try"
    """No wait, because it is the first attempt."""
    BACKOFF = "backoff"
    """The recipe's backoff."""
    RETRY_AFTER = "retry_after"
    """The provider asked for more than the backoff."""
    FALLBACK = "fallback"
    """It does not wait: it asks another provider than the attempt before."""
    OPERATOR = "operator"
    """A person ended the wait."""


class WorkItem(BaseModel):
    """One attempt at a task's work: a row of the ledger.

    Attributes:
        id: Unique. Also the id of its activity and the `Idempotency-Key` of its AI request.
        task_id: The Temporal workflow id.
        run_id: The Temporal run in which it was created.
        task_type: The workflow type.
        lineage: The name of the chain of work items that try the same thing.
        attempt: 0 is the first try, k is retry k.
        payload: Its input as JSON. None if a listing leaves it out.
        result: Its result as JSON, after it completed.
        failure: Its failure, after it failed.
        delay_seconds: Its wait after the end of its predecessor. 0 for the first.
        not_before: It starts no earlier than this.
        worker: The identity of the worker that ran it, if known.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    task_id: str
    run_id: str
    task_type: str
    lineage: str
    attempt: int
    state: WorkItemState
    payload: JsonValue = None
    result: JsonValue = None
    failure: Failure | None = None
    delay_seconds: float = 0.0
    delay_reason: DelayReason = DelayReason.FIRST_TRY
    not_before: AwareDatetime
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    worker: str | None = None

    @property
    def label(self) -> str:
        """The attempt as people read it: `first try`, `retry 2`."""
        return "first try" if self.attempt == 0 else f"retry {self.attempt}"


class Transition(BaseModel):
    """One change of a work item's state, as the ledger's append-only log keeps it.

    Attributes:
        sequence: 0 for the creation, then counting up. Unique together with the id.
        actor: The cause: `task`, or the name of a person or program.
        reason: The reason in one line, if there is one.
    """

    model_config = ConfigDict(frozen=True)

    work_item_id: str
    sequence: int
    previous_state: WorkItemState | None
    next_state: WorkItemState
    at: AwareDatetime
    actor: str
    reason: str | None = None
