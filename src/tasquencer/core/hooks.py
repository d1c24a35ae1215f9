"""A task's own additions to its decisions: the hook after each transition, and the domain record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import JsonValue

from tasquencer.core.entries import DomainRecord
from tasquencer.core.retry import Delay, RetryRecipe
from tasquencer.core.work_item import Transition, WorkItem, WorkItemState

__all__ = ["LineageRules", "NextAttempt", "RecordOf", "StateChange", "StateChangeHook", "retry_by_recipe"]


@dataclass(frozen=True)
class StateChange:
    """A transition, as the hook sees it.

    Attributes:
        work_item: The work item after the transition, its payload included.
        transition: The change, its time and its actor.
        recipe: The task's recipe.
        jitter: A random number in [0, 1) if the work item failed, else 0.
    """

    work_item: WorkItem
    transition: Transition
    recipe: RetryRecipe
    jitter: float


@dataclass(frozen=True)
class NextAttempt:
    """A hook's request for one more work item in the lineage, with this payload, after this delay."""

    payload: JsonValue
    delay: Delay


StateChangeHook = Callable[[StateChange], NextAttempt | None]
"""Called after each transition. Pure: no clock, no randomness, no I/O. None: nothing to add."""

RecordOf = Callable[[WorkItem, RetryRecipe], DomainRecord | None]
"""Makes the domain record of a work item in its present state, or None if it has no record. Pure."""


@dataclass(frozen=True)
class LineageRules:
    """What holds for independent lineages of one kind, in place of the task's own hook and record.

    The code that began an independent lineage decides what its end means: the task's policy neither counts
    it nor is asked about it. If the policy fails the task, it ends like all others.

    Attributes:
        takes_place: Whether its work items count where only a number of them may be started at the same time.
    """

    on_work_item_state_changed: StateChangeHook
    record: RecordOf
    takes_place: bool = True


def retry_by_recipe(change: StateChange) -> NextAttempt | None:
    """The default hook: after a failed work item, ask for another one as the recipe says."""
    item = change.work_item
    if change.transition.next_state is not WorkItemState.FAILED or item.failure is None:
        return None
    decision = change.recipe.after_failure(item.attempt, item.failure, change.jitter)
    return NextAttempt(item.payload, decision) if isinstance(decision, Delay) else None
