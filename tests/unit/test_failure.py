"""Failures: what they keep, what they shorten."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasquencer.core.failure import MAXIMUM_MESSAGE_LENGTH, Failure, FailureKind


def test_a_failure_reads_as_its_kind_and_message() -> None:
    assert str(Failure.of(FailureKind.TIMED_OUT, "no answer")) == "timed_out: no answer"


def test_a_message_becomes_one_line() -> None:
    assert Failure.of(FailureKind.REFUSED, " a\n\tb \r\n c ").message == "a b c"


@pytest.mark.parametrize("length", [MAXIMUM_MESSAGE_LENGTH - 1, MAXIMUM_MESSAGE_LENGTH])
def test_a_message_up_to_the_maximum_length_is_kept(length: int) -> None:
    assert Failure.of(FailureKind.REFUSED, "x" * length).message == "x" * length


def test_a_longer_message_ends_in_an_ellipsis() -> None:
    message = Failure.of(FailureKind.REFUSED, "x" * (MAXIMUM_MESSAGE_LENGTH + 1)).message

    assert message == "x" * (MAXIMUM_MESSAGE_LENGTH - 1) + "…"


def test_details_that_are_unknown_are_left_out() -> None:
    failure = Failure.of(FailureKind.RATE_LIMITED, "", status=429, request_id=None)

    assert failure.details == {"status": 429}


@pytest.mark.parametrize("asked", [-1, float("nan"), float("inf")])
def test_an_impossible_retry_after_is_refused(asked: float) -> None:
    with pytest.raises(ValidationError, match="retry_after_seconds"):
        Failure.of(FailureKind.RATE_LIMITED, "", retry_after_seconds=asked)


def test_a_failure_cannot_be_changed() -> None:
    failure = Failure.of(FailureKind.REFUSED, "no")

    with pytest.raises(ValidationError, match="frozen"):
        failure.message = "yes"  # type: ignore[misc]


def test_a_failure_survives_json() -> None:
    failure = Failure.of(
        FailureKind.WORKER_LOST,
        "gone",
        retry_after_seconds=1.5,
        outcome_unknown=True,
        status=None,
        cost_usd=0.25,
    )

    assert Failure.model_validate_json(failure.model_dump_json()) == failure


def test_a_task_may_use_kinds_of_its_own() -> None:
    assert str(Failure(kind="out_of_stock", message="none left", transient=True)) == "out_of_stock: none left"
