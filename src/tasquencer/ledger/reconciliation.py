"""What becomes of a work item that is still open: decided from what Temporal says of its task.

A task that is terminated, runs into a timeout of Temporal, is reset or deleted has no chance to settle its
work items. The reconciler asks Temporal about the task of each open work item, and `judge` decides.

A work item belongs to the run that has created it. What that run left open may still be on somebody's list:

- while the run itself is running, it is the task's;
- after it continued as new, it is the later runs', for as long as the chain goes on;
- after a reset, or where Temporal has forgotten the run, it is the latest run's only if that lists it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from tasquencer.core.wording import one_line

__all__ = ["LEAVE", "Cause", "Judgement", "Run", "RunStatus", "judge", "judge_observed", "reason_of"]

_TOLD_LENGTH = 500
"""Characters of somebody's reason that go into a transition."""


class RunStatus(StrEnum):
    """How a run of a workflow stands, as Temporal says."""

    RUNNING = "running"
    """Not closed; paused counts as running."""
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
        chain: The run with which its task began: runs that continue as new, are retried or made by a reset
            have it in common.
        closed_at: None while it is running.
        was_reset: A reset has made another run from a point of this one.
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
    """Temporal has forgotten its task: retention has passed, or somebody deleted it."""
    ENDED = "ended"
    """Its task ended in order, but never knew of it: a worker wrote it and died."""


@dataclass(frozen=True)
class Judgement:
    """What is to be done with the open work items of a run.

    Attributes:
        cause: Why they are to be settled; None: leave them.
        only_unlisted: Settle only those that the task's latest run does not list.
        ended_by: The run whose end settles them, if it is one.
    """

    cause: Cause | None
    only_unlisted: bool = False
    ended_by: Run | None = None


LEAVE = Judgement(None)
"""They are somebody's, or it is too soon to tell."""


def judge(own: Run | None, latest: Run | None, *, now: datetime, grace: timedelta) -> Judgement:
    """What is to be done with what a run has left open.

    Args:
        own: The run that created the work items; None: Temporal does not know it.
        latest: The latest run of the same workflow id; None: Temporal knows none.
        grace: How long after the end of a run its worker may still be writing.
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
        # Another task has taken the id since, so the one of these work items has ended.
        return Judgement(_CAUSES[own.status], ended_by=own) if latest.started_at <= quiet_since else LEAVE
    return _judge_earlier(own, latest, quiet_since)


def judge_observed(own: Run | None, *, now: datetime, grace: timedelta) -> Judgement:
    """What is to be done with observed attempts of a run for which Temporal knows no outcome.

    An activity ends with its run: it does not matter whether another run follows. Arguments as for `judge`.
    """
    if own is None:
        return Judgement(Cause.UNKNOWN, only_unlisted=True)
    if not _closed_before(own, now - grace):
        return LEAVE
    return Judgement(_CAUSES[own.status], only_unlisted=True, ended_by=own)


def _judge_earlier(own: Run, latest: Run, quiet_since: datetime) -> Judgement:
    """Of what a run has left open that is not the latest one of its task."""
    goes_on = own.status is RunStatus.CONTINUED_AS_NEW and not own.was_reset
    # What was terminated is not retried: a later run of the same task was made by a reset.
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
    """What the transition of a settled work item says.

    Args:
        told: What whoever terminated the task gave as the reason.
    """
    reason = _REASONS[cause]
    if cause is Cause.TERMINATED and told and told.strip():
        return f"{reason}: {one_line(told, _TOLD_LENGTH)}"
    return reason


_REASONS = {
    Cause.TERMINATED: "the task was terminated",
    Cause.TIMED_OUT: "the task ran into Temporal's timeout",
    Cause.RESET: "a reset left this attempt behind",
    Cause.UNKNOWN: "Temporal knows the task no more",
    Cause.ENDED: "the task ended without it",
}
