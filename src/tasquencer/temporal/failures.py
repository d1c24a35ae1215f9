"""Converts failures to Temporal's errors and back.

An activity that fails for a business reason raises the error that `as_application_error` makes. Its type is
the failure's kind, and its single detail is the failure itself. In the workflow `failure_of` reads it back.
It also classifies Temporal's own errors: a lost worker, a timeout, a payload that is too large.
"""

from __future__ import annotations

from pydantic import ValidationError
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ApplicationErrorCategory,
    ChildWorkflowError,
    FailureError,
    TimeoutError as TemporalTimeout,
    TimeoutType,
)

from tasquencer.core.failure import Failure, FailureKind

__all__ = [
    "AI_CALL",
    "as_application_error",
    "failed_from_outside",
    "failure_of",
    "is_left_behind",
    "left_behind",
    "task_error",
    "worker_of",
]

AI_CALL = "generate"
"""Name of the activity that makes an AI call. Its errors always have a type."""

_CLI = "CLI"
"""Source of a failure that the `temporal` command has made."""

_LEFT_BEHIND = "LeftBehind"
"""Type of the error of a call whose work item a reset of the task has left behind."""

_SDK_TYPES = {
    "ActivityPause": (FailureKind.OPERATOR, "the activity was paused with Temporal's own command", True),
    "ActivityReset": (FailureKind.OPERATOR, "the activity was reset with Temporal's own command", True),
    "WorkerShutdown": (FailureKind.WORKER_SHUTDOWN, "the worker was stopped before the call ended", True),
    "PayloadsTooLarge": (
        FailureKind.TOO_LARGE,
        "the result exceeds what a Temporal payload can carry",
        False,
    ),
}
"""The SDK's own types of an activity's error: kind, message, and whether the outcome is unknown."""

_TIMED_OUT = (FailureKind.TIMED_OUT, "no outcome within the attempt's time limit")
_TIMEOUTS: dict[TimeoutType | None, tuple[FailureKind, str]] = {
    TimeoutType.HEARTBEAT: (
        FailureKind.WORKER_LOST,
        "the worker sends no more heartbeats: it died or hangs",
    ),
    TimeoutType.SCHEDULE_TO_START: (
        FailureKind.NOT_PICKED_UP,
        "no worker picked the call up in time",
    ),
}
"""Timeouts with another kind than `timed_out`."""


def as_application_error(failure: Failure, *, is_final: bool = False) -> ApplicationError:
    """Return the error that an activity raises to report a failure.

    It is benign, because an expected failure belongs in the ledger, not in the worker's error log.

    Args:
        failure: The failure to report.
        is_final: True if Temporal must never run the activity again, even if an operator gives it more
        attempts or has paused it. Only the failure decides whether the task retries.
    """
    return ApplicationError(
        failure.message,
        failure.model_dump(mode="json"),
        type=failure.kind,
        non_retryable=is_final or not failure.transient,
        category=ApplicationErrorCategory.BENIGN,
    )


def task_error(kind: str, message: str, failure: Failure | None = None) -> ApplicationError:
    """Return the error that a task ends with. Its detail is the last failure. It is expected, so benign."""
    return ApplicationError(
        message,
        *([failure.model_dump(mode="json")] if failure is not None else []),
        type=kind,
        non_retryable=True,
        category=ApplicationErrorCategory.BENIGN,
    )


def failure_of(error: FailureError) -> Failure:
    """Return the failure for an error of an activity, a local activity or a child workflow.

    An `ApplicationError` without a `Failure` becomes one of the kind that its type names. It qualifies for a
    retry unless it is non-retryable, as in Temporal.
    """
    cause = error.cause if isinstance(error, ActivityError | ChildWorkflowError) else error
    if isinstance(cause, TemporalTimeout):
        kind, message = _TIMEOUTS.get(cause.type, _TIMED_OUT)
        return Failure.of(kind, message, outcome_unknown=kind is not FailureKind.NOT_PICKED_UP)
    if not isinstance(cause, ApplicationError):
        return Failure.of(FailureKind.UNEXPECTED, f"{type(cause).__name__}: {cause}", outcome_unknown=True)
    if cause.type in _SDK_TYPES:
        kind, message, unknown = _SDK_TYPES[cause.type]
        return Failure.of(kind, message, outcome_unknown=unknown)
    if cause.details and isinstance(cause.details[0], dict):
        try:
            return Failure.model_validate(cause.details[0])
        except ValidationError:
            pass  # the details are not ours
    return Failure(
        kind=cause.type or FailureKind.UNEXPECTED,
        message=cause.message or str(cause),
        transient=not cause.non_retryable,
    )


def failed_from_outside(error: BaseException | None) -> tuple[Failure, str, str | None] | None:
    """Return the failure of an activity that a person failed with Temporal's own command, or None.

    Returns it together with the name of the client that sent the command, and its reason.
    """
    cause = error.cause if isinstance(error, ActivityError) else None
    if not isinstance(error, ActivityError) or not isinstance(cause, ApplicationError) or cause.type:
        return None
    is_from_the_cli = cause.failure is not None and cause.failure.source == _CLI
    if not is_from_the_cli and (error.activity_type != AI_CALL or cause.details):
        return None
    actor, reason = error.identity or "an operator", cause.message or None
    said = f": {reason}" if reason else ""
    return Failure.of(FailureKind.OPERATOR, f"failed by {actor}{said}", outcome_unknown=True), actor, reason


def left_behind() -> ApplicationError:
    """Return the error of a work item that a reset has left behind. It is expected, so benign."""
    return ApplicationError(
        "a reset of the task has left this attempt behind: nothing was sent",
        type=_LEFT_BEHIND,
        non_retryable=True,
        category=ApplicationErrorCategory.BENIGN,
    )


def is_left_behind(error: BaseException | None) -> bool:
    """Return whether the error means that a reset has left the work item behind, which is not an outcome."""
    cause = error.cause if isinstance(error, ActivityError) else error
    return isinstance(cause, ApplicationError) and cause.type == _LEFT_BEHIND


def worker_of(error: FailureError) -> str | None:
    """Return the identity of the worker that ran the activity, if Temporal knows it."""
    return error.identity or None if isinstance(error, ActivityError) else None
