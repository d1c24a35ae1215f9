"""Task policies. A policy turns a transition and the counts of states into a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from tasquencer.core.work_item import Transition, WorkItemState

__all__ = [
    "Counts",
    "TaskPolicy",
    "Verdict",
    "absorb_failures",
    "fail_fast",
    "require_successes",
    "until_exhausted",
]

_BAD = (WorkItemState.FAILED, WorkItemState.CANCELED)


class Verdict(StrEnum):
    """The decision of a task's policy after a transition of one of its work items."""

    CONTINUE = "continue"
    """Nothing is decided yet."""
    COMPLETE = "complete"
    """The task has what it needs. Open work is canceled."""
    FAIL = "fail"
    """The task fails. Open work is canceled."""


@dataclass(frozen=True)
class Counts:
    """How many work items, and how many lineages, are in each state.

    A lineage has the state of its last work item. The hook runs before the policy, so a lineage is still open
    when the policy sees a failed work item whose retry is already initialized.
    """

    initialized: int = 0
    started: int = 0
    completed: int = 0
    failed: int = 0
    canceled: int = 0
    open_lineages: int = 0
    completed_lineages: int = 0
    failed_lineages: int = 0
    canceled_lineages: int = 0

    @property
    def lineages(self) -> int:
        """All lineages that have begun."""
        return self.open_lineages + self.completed_lineages + self.lost_lineages

    @property
    def lost_lineages(self) -> int:
        """Lineages that ended without a result."""
        return self.failed_lineages + self.canceled_lineages


TaskPolicy = Callable[[Transition, Counts], Verdict]
"""Decides after each transition. Pure: same arguments, same verdict; no clock, no randomness, no I/O."""


def until_exhausted(transition: Transition, counts: Counts) -> Verdict:
    """The default: fail when a lineage ends without a result, complete when all have one.

    Unlike Tasquencer's default it waits for the retries. A canceled work item fails the task, because a task
    without an answer is not complete.
    """
    if counts.lost_lineages:
        return Verdict.FAIL
    return Verdict.CONTINUE if counts.open_lineages else Verdict.COMPLETE


def fail_fast(transition: Transition, counts: Counts) -> Verdict:
    """Fail at the first work item that fails or is canceled, whether or not a retry is planned."""
    if transition.next_state in _BAD:
        return Verdict.FAIL
    return Verdict.CONTINUE if counts.open_lineages else Verdict.COMPLETE


def absorb_failures(
    limit: int | None = None, fraction: float | Fraction | Decimal | None = None
) -> TaskPolicy:
    """Complete when every lineage has ended. Fail when more lineages end without a result than allowed.

    Begin all lineages before the first one ends, so that a fraction means a fraction of all.

    Args:
        limit: How many lineages may end without a result. None: any number.
        fraction: The part of all lineages that may, 0 to 1. None: any part. 0.29 of 100 is 29.

    Raises:
        ValueError: a negative limit, or a fraction that is not from 0 to 1.
    """
    if limit is not None and limit < 0:
        raise ValueError("limit must not be negative")
    share = None if fraction is None else _share(fraction)

    def policy(transition: Transition, counts: Counts) -> Verdict:
        too_many = limit is not None and counts.lost_lineages > limit
        too_large = share is not None and counts.lost_lineages > share * counts.lineages
        if too_many or (too_large and transition.next_state in _BAD):
            return Verdict.FAIL
        return Verdict.CONTINUE if counts.open_lineages else Verdict.COMPLETE

    return policy


def _share(fraction: float | Fraction | Decimal) -> Fraction:
    try:
        share = fraction if isinstance(fraction, Fraction) else Fraction(str(fraction))
    except ValueError:
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise ValueError(f"fraction must be a number from 0 to 1, found {fraction!r}")
    return share


def require_successes(successes: int) -> TaskPolicy:
    """Complete as soon as this number of lineages has a result. Fail as soon as that is impossible.

    Begin all lineages before the first one ends. A lineage that has not begun does not count as a chance.

    Raises:
        ValueError: `count` is less than 1.
    """
    if successes < 1:
        raise ValueError("successes must be at least 1")

    def policy(transition: Transition, counts: Counts) -> Verdict:
        if counts.completed_lineages >= successes:
            return Verdict.COMPLETE
        hopeless = counts.completed_lineages + counts.open_lineages < successes
        ended = transition.next_state in _BAD or not counts.open_lineages
        return Verdict.FAIL if hopeless and ended else Verdict.CONTINUE

    return policy
