"""A lineage: the chain of attempts at the same thing, as a task keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from pydantic import JsonValue

from tasquencer.core.failure import Failure
from tasquencer.core.retry import Delay, RetryRecipe
from tasquencer.core.work_item import WorkItemState

__all__ = ["MAIN_LINEAGE", "Group", "Lineage"]

MAIN_LINEAGE = "main"
"""The lineage of a plain task."""


@dataclass
class Lineage:
    """A chain of attempts at the same thing, as the task keeps it.

    Attributes:
        kind: Names the `LineageRules` of an independent lineage. None: the task's own hook, domain record and
            policy hold.
        reason: That of its last transition.
        group: The `Group` that it belongs to, if any.
    """

    recipe: RetryRecipe
    deadline: datetime | None
    first_payload: JsonValue
    begun: bool
    kind: str | None = None
    work_item_ids: list[str] = field(default_factory=list)
    too_late: Delay | None = None
    expired: bool = False
    standing: WorkItemState | None = None
    counted: bool = False
    reason: str | None = None
    group: str | None = None


@dataclass
class Group:
    """Several lineages that make one result together, such as the turns of an agent and its tool calls.

    The task's code ends the group. Until then the results of all its lineages travel along when the task
    continues as new, and then only that of the last one.

    Attributes:
        counted: Whether the task's policy counts the group, as it counts a lineage. It never counts the
            lineages in the group. It does count their work items, unless they are independent.
        state: How the group has ended; None while it is open.
        last: The lineage that ended it, if one did.
        failure: Why the code gave it up, if no work item says so.
    """

    counted: bool
    state: WorkItemState | None = None
    last: str | None = None
    failure: Failure | None = None
