"""Prevents a second run of a work item's activity after an operator edits or resets it in Temporal.

`temporal activity update-options` can give an activity more attempts than the one it was scheduled with, and
`temporal activity reset` sets its count back to one. Three things keep such an activity from running twice:

- the policy `NEVER_RETRY` names the errors that Temporal makes itself as not retryable. No command of the
  CLI changes that;
- the failures of the AI call are not retryable for Temporal, whatever the recipe says about them;
- a second run that happens anyway fails as `operator` before it does anything.
"""

from __future__ import annotations

from typing import Any

from temporalio import activity
from temporalio.common import RetryPolicy
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from tasquencer.core.failure import Failure, FailureKind
from tasquencer.temporal.failures import as_application_error

__all__ = ["CALLED", "NEVER_RETRY", "OnlyOnce", "is_second_run", "second_run"]

CALLED = "called"
"""Detail of a call's first heartbeat. Temporal keeps it when an activity is reset."""

_MARK = "tasquencer.WorkItem"

NEVER_RETRY = RetryPolicy(
    maximum_attempts=1,
    non_retryable_error_types=[
        "TemporalTimeout:StartToClose",
        "TemporalTimeout:Heartbeat",
        "WorkerShutdown",
        _MARK,  # no error's type: it tells the worker whose policy this is
    ],
)
"""A work item's activity never runs again, because the retry is another work item."""


def is_second_run() -> bool:
    """Return whether the server runs the current activity again.

    The count alone is not enough, because a reset between two runs sets it back to one.
    """
    info = activity.info()
    was_scheduled_again = info.current_attempt_scheduled_time > info.scheduled_time
    return info.attempt > 1 or (was_scheduled_again and CALLED in info.heartbeat_details)


def second_run() -> Failure:
    """Return the failure of a second run, which does nothing."""
    message = "Temporal ran the activity a second time, which sends nothing: the task retries, not Temporal"
    return Failure.of(FailureKind.OPERATOR, message, outcome_unknown=True)


class OnlyOnce(Interceptor):
    """Fails the second run of any activity that a work item has scheduled."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """See the base class."""
        return _OnlyOnce(next)


class _OnlyOnce(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        info = activity.info()
        if info.attempt > 1 and not info.is_local:
            policy = info.retry_policy
            if policy is not None and _MARK in (policy.non_retryable_error_types or ()):
                raise as_application_error(second_run(), is_final=True)
        return await super().execute_activity(input)
