"""A lineage: the chain of attempts at the same thing, as a task keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from pydantic import JsonValue

from tasquencer.core.retry import Delay, RetryRecipe
from tasquencer.core.work_item import WorkItemState

__all__ = ["MAIN_LINEAGE", "Lineage"]

MAIN_LINEAGE = "main"
"""The lineage of a plain task."""


@dataclass
class Lineage:
    """A chain of attempts at the same thing, as the task keeps it.

    Attributes:
        kind: Names the `LineageRules` of an independent lineage. None: the task's own hook, domain record and
            policy hold.
        reason: That of its last transition.
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
