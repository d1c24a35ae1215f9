"""Task policies: from a transition and the counts of states to a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from tasquencer.work_item import Transition, WorkItemState

__all__ = ["Counts", "TaskPolicy", "Verdict", "fail_fast", "until_exhausted"]


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


TaskPolicy = Callable[[Transition, Counts], Verdict]
"""Decides after each transition. Pure: same arguments, same verdict; no clock, no random, no I/O."""


def until_exhausted(transition: Transition, counts: Counts) -> Verdict:
    """The default: fail once a lineage ended without a result, complete once all have one.

    Unlike Tasquencer's default it waits for the retries, and a canceled work item fails the task,
    because a task without an answer is not complete.
    """
    if counts.failed_lineages or counts.canceled_lineages:
        return Verdict.FAIL
    return Verdict.CONTINUE if counts.open_lineages else Verdict.COMPLETE


def fail_fast(transition: Transition, counts: Counts) -> Verdict:
    """Fail at the first work item that fails or is canceled, whether or not a retry is planned."""
    if transition.next_state in (WorkItemState.FAILED, WorkItemState.CANCELED):
        return Verdict.FAIL
    return Verdict.CONTINUE if counts.open_lineages else Verdict.COMPLETE
