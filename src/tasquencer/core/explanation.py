"""The error of a failed task: its type and message."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tasquencer.core.failure import Failure
from tasquencer.core.lineage import MAIN_LINEAGE, Lineage
from tasquencer.core.retry import GiveUp
from tasquencer.core.wording import attempt_label, duration, moment
from tasquencer.core.work_item import Transition, WorkItem, WorkItemState

__all__ = ["TaskFailure", "culprit", "explain"]


@dataclass(frozen=True)
class TaskFailure:
    """The end of a task that did not complete: type and message of its error, and the last failure."""

    type: str
    message: str
    failure: Failure | None


def culprit(decisive: Transition, work_items: Iterable[WorkItem]) -> str:
    """The id of the work item that failed the task: the one that just ended badly, else the last that did.

    Args:
        decisive: The transition that the policy judged.
        work_items: Those that the policy counts.
    """
    bad = (WorkItemState.FAILED, WorkItemState.CANCELED)
    if decisive.next_state not in bad:
        ended = [item for item in work_items if item.state in bad and item.ended_at]
        if ended:
            return max(ended, key=lambda item: item.ended_at or decisive.at).id
    return decisive.work_item_id


def explain(item: WorkItem, lineage: Lineage, reason: str | None, before: WorkItem | None) -> TaskFailure:
    """Return how a task ends that failed because of a work item.

    Args:
        item: The work item because of which the task failed.
        lineage: Its lineage.
        reason: The reason of the transition that the policy judged.
        before: The work item before it in the lineage, if there is one.
    """
    recipe, deadline, too_late = lineage.recipe, lineage.deadline, lineage.too_late
    label = attempt_label(item.attempt, recipe.max_retries)
    if item.lineage != MAIN_LINEAGE:
        label = f"{item.lineage}: {label}"
    if lineage.expired:
        last = before.failure if before is not None else None
        message = f"{label} was given up: {reason}"
        if last is not None:
            message += f"; the try before failed with {last}"
        return TaskFailure(GiveUp.DEADLINE_EXCEEDED, message, last)
    if item.failure is None or item.ended_at is None:
        return TaskFailure(
            "TaskFailed", f"{label} was {item.state}" + (f": {reason}" if reason else ""), None
        )
    ended = f"{label} failed with {item.failure}"
    if lineage.work_item_ids[-1] != item.id:
        return TaskFailure("TaskFailed", f"{ended} (the task's policy allows no further try)", item.failure)
    if too_late is not None and deadline is not None:
        wait = f"{duration(too_late.duration.total_seconds())} ({too_late.reason})"
        start = moment(item.ended_at + too_late.duration)
        times = f"the next try could start at {start}, the deadline is {moment(deadline)}"
        return TaskFailure(GiveUp.DEADLINE_EXCEEDED, f"{ended}; after a wait of {wait} {times}", item.failure)
    if not recipe.qualifies(item.failure):
        return TaskFailure(GiveUp.NOT_RETRYABLE, f"{ended}, which does not qualify for a retry", item.failure)
    if item.attempt >= recipe.max_retries:
        spent = "all retries are spent" if item.attempt else "no retries are allowed"
        return TaskFailure(GiveUp.RETRIES_EXHAUSTED, f"{ended}; {spent}", item.failure)
    return TaskFailure("TaskFailed", ended, item.failure)
