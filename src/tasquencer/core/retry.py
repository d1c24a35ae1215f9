"""The retry recipe: how many retries, which delays, which failures qualify.

Source: Tasquencer's recipe "AI Agent Task with Retry": 1 s, 2 s, 4 s, 8 s …, each retry a new work
item, retries decided at the level of the task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasquencer.core.errors import TaskMisused
from tasquencer.core.failure import Failure
from tasquencer.core.retry_after import LONGEST_RETRY_AFTER
from tasquencer.core.work_item import DelayReason

__all__ = ["LONGEST_BACKOFF", "MOST_RETRIES", "Delay", "GiveUp", "RetryOn", "RetryRecipe"]

MOST_RETRIES = 1_000
LONGEST_BACKOFF = timedelta(days=365)
"""The upper bound of the backoff when the recipe has no `maximum_interval`."""


class RetryOn(StrEnum):
    """Which failures qualify for a retry."""

    TRANSIENT = "transient"
    """Those for which another try may help (`Failure.transient`)."""
    ANY = "any"
    """All of them, as in the simplest form of the recipe."""


@dataclass(frozen=True)
class Delay:
    """How long a work item waits before it starts, and why.

    Raises:
        TaskMisused: a negative duration would start the work item before its predecessor's end.
    """

    duration: timedelta
    reason: DelayReason

    def __post_init__(self) -> None:
        if self.duration < timedelta(0):
            raise TaskMisused(f"a delay must not be negative, found {self.duration.total_seconds():g} s")


class GiveUp(StrEnum):
    """Why no retry follows. The value is the type of the error with which the task then fails."""

    RETRIES_EXHAUSTED = "RetriesExhausted"
    """The lineage has all the work items the recipe allows."""
    NOT_RETRYABLE = "NotRetryable"
    """The failure does not qualify."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """The wait would end after the task's deadline."""


class RetryRecipe(BaseModel):
    """How a task retries.

    After attempt k (0-based) fails, the backoff is
    ``min(initial_interval * backoff_coefficient ** k, maximum_interval)``, and the delay is
    ``max(backoff, Retry-After)`` plus a random part of it, up to ``jitter``. Jitter only adds.

    Attributes:
        max_retries: Retries after the first try. A lineage has at most ``max_retries + 1`` work items.
        initial_interval: The backoff after the first try.
        backoff_coefficient: Each backoff is this many times the one before.
        maximum_interval: Upper bound of the backoff, not of a Retry-After. None: `LONGEST_BACKOFF`.
        jitter: 0.25 adds up to 25 %, from the random number that is passed in.
        retry_on: Which failures qualify.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_retries: Annotated[int, Field(ge=0, le=MOST_RETRIES)] = 3
    initial_interval: Annotated[timedelta, Field(ge=timedelta(0), le=LONGEST_BACKOFF)] = timedelta(seconds=1)
    backoff_coefficient: Annotated[float, Field(ge=1, le=1000, allow_inf_nan=False)] = 2.0
    maximum_interval: Annotated[timedelta, Field(ge=timedelta(0), le=LONGEST_BACKOFF)] | None = None
    jitter: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.0
    retry_on: RetryOn = RetryOn.TRANSIENT

    @model_validator(mode="after")
    def _maximum_is_no_less_than_initial(self) -> Self:
        if self.maximum_interval is not None and self.maximum_interval < self.initial_interval:
            raise ValueError("maximum_interval must not be less than initial_interval")
        return self

    def qualifies(self, failure: Failure) -> bool:
        """Return whether this failure may be retried at all."""
        return self.retry_on is RetryOn.ANY or failure.transient

    def backoff(self, attempt: int) -> timedelta:
        """Return the wait after attempt ``attempt`` (0-based) failed, without Retry-After and jitter."""
        longest = LONGEST_BACKOFF if self.maximum_interval is None else self.maximum_interval
        initial = self.initial_interval.total_seconds()
        if initial == 0:
            return timedelta(0)
        # Compare logarithms first, because a timedelta cannot hold 2 ** 1000 seconds.
        if math.log(initial) + attempt * math.log(self.backoff_coefficient) >= math.log(
            max(longest.total_seconds(), initial)
        ):
            return longest
        return timedelta(seconds=initial * self.backoff_coefficient**attempt)

    def delay(self, attempt: int, failure: Failure, jitter: float) -> Delay:
        """Return the wait before the work item that follows attempt ``attempt``.

        Args:
            attempt: 0-based number of the attempt that failed.
            failure: Its failure. The wait is never shorter than its ``retry_after_seconds``.
            jitter: A random number in [0, 1).
        """
        backoff = self.backoff(attempt)
        asked = timedelta(seconds=min(failure.retry_after_seconds or 0, LONGEST_RETRY_AFTER.total_seconds()))
        base, reason = (asked, DelayReason.RETRY_AFTER) if asked > backoff else (backoff, DelayReason.BACKOFF)
        return Delay(base + base * (self.jitter * jitter), reason)

    def after_failure(self, attempt: int, failure: Failure, jitter: float) -> Delay | GiveUp:
        """Return what follows the failure of attempt ``attempt``: a wait and another try, or the end.

        This method does not know the task's deadline. The task checks it.
        """
        if not self.qualifies(failure):
            return GiveUp.NOT_RETRYABLE
        if attempt >= self.max_retries:
            return GiveUp.RETRIES_EXHAUSTED
        return self.delay(attempt, failure, jitter)
