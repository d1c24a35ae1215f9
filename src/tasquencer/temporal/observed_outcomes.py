"""Running and ended observed attempts, as their worker sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import monotonic

from pydantic import JsonValue
from temporalio import activity

from tasquencer.ai.agents.reading import AgentStep
from tasquencer.ai.agents.steps import agent_job_record
from tasquencer.core.entries import LedgerEntry
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import DelayReason, Transition, WorkItem, WorkItemState
from tasquencer.temporal.observed_attempt import ACTIVITY_ID, TEMPORAL, Attempt
from tasquencer.temporal.observed_ends import end_entry

__all__ = ["Begun", "End", "a_failure", "canceled_end", "start_entries", "waited"]


class Begun:
    """A running attempt.

    Args:
        step: The agent's step, if it is one.
        keeps_texts: True to keep prompt and answer of a model request.
    """

    def __init__(
        self, attempt: Attempt, payload: dict[str, JsonValue], step: AgentStep | None, *, keeps_texts: bool
    ) -> None:
        self.attempt = attempt
        self.step = step
        self._keeps_texts = keeps_texts
        if step is not None:
            payload = payload | {ACTIVITY_ID: attempt.activity_id}
        self.work_item = attempt.work_item(payload, step.name if step is not None else attempt.activity_id)
        self.is_written = False
        self._began = monotonic()

    def other_lineages(self) -> list[str]:
        """Other lineages for a work item, if an earlier use of its activity id or name has taken its own."""
        at = f"{self.attempt.scheduled_at:%Y-%m-%dT%H:%M:%S.%f}"
        if self.step is None:
            return [f"{self.work_item.lineage}@{at}"]
        own = f"{self.step.name} #{self.attempt.activity_id}"
        return [own, f"{own}@{at}"]

    def with_job(self, entry: LedgerEntry, facts: Mapping[str, JsonValue]) -> LedgerEntry:
        """Return the entry with the row of `ai_jobs`, if it is a model request.

        Args:
            facts: The facts about the attempt so far, in the names of `AiAnswer`.
        """
        if self.step is None:
            return entry
        retries, keeps = self.attempt.most_retries, self._keeps_texts
        record = agent_job_record(entry.work_item, self.step, facts, max_retries=retries, keeps_texts=keeps)
        return entry.model_copy(update={"record": record})

    @property
    def elapsed(self) -> timedelta:
        """The time that it has been running."""
        return timedelta(seconds=monotonic() - self._began)

    @property
    def is_too_late(self) -> bool:
        """Return whether Temporal has given up the attempt because of its start-to-close timeout."""
        limit = activity.info().start_to_close_timeout
        return limit is not None and limit > timedelta(0) and self.elapsed > limit


@dataclass(frozen=True)
class End:
    """The end of an attempt.

    Attributes:
        facts: The facts about a model request, in the names of `AiAnswer`.
    """

    at: datetime
    state: WorkItemState
    result: JsonValue = None
    failure: Failure | None = None
    reason: str | None = None
    facts: Mapping[str, JsonValue] = field(default_factory=dict)

    def of(self, begun: Begun) -> LedgerEntry:
        """Return the entry that ends the attempt."""
        entry = end_entry(
            begun.work_item,
            self.state,
            at=self.at,
            result=self.result,
            failure=self.failure,
            reason=self.reason,
        )
        return begun.with_job(entry, {"latency_seconds": begun.elapsed.total_seconds()} | dict(self.facts))


def canceled_end(now: datetime, begun: Begun) -> End:
    """Return the end of a canceled attempt, with Temporal's reason."""
    details = activity.cancellation_details()
    if details is None:
        failure = a_failure(FailureKind.UNEXPECTED, "it raised CancelledError without a cancel")
        return End(now, WorkItemState.FAILED, failure=failure)
    if details.timed_out:
        limit = activity.info().start_to_close_timeout
        if limit is not None and begun.elapsed >= 0.95 * limit:
            failure = a_failure(FailureKind.TIMED_OUT, "no outcome within the attempt's time limit")
        else:
            failure = a_failure(FailureKind.WORKER_LOST, "Temporal got no heartbeat in time")
        return End(now, WorkItemState.FAILED, failure=failure)
    if details.worker_shutdown:
        failure = a_failure(FailureKind.WORKER_SHUTDOWN, "the worker was stopped before the attempt ended")
        return End(now, WorkItemState.FAILED, failure=failure)
    if details.paused or details.reset:
        what = "paused" if details.paused else "reset"
        failure = a_failure(FailureKind.OPERATOR, f"the activity was {what}")
        return End(now, WorkItemState.FAILED, failure=failure)
    reason = "canceled" if details.cancel_requested else "Temporal no longer waits for it"
    return End(now, WorkItemState.CANCELED, reason=reason)


def a_failure(kind: FailureKind, message: str) -> Failure:
    """Return a failure that only Temporal reported."""
    return Failure.of(kind, message, outcome_unknown=kind is not FailureKind.UNEXPECTED)


def waited(item: WorkItem, wait: timedelta, failure: Failure | None, backoff: timedelta) -> WorkItem:
    """Return the work item with the wait before it and the reason of the wait.

    Args:
        wait: The time from the end of the previous attempt to the scheduled time of this one.
        failure: The failure of the previous attempt.
        backoff: The backoff of the retry policy. A provider may have asked for another wait, but only the
        activity can make Temporal obey it.
    """
    asked = failure.retry_after_seconds if failure is not None else None
    seconds = wait.total_seconds()
    is_kept = asked is not None and abs(seconds - asked) <= abs(seconds - backoff.total_seconds())
    reason = DelayReason.RETRY_AFTER if is_kept else DelayReason.BACKOFF
    return item.model_copy(update={"delay_seconds": seconds, "delay_reason": reason})


def start_entries(begun: Begun) -> list[LedgerEntry]:
    """Return the entries that create the work item and start it."""
    item = begun.work_item
    created = item.model_copy(update={"state": WorkItemState.INITIALIZED, "started_at": None})
    steps = [
        (created, None, item.created_at),
        (item, WorkItemState.INITIALIZED, item.started_at or item.created_at),
    ]
    created_and_started = [
        LedgerEntry(
            transition=Transition(
                work_item_id=item.id,
                sequence=sequence,
                previous_state=previous,
                next_state=then.state,
                at=at,
                actor=TEMPORAL,
            ),
            work_item=then,
        )
        for sequence, (then, previous, at) in enumerate(steps)
    ]
    created_and_started[-1] = begun.with_job(created_and_started[-1], {})
    return created_and_started
