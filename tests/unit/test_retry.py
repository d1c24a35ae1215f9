"""The retry recipe: which failures qualify, how long the wait is, when it is over."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.retry import LONGEST_BACKOFF, MOST_RETRIES, Delay, GiveUp, RetryOn, RetryRecipe
from tasquencer.core.work_item import DelayReason
from tests.unit.driving import rate_limited, refused


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def test_the_default_recipe_is_three_retries_after_one_two_and_four_seconds() -> None:
    recipe = RetryRecipe()

    decisions = [recipe.after_failure(attempt, rate_limited(), 0.999) for attempt in range(4)]

    assert decisions == [
        Delay(seconds(1), DelayReason.BACKOFF),
        Delay(seconds(2), DelayReason.BACKOFF),
        Delay(seconds(4), DelayReason.BACKOFF),
        GiveUp.RETRIES_EXHAUSTED,
    ]


@pytest.mark.parametrize(
    ("recipe", "attempt", "expected"),
    [
        ({}, 0, 1),  # 1 × 2⁰
        ({}, 1, 2),  # 1 × 2¹
        ({}, 2, 4),  # 1 × 2²
        ({}, 3, 8),  # 1 × 2³
        ({}, 10, 1024),  # 1 × 2¹⁰
        ({"initial_interval": seconds(0.5)}, 0, 0.5),  # 0.5 × 2⁰
        ({"initial_interval": seconds(0.5)}, 3, 4),  # 0.5 × 2³
        ({"backoff_coefficient": 3}, 2, 9),  # 1 × 3²
        ({"backoff_coefficient": 1.5}, 2, 2.25),  # 1 × 1.5²
        ({"backoff_coefficient": 1}, 999, 1),  # 1 × 1⁹⁹⁹
        ({"backoff_coefficient": 1000}, 1, 1000),  # 1 × 1000¹
        ({"initial_interval": seconds(0)}, 0, 0),  # 0 × 2⁰
        ({"initial_interval": seconds(0)}, 999, 0),  # 0 × 2⁹⁹⁹
        ({"initial_interval": seconds(0), "maximum_interval": seconds(0)}, 5, 0),  # min(0 × 2⁵, 0)
        ({"maximum_interval": seconds(5)}, 2, 4),  # min(1 × 2², 5)
        ({"maximum_interval": seconds(5)}, 3, 5),  # min(1 × 2³, 5)
        ({"maximum_interval": seconds(4)}, 2, 4),  # min(1 × 2², 4)
        ({"maximum_interval": seconds(4)}, 999, 4),  # min(1 × 2⁹⁹⁹, 4)
        ({"maximum_interval": seconds(1)}, 7, 1),  # min(1 × 2⁷, 1)
        ({}, 24, 16_777_216),  # 1 × 2²⁴, 194 days
        ({}, 25, 31_536_000),  # min(1 × 2²⁵ = 388 days, 365 days)
        ({"initial_interval": LONGEST_BACKOFF}, 1, 31_536_000),  # min(2 × 365 days, 365 days)
    ],
)
def test_the_backoff_is_initial_times_coefficient_to_the_attempt_up_to_the_maximum(
    recipe: dict[str, Any], attempt: int, expected: float
) -> None:
    assert RetryRecipe(**recipe).backoff(attempt) == seconds(expected)


@pytest.mark.parametrize("coefficient", [1, 1.0001, 2, 10, 1000])
def test_a_thousand_retries_do_not_overflow(coefficient: float) -> None:
    recipe = RetryRecipe(max_retries=MOST_RETRIES, backoff_coefficient=coefficient)

    waits = [recipe.backoff(attempt) for attempt in range(MOST_RETRIES)]

    assert waits == sorted(waits)
    assert waits[-1] <= LONGEST_BACKOFF


@pytest.mark.parametrize(
    ("asked", "attempt", "expected", "reason"),
    [
        (None, 2, 4, DelayReason.BACKOFF),  # 1 × 2² = 4
        (0, 2, 4, DelayReason.BACKOFF),  # max(4, 0)
        (3.9, 2, 4, DelayReason.BACKOFF),  # max(4, 3.9)
        (4, 2, 4, DelayReason.BACKOFF),  # max(4, 4): the backoff is reason enough
        (4.5, 2, 4.5, DelayReason.RETRY_AFTER),  # max(4, 4.5)
        (60, 0, 60, DelayReason.RETRY_AFTER),  # max(1, 60)
        (86_400 * 3650, 0, 86_400 * 3650, DelayReason.RETRY_AFTER),  # max(1, ten years)
    ],
)
def test_the_wait_is_the_longer_of_backoff_and_retry_after(
    asked: float | None, attempt: int, expected: float, reason: DelayReason
) -> None:
    assert RetryRecipe().delay(attempt, rate_limited(asked), 0.5) == Delay(seconds(expected), reason)


def test_the_maximum_interval_does_not_cap_a_retry_after() -> None:
    recipe = RetryRecipe(maximum_interval=seconds(5))

    assert recipe.delay(9, rate_limited(60), 0) == Delay(seconds(60), DelayReason.RETRY_AFTER)


def test_a_zero_interval_still_waits_for_a_retry_after() -> None:
    recipe = RetryRecipe(initial_interval=seconds(0))

    assert recipe.delay(0, rate_limited(), 0) == Delay(seconds(0), DelayReason.BACKOFF)
    assert recipe.delay(0, rate_limited(7), 0) == Delay(seconds(7), DelayReason.RETRY_AFTER)


@pytest.mark.parametrize(
    ("jitter", "random", "asked", "expected"),
    [
        (0, 0.999, None, 4),  # 4 + 4 × 0
        (0.25, 0, None, 4),  # 4 + 4 × 0.25 × 0
        (0.25, 0.5, None, 4.5),  # 4 + 4 × 0.25 × 0.5
        (1, 0.75, None, 7),  # 4 + 4 × 1 × 0.75
        (10, 0.5, None, 24),  # 4 + 4 × 10 × 0.5
        (0.25, 0.5, 8, 9),  # 8 + 8 × 0.25 × 0.5
    ],
)
def test_jitter_adds_its_random_share_of_the_wait(
    jitter: float, random: float, asked: float | None, expected: float
) -> None:
    assert RetryRecipe(jitter=jitter).delay(2, rate_limited(asked), random).duration == seconds(expected)


@given(
    attempt=st.integers(0, MOST_RETRIES),
    initial=st.floats(0, 1e7),
    coefficient=st.floats(1, 1000),
    jitter=st.floats(0, 10),
    random=st.floats(0, 1, exclude_max=True),
    asked=st.floats(0, 3e8),
)
def test_jitter_only_adds_and_a_retry_after_is_never_undercut(
    attempt: int, initial: float, coefficient: float, jitter: float, random: float, asked: float
) -> None:
    recipe = RetryRecipe(initial_interval=seconds(initial), backoff_coefficient=coefficient, jitter=jitter)
    without = max(recipe.backoff(attempt), seconds(asked))

    wait = recipe.delay(attempt, rate_limited(asked), random).duration

    assert without <= wait <= without * (1 + jitter) + timedelta(microseconds=1)


QUALIFIES = {
    "rate_limited": True,
    "quota_exceeded": False,
    "timed_out": True,
    "unreachable": True,
    "provider_error": True,
    "invalid_output": True,
    "refused": False,
    "invalid_request": False,
    "unauthorized": False,
    "worker_lost": True,
    "worker_shutdown": True,
    "not_picked_up": True,
    "operator": True,
    "too_large": False,
    "unexpected": False,
}


@pytest.mark.parametrize(("kind", "qualifies"), QUALIFIES.items())
def test_a_failure_qualifies_as_its_kind_does(kind: str, qualifies: bool) -> None:
    failure = Failure.of(FailureKind(kind), "")

    assert RetryRecipe().qualifies(failure) is qualifies
    assert RetryRecipe(retry_on=RetryOn.ANY).qualifies(failure)


def test_the_table_of_kinds_is_complete() -> None:
    assert sorted(QUALIFIES) == sorted(FailureKind)


def test_the_failure_itself_may_say_that_it_does_not_qualify() -> None:
    told_not_to = Failure.of(FailureKind.PROVIDER_ERROR, "x-should-retry: false", transient=False)

    assert RetryRecipe().after_failure(0, told_not_to, 0) is GiveUp.NOT_RETRYABLE


@pytest.mark.parametrize(
    ("max_retries", "attempt", "failure", "expected"),
    [
        (0, 0, rate_limited(), GiveUp.RETRIES_EXHAUSTED),
        (1, 0, rate_limited(), Delay(seconds(1), DelayReason.BACKOFF)),
        (1, 1, rate_limited(), GiveUp.RETRIES_EXHAUSTED),
        (1, 2, rate_limited(), GiveUp.RETRIES_EXHAUSTED),
        (1, 0, refused(), GiveUp.NOT_RETRYABLE),
        (1, 1, refused(), GiveUp.NOT_RETRYABLE),  # the failure itself says more than the count
    ],
)
def test_a_retry_follows_while_the_failure_qualifies_and_retries_are_left(
    max_retries: int, attempt: int, failure: Failure, expected: Delay | GiveUp
) -> None:
    assert RetryRecipe(max_retries=max_retries).after_failure(attempt, failure, 0) == expected


def test_retry_on_any_retries_a_refusal_until_the_retries_are_spent() -> None:
    recipe = RetryRecipe(max_retries=1, retry_on=RetryOn.ANY)

    assert recipe.after_failure(0, refused(), 0) == Delay(seconds(1), DelayReason.BACKOFF)
    assert recipe.after_failure(1, refused(), 0) is GiveUp.RETRIES_EXHAUSTED


@pytest.mark.parametrize(
    "facts",
    [
        {"max_retries": -1},
        {"max_retries": MOST_RETRIES + 1},
        {"max_retries": 1.5},
        {"initial_interval": seconds(-1)},
        {"initial_interval": LONGEST_BACKOFF + seconds(1)},
        {"backoff_coefficient": 0.999},
        {"backoff_coefficient": 1001},
        {"backoff_coefficient": float("nan")},
        {"backoff_coefficient": float("inf")},
        {"maximum_interval": seconds(-1)},
        {"maximum_interval": seconds(0.5)},  # less than the initial interval of 1 s
        {"maximum_interval": LONGEST_BACKOFF + seconds(1)},
        {"jitter": -0.1},
        {"jitter": 11},
        {"jitter": float("nan")},
        {"retry_on": "all"},
        {"max_attempts": 3},
    ],
)
def test_a_recipe_out_of_bounds_is_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RetryRecipe(**facts)


@pytest.mark.parametrize(
    "facts",
    [
        {"max_retries": 0},
        {"max_retries": MOST_RETRIES},
        {"initial_interval": seconds(0)},
        {"initial_interval": LONGEST_BACKOFF},
        {"maximum_interval": seconds(1)},
        {"jitter": 10},
    ],
)
def test_the_bounds_themselves_are_accepted(facts: dict[str, Any]) -> None:
    RetryRecipe(**facts)
