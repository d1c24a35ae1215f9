"""Decides about the retries of adopted activities as Temporal would. Pure, without a clock or a workflow.

Temporal's server decides about the retries of a native activity. The rules here are the server's, so that an
adopted activity ends as a native one would.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf

from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    FailureError,
    RetryState,
    ServerError,
    TerminatedError,
    TimeoutError as TemporalTimeout,
    TimeoutType,
)

from tasquencer.core.failure import Failure
from tasquencer.core.retry import LONGEST_BACKOFF, MOST_RETRIES, Delay, RetryRecipe
from tasquencer.core.work_item import DelayReason

__all__ = [
    "AdoptedPolicy",
    "adopted_failure",
    "canceled_error",
    "final_error",
    "is_retryable",
    "late_error",
    "next_step",
    "operator_error",
]

_TIMEOUT_PREFIX = "TemporalTimeout:"
_TIMEOUT_NAMES = {
    TimeoutType.START_TO_CLOSE: "StartToClose",
    TimeoutType.HEARTBEAT: "Heartbeat",
}
"""The timeouts after which Temporal retries, by their names in `non_retryable_error_types`."""

_NOT_ENOUGH_TIME = (
    "Not enough time to schedule next retry before activity ScheduleToClose timeout, giving up retrying"
)

_MOST_COEFFICIENT = 1_000.0


@dataclass(frozen=True)
class AdoptedPolicy:
    """A `RetryPolicy` with the server's defaults for fields that are not set.

    Attributes:
        most_attempts: At most `MOST_RETRIES + 1`, even if Temporal's own number is unlimited.
    """

    initial_interval: timedelta
    backoff_coefficient: float
    maximum_interval: timedelta
    most_attempts: int
    non_retryable_error_types: tuple[str, ...] = ()

    @classmethod
    def of(cls, policy: RetryPolicy | None) -> AdoptedPolicy:
        """Return the policy that an activity was started with. None is the server's default."""
        policy = policy or RetryPolicy()
        initial = policy.initial_interval or timedelta(seconds=1)
        try:
            longest = policy.maximum_interval or 100 * initial
        except OverflowError:
            longest = LONGEST_BACKOFF
        asked = policy.maximum_attempts
        return cls(
            initial_interval=min(initial, LONGEST_BACKOFF),
            backoff_coefficient=policy.backoff_coefficient,
            maximum_interval=min(longest, LONGEST_BACKOFF),
            most_attempts=min(asked, MOST_RETRIES + 1) if asked > 0 else MOST_RETRIES + 1,
            non_retryable_error_types=tuple(policy.non_retryable_error_types or ()),
        )

    @property
    def recipe(self) -> RetryRecipe:
        """Return the recipe that people see for it."""
        return RetryRecipe(
            max_retries=self.most_attempts - 1,
            initial_interval=self.initial_interval,
            backoff_coefficient=min(max(1.0, self.backoff_coefficient), _MOST_COEFFICIENT),
            maximum_interval=max(self.maximum_interval, self.initial_interval),
        )

    def backoff(self, attempt: int) -> timedelta:
        """Return the wait after this attempt (0-based) has failed."""
        try:
            factor = float(self.backoff_coefficient) ** attempt
        except OverflowError:
            factor = inf
        longest = self.maximum_interval
        if self.initial_interval.total_seconds() * factor >= longest.total_seconds():
            return longest
        return self.initial_interval * factor


def is_retryable(cause: BaseException | None, non_retryable_error_types: Collection[str]) -> bool:
    """Return whether Temporal would retry after this failure of an attempt."""
    if isinstance(cause, TemporalTimeout):
        name = _TIMEOUT_NAMES.get(cause.type) if cause.type is not None else None
        return name is not None and _TIMEOUT_PREFIX + name not in non_retryable_error_types
    if isinstance(cause, CancelledError | TerminatedError):
        return False
    if isinstance(cause, ServerError):
        return not cause.non_retryable
    if isinstance(cause, ApplicationError):
        return not cause.non_retryable and (cause.type or "") not in non_retryable_error_types
    return True


def adopted_failure(failure: Failure, cause: BaseException | None, policy: AdoptedPolicy) -> Failure:
    """Return the failure with the facts for the retry: whether it qualifies, and the delay that it asks for.

    Args:
        failure: As read from the error.
        cause: Of the `ActivityError`.
        policy: Of the activity.
    """
    update: dict[str, object] = {"transient": is_retryable(cause, policy.non_retryable_error_types)}
    asked = cause.next_retry_delay if isinstance(cause, ApplicationError) else None
    if asked is not None:
        update["retry_after_seconds"] = max(0.0, asked.total_seconds())
    return failure.model_copy(update=update)


