"""Task policies: from a transition and the counts of states to a verdict."""

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
    """What a task's policy says after a transition of one of its work items."""

    CONTINUE = "continue"
    """Nothing is decided yet."""
    COMPLETE = "complete"
    """The task has what it needs; work that is still open is canceled."""
    FAIL = "fail"
    """The task fails; work that is still open is canceled."""


@dataclass(frozen=True)
class Counts:
    """How many work items are in each state, and how many lineages stand how.

    A lineage is open while its last work item is; then it stands as its last work item does. A hook
    runs before the policy, so a failed work item whose retry is already initialized leaves its
    lineage open.
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
"""Decides after each transition. Pure: same arguments, same verdict; no clock, no random, no I/O."""


def until_exhausted(transition: Transition, counts: Counts) -> Verdict:
    """The default: fail once a lineage ended without a result, complete once all have one.

    Unlike Tasquencer's default it waits for the retries, and a canceled work item fails the task,
    because a task without an answer is not complete.
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
    """Complete once every lineage has ended, however it ended; fail when more is lost than allowed.

    Begin all lineages before the first one ends, so that a fraction means a fraction of all.

    Args:
        limit: This many lineages may end without a result; None: any number.
        fraction: This part of all lineages may, 0 to 1; None: any part. 0.29 of 100 are 29.

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
    """Complete as soon as so many lineages have a result; fail as soon as that cannot be reached any more.

    Begin all lineages before the first one ends: what has not begun does not count as a hope.

    Raises:
        ValueError: fewer than one.
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
