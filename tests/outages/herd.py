"""How many requests a provider gets when it is back: `python -m tests.outages.herd`.

The arithmetic of the retry recipe, not a measurement: a batch of tasks, a hundred a second, meets a provider
that refuses every call at once, for an hour.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from dataclasses import dataclass
from datetime import timedelta

from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.retry import RetryRecipe

__all__ = ["Herd", "herd"]

STARTED_A_SECOND = 100
REFUSED = Failure.of(FailureKind.UNREACHABLE, "connection refused")


@dataclass(frozen=True)
class Herd:
    """The requests after the provider came back.

    Attributes:
        peak: Most of them within one second.
        last: When the last task got its answer, in seconds after the return.
    """

    peak: int
    last: float


def herd(tasks: int, jitter: float, *, outage: timedelta, longest: timedelta) -> Herd:
    """Follow every task's requests to the first that is answered."""
    recipe = RetryRecipe(max_retries=100, maximum_interval=longest, jitter=jitter)
    chance = random.Random(1)
    answered = []
    for number in range(tasks):
        at, attempt = number / STARTED_A_SECOND, 0
        while at < outage.total_seconds():
            at += recipe.delay(attempt, REFUSED, chance.random()).duration.total_seconds()
            attempt += 1
        answered.append(at - outage.total_seconds())
    answered.sort()
    return Herd(max(bisect_left(answered, at + 1) - index for index, at in enumerate(answered)), answered[-1])


if __name__ == "__main__":
    print("| `jitter` | most requests in a second | all answered after |")
    print("| --- | --- | --- |")
    for jitter in (0, 0.5, 1):
        seen = herd(300, jitter, outage=timedelta(hours=1), longest=timedelta(minutes=10))
        print(f"| {jitter} | {seen.peak} | {seen.last / 60:.1f} min |")