def next_step(
    policy: AdoptedPolicy, attempt: int, failure: Failure, *, now: datetime, deadline: datetime | None
) -> Delay | RetryState:
    """Return what follows a failed attempt: the wait for the next one, or why there is none.

    A delay that the activity asks for replaces the backoff, even if it is shorter, or longer than the
    policy's maximum.

    Args:
        policy: Of the activity.
        attempt: 0-based number of the attempt that failed.
        failure: See `adopted_failure`.
        now: When it failed.
        deadline: The end of the schedule-to-close timeout, if there is one.
    """
    if not failure.transient:
        return RetryState.NON_RETRYABLE_FAILURE
    if attempt + 1 >= policy.most_attempts:
        return RetryState.MAXIMUM_ATTEMPTS_REACHED
    asked = failure.retry_after_seconds
    if asked is None:
        delay = Delay(policy.backoff(attempt), DelayReason.BACKOFF)
    else:
        seconds = min(asked, LONGEST_BACKOFF.total_seconds())
        delay = Delay(timedelta(seconds=seconds), DelayReason.RETRY_AFTER)
    if deadline is not None and now + delay.duration >= deadline:
        return RetryState.TIMEOUT
    return delay


# The errors that the workflow's code sees


def final_error(
    error: ActivityError, state: RetryState, before: BaseException | None, *, has_limit: bool = True
) -> ActivityError:
    """Return the error of the last attempt, as Temporal would have raised it for the activity.

    Args:
        error: Of the last attempt.
        state: Why no attempt follows.
        before: The cause of the failure of the attempt before; the server keeps it below a timeout.
        has_limit: One attempt has less time than all attempts together.
    """
    cause = error.cause
    if isinstance(cause, TemporalTimeout):
        if cause.type not in _TIMEOUT_NAMES:
            state = RetryState.TIMEOUT
        cause = _final_timeout(cause, state, before, has_limit)
    final = ActivityError(
        error.message,
        scheduled_event_id=error.scheduled_event_id,
        started_event_id=error.started_event_id,
        identity=error.identity,
        activity_type=error.activity_type,
        activity_id=error.activity_id,
        retry_state=state,
    )
    final.__cause__ = cause
    return final


def _final_timeout(
    timeout: TemporalTimeout, state: RetryState, before: BaseException | None, has_limit: bool
) -> TemporalTimeout:
    details = timeout.last_heartbeat_details
    if state is RetryState.TIMEOUT and timeout.type in _TIMEOUT_NAMES:
        final = TemporalTimeout(
            _NOT_ENOUGH_TIME, type=TimeoutType.SCHEDULE_TO_CLOSE, last_heartbeat_details=details
        )
        final.__cause__ = timeout if has_limit else before
    else:
        final = TemporalTimeout(timeout.message, type=timeout.type, last_heartbeat_details=details)
        final.__cause__ = timeout.cause or before
    return final


def late_error(activity_type: str, activity_id: str, before: BaseException | None) -> ActivityError:
    """Return the error of an activity whose schedule-to-close timeout ends before its next attempt begins."""
    timeout = TemporalTimeout(_NOT_ENOUGH_TIME, type=TimeoutType.SCHEDULE_TO_CLOSE, last_heartbeat_details=[])
    timeout.__cause__ = before
    return _error("Activity task timed out", activity_type, activity_id, RetryState.TIMEOUT, timeout)


def canceled_error(activity_type: str, activity_id: str, *, waits: bool = False) -> ActivityError:
    """Return the error of an activity that was canceled while no attempt of it was running.

    Args:
        waits: True if the activity waits for the end of its cancellation. Then the server answers.
    """
    cause = CancelledError("Cancelled", *(["ACTIVITY_ID_NOT_STARTED"] if waits else []))
    return _error("Activity cancelled", activity_type, activity_id, RetryState.CANCEL_REQUESTED, cause)


def operator_error(
    activity_type: str, activity_id: str, failure: Failure, state: RetryState
) -> ActivityError:
    """Return the error of an activity whose last attempt a person or a program has declared failed."""
    cause = ApplicationError(
        failure.message,
        failure.model_dump(mode="json"),
        type=failure.kind,
        non_retryable=not failure.transient,
    )
    return _error("Activity task failed", activity_type, activity_id, state, cause)


def _error(
    message: str, activity_type: str, activity_id: str, state: RetryState, cause: FailureError
) -> ActivityError:
    error = ActivityError(
        message,
        scheduled_event_id=0,
        started_event_id=0,
        identity="",
        activity_type=activity_type,
        activity_id=activity_id,
        retry_state=state,
    )
    error.__cause__ = cause
    return error
