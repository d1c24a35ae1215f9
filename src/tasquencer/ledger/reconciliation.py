"""Decides about open work items from the state of their task in Temporal.

A task has no chance to end its work items if it is terminated, runs into a timeout of Temporal, is reset or
is deleted. The reconciler asks Temporal about the task of each open work item, and `judge` decides.

A work item belongs to the run that created it. A later run may have taken it over:

- While the run itself is running, the work item is left alone.
- After the run continued as new, the work item belongs to the later runs of the chain.
- After a reset, or if Temporal has deleted the run, the latest run owns it only if it lists it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from tasquencer.core.wording import one_line

__all__ = ["LEAVE", "Cause", "Judgement", "Run", "RunStatus", "judge", "judge_observed", "reason_of"]

_TOLD_LENGTH = 500
"""Maximum characters of a person's reason in a transition."""


class RunStatus(StrEnum):
    """The state of a workflow's run in Temporal."""

    RUNNING = "running"
    """Not closed. A paused run counts as running."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    TERMINATED = "terminated"
    CONTINUED_AS_NEW = "continued_as_new"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True)
class Run:
    """A run of a workflow, as Temporal describes it.

    Attributes:
        chain: The run with which its task began. It is the same for all runs that continue as new, are
        retried, or are made by a reset.
        closed_at: None while it is running.
        was_reset: True if a reset has made another run from a point of this one.
    """

    id: str
    chain: str
    status: RunStatus
    started_at: datetime
    closed_at: datetime | None = None
    was_reset: bool = False


class Cause(StrEnum):
    """Why a work item was left open."""

    TERMINATED = "terminated"
    """Its task was terminated."""
    TIMED_OUT = "timed_out"
    """Its task ran into a timeout of Temporal."""
    RESET = "reset"
    """A reset of its task abandoned the run that had created it."""
    UNKNOWN = "unknown"
    """Temporal no longer has its task: retention has passed, or a person deleted it."""
    ENDED = "ended"
    """Its task ended normally, but never knew of it: a worker wrote it and died."""


@dataclass(frozen=True)
class Judgement:
    """The decision about the open work items of a run.

    Attributes:
        cause: Why they are settled. None: leave them alone.
        only_unlisted: True to settle only those that the task's latest run does not list.
        ended_by: The run whose end settles them, if there is one.
    """

    cause: Cause | None
    only_unlisted: bool = False
    ended_by: Run | None = None


LEAVE = Judgement(None)
"""A run still owns them, or it is too early to decide."""


def judge(own: Run | None, latest: Run | None, *, now: datetime, grace: timedelta) -> Judgement:
    """Decide about the work items that a run has left open.

    Args:
        own: The run that created the work items. None: Temporal does not have it.
        latest: The latest run of the same workflow id. None: Temporal has none.
        grace: How long a worker may still be writing after the end of a run.
    """
    quiet_since = now - grace
    if latest is None:
        return Judgement(Cause.UNKNOWN)
    if own is None:
        if latest.status is RunStatus.RUNNING:
            return Judgement(Cause.UNKNOWN, only_unlisted=True)
        return Judgement(Cause.UNKNOWN) if _closed_before(latest, quiet_since) else LEAVE
    if not _closed_before(own, quiet_since):
        return LEAVE
    if own.id == latest.id:
        return Judgement(_CAUSES[own.status], ended_by=own)
    if own.chain != latest.chain:
        # Another task uses the id now, so the task of these work items has ended.
        return Judgement(_CAUSES[own.status], ended_by=own) if latest.started_at <= quiet_since else LEAVE
    return _judge_earlier(own, latest, quiet_since)


def judge_observed(own: Run | None, *, now: datetime, grace: timedelta) -> Judgement:
    """Decide about observed attempts of a run for which Temporal has no outcome.

    An activity ends with its run, so it does not matter whether another run follows. Arguments as for
    `judge`.
    """
    if own is None:
        return Judgement(Cause.UNKNOWN, only_unlisted=True)
    if not _closed_before(own, now - grace):
        return LEAVE
    return Judgement(_CAUSES[own.status], only_unlisted=True, ended_by=own)


def _judge_earlier(own: Run, latest: Run, quiet_since: datetime) -> Judgement:
    """Decide about the open work items of a run that is not the latest one of its task."""
    goes_on = own.status is RunStatus.CONTINUED_AS_NEW and not own.was_reset
    # A terminated task is not retried, so a reset made the later run of the same task.
    by_reset = own.status in (RunStatus.TERMINATED, RunStatus.CONTINUED_AS_NEW)
    cause = Cause.RESET if by_reset else _CAUSES[own.status]
    if latest.status is RunStatus.RUNNING:
        return LEAVE if goes_on else Judgement(cause, only_unlisted=True, ended_by=own)
    if not _closed_before(latest, quiet_since):
        return LEAVE
    return Judgement(_CAUSES[latest.status], ended_by=latest) if goes_on else Judgement(cause, ended_by=own)


_CAUSES = {
    RunStatus.COMPLETED: Cause.ENDED,
    RunStatus.FAILED: Cause.ENDED,
    RunStatus.CANCELED: Cause.ENDED,
    RunStatus.CONTINUED_AS_NEW: Cause.ENDED,
    RunStatus.TERMINATED: Cause.TERMINATED,
    RunStatus.TIMED_OUT: Cause.TIMED_OUT,
}


def _closed_before(run: Run, at: datetime) -> bool:
    return run.status is not RunStatus.RUNNING and run.closed_at is not None and run.closed_at <= at


def reason_of(cause: Cause, told: str | None = None) -> str:
    """Return the reason for the transition of a settled work item.

    Args:
        told: The reason that was given when the task was terminated.
    """
    reason = _REASONS[cause]
    if cause is Cause.TERMINATED and told and told.strip():
        return f"{reason}: {one_line(told, _TOLD_LENGTH)}"
    return reason


_REASONS = {
    Cause.TERMINATED: "the task was terminated",
    Cause.TIMED_OUT: "the task ran into Temporal's timeout",
    Cause.RESET: "a reset left this attempt behind",
    Cause.UNKNOWN: "Temporal no longer has this task",
    Cause.ENDED: "the task ended without it",
}
