"""What follows a failed attempt of an adopted activity: as Temporal's server decides."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    RetryState,
    ServerError,
    TerminatedError,
    TimeoutError as TemporalTimeout,
    TimeoutType,
)

from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.retry import MOST_RETRIES, Delay
from tasquencer.core.work_item import DelayReason
from tasquencer.temporal.adopting_retries import (
    AdoptedPolicy,
    adopted_failure,
    canceled_error,
    final_error,
    is_retryable,
    late_error,
    next_step,
    operator_error,
)

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
FLAKY = Failure(kind="Flaky", message="again", transient=True)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def timeout(kind: TimeoutType) -> TemporalTimeout:
    return TemporalTimeout("too late", type=kind, last_heartbeat_details=["beat"])


def failed_with(cause: BaseException) -> ActivityError:
    error = ActivityError(
        "Activity task failed",
        scheduled_event_id=5,
        started_event_id=6,
        identity="a worker",
        activity_type="charge",
        activity_id="an-id",
        retry_state=RetryState.MAXIMUM_ATTEMPTS_REACHED,
    )
    error.__cause__ = cause
    return error


def test_no_policy_is_the_servers_default_with_a_bound() -> None:
    policy = AdoptedPolicy.of(None)
    assert policy.initial_interval == seconds(1)
    assert policy.backoff_coefficient == 2
    assert policy.maximum_interval == seconds(100)
    assert policy.most_attempts == MOST_RETRIES + 1
    assert policy.recipe.max_retries == MOST_RETRIES
    assert policy.recipe.maximum_interval == seconds(100)


@pytest.mark.parametrize(("asked", "retries"), [(0, MOST_RETRIES), (1, 0), (4, 3), (100_000, MOST_RETRIES)])
def test_maximum_attempts_become_retries(asked: int, retries: int) -> None:
    assert AdoptedPolicy.of(RetryPolicy(maximum_attempts=asked)).recipe.max_retries == retries


def test_extreme_policies_still_make_a_recipe() -> None:
    for policy in (
        RetryPolicy(initial_interval=timedelta.max, backoff_coefficient=1e300),
        RetryPolicy(initial_interval=timedelta(days=3000), maximum_interval=timedelta(days=4000)),
        RetryPolicy(initial_interval=timedelta(0)),
        RetryPolicy(maximum_attempts=1, backoff_coefficient=0.1, maximum_interval=timedelta(microseconds=1)),
    ):
        adopted = AdoptedPolicy.of(policy)
        assert adopted.recipe.max_retries >= 0
        assert adopted.backoff(1_000) <= timedelta(days=365)


def test_the_backoff_grows_to_the_maximum_interval() -> None:
    policy = AdoptedPolicy.of(
        RetryPolicy(initial_interval=seconds(2), backoff_coefficient=3, maximum_interval=seconds(50))
    )
    assert [policy.backoff(attempt) for attempt in range(5)] == [
        seconds(2), seconds(6), seconds(18), seconds(50), seconds(50)
    ]  # fmt: skip
    assert policy.backoff(100_000) == seconds(50)


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (ApplicationError("x", type="Flaky"), True),
        (ApplicationError("x"), True),
        (ApplicationError("x", type="Flaky", non_retryable=True), False),
        (ApplicationError("x", type="Listed"), False),
        (timeout(TimeoutType.START_TO_CLOSE), True),
        (timeout(TimeoutType.HEARTBEAT), False),  # listed
        (timeout(TimeoutType.SCHEDULE_TO_START), False),
        (timeout(TimeoutType.SCHEDULE_TO_CLOSE), False),
        (CancelledError("x"), False),
        (TerminatedError("x"), False),
        (ServerError("x"), True),
        (ServerError("x", non_retryable=True), False),
        (None, True),
    ],
)
def test_which_failures_are_retried(cause: BaseException | None, expected: bool) -> None:
    assert is_retryable(cause, ["Listed", "TemporalTimeout:Heartbeat"]) is expected


def test_the_failure_knows_whether_it_is_retried_and_after_what_delay() -> None:
    policy = AdoptedPolicy.of(RetryPolicy(non_retryable_error_types=["Listed"]))
    listed = adopted_failure(FLAKY, ApplicationError("x", type="Listed"), policy)
    assert not listed.transient
    later = ApplicationError("x", type="Later", next_retry_delay=seconds(7))
    assert adopted_failure(FLAKY, later, policy).retry_after_seconds == 7
    assert adopted_failure(FLAKY, ApplicationError("x"), policy).retry_after_seconds is None


def test_the_next_attempt_waits_for_the_backoff() -> None:
    policy = AdoptedPolicy.of(RetryPolicy(maximum_attempts=3))
    assert next_step(policy, 1, FLAKY, now=NOW, deadline=None) == Delay(seconds(2), DelayReason.BACKOFF)


@pytest.mark.parametrize("asked", [0.0, 0.1, 1_000.0])
def test_a_delay_that_is_asked_for_replaces_the_backoff_and_its_maximum(asked: float) -> None:
    policy = AdoptedPolicy.of(RetryPolicy(initial_interval=seconds(5), maximum_interval=seconds(10)))
    failure = FLAKY.model_copy(update={"retry_after_seconds": asked})
    expected = Delay(seconds(asked), DelayReason.RETRY_AFTER)
    assert next_step(policy, 0, failure, now=NOW, deadline=None) == expected


def test_why_no_attempt_follows() -> None:
    policy = AdoptedPolicy.of(RetryPolicy(maximum_attempts=2))
    lasting = FLAKY.model_copy(update={"transient": False})
    assert next_step(policy, 0, lasting, now=NOW, deadline=None) is RetryState.NON_RETRYABLE_FAILURE
    assert next_step(policy, 1, FLAKY, now=NOW, deadline=None) is RetryState.MAXIMUM_ATTEMPTS_REACHED
    assert next_step(policy, 0, FLAKY, now=NOW, deadline=NOW + seconds(1)) is RetryState.TIMEOUT
    assert isinstance(next_step(policy, 0, FLAKY, now=NOW, deadline=NOW + seconds(1.1)), Delay)


def test_the_final_error_keeps_all_but_the_retry_state() -> None:
    cause = ApplicationError("x", type="Flaky")
    final = final_error(failed_with(cause), RetryState.NON_RETRYABLE_FAILURE, None)
    assert final.retry_state is RetryState.NON_RETRYABLE_FAILURE
    assert final.cause is cause
    assert (final.message, final.scheduled_event_id, final.started_event_id) == ("Activity task failed", 5, 6)
    assert (final.identity, final.activity_type, final.activity_id) == ("a worker", "charge", "an-id")


def test_below_a_timeout_is_the_failure_before() -> None:
    before = ApplicationError("the first", type="Flaky")
    last = timeout(TimeoutType.START_TO_CLOSE)
    final = final_error(failed_with(last), RetryState.MAXIMUM_ATTEMPTS_REACHED, before)
    assert isinstance(final.cause, TemporalTimeout)
    assert final.cause.type is TimeoutType.START_TO_CLOSE
    assert final.cause.last_heartbeat_details == ["beat"]
    assert final.cause.cause is before
    assert last.cause is None


def test_a_timeout_without_time_for_a_retry_is_one_of_all_attempts() -> None:
    last = timeout(TimeoutType.START_TO_CLOSE)
    final = final_error(failed_with(last), RetryState.TIMEOUT, None)
    assert isinstance(final.cause, TemporalTimeout)
    assert final.cause.type is TimeoutType.SCHEDULE_TO_CLOSE
    assert final.cause.cause is last


@pytest.mark.parametrize("kind", [TimeoutType.SCHEDULE_TO_START, TimeoutType.SCHEDULE_TO_CLOSE])
def test_timeouts_that_are_never_retried_say_so(kind: TimeoutType) -> None:
    final = final_error(failed_with(timeout(kind)), RetryState.NON_RETRYABLE_FAILURE, None)
    assert final.retry_state is RetryState.TIMEOUT
    assert isinstance(final.cause, TemporalTimeout)
    assert final.cause.type is kind


def test_errors_of_activities_without_an_attempt_under_way() -> None:
    canceled = canceled_error("charge", "an-id")
    assert isinstance(canceled.cause, CancelledError)
    assert canceled.retry_state is RetryState.CANCEL_REQUESTED
    late = late_error("charge", "an-id", ApplicationError("before"))
    assert isinstance(late.cause, TemporalTimeout)
    assert isinstance(late.cause.cause, ApplicationError)
    failure = Failure.of(FailureKind.OPERATOR, "failed by ann")
    declared = operator_error("charge", "an-id", failure, RetryState.MAXIMUM_ATTEMPTS_REACHED)
    assert isinstance(declared.cause, ApplicationError)
    assert declared.cause.type == "operator"
