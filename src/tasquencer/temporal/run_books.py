"""All books of a workflow run: those of its task, and those of its adopted activities.

Each has a driver of its own. What people see and do (the query `work_items`, the updates, the table in the
Web UI) is about all of them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow

from tasquencer.core.task_state import TaskState
from tasquencer.core.wording import markdown_table
from tasquencer.core.work_item import WorkItem

__all__ = [
    "all_work_items",
    "join",
    "listing",
    "max_retries",
    "note",
    "others_open",
    "show_above",
    "show_work_items",
    "states",
]

_ATTRIBUTE = "__tasquencer_books__"
"""Of the run's event loop. See `TaskScope`."""

_SHOWN = "__tasquencer_shown__"
"""The same: the details that the run shows by us."""

_ABOVE = "__tasquencer_above__"
"""Also of the event loop: a line of Markdown above the work items, or an empty string."""

_NOTES = "__tasquencer_notes__"
"""Also of the event loop: lines of Markdown below the work items, by the id of their work item."""


def states() -> list[TaskState]:
    """The books of the current run, in the order in which they were begun."""
    found: list[TaskState] = vars(asyncio.get_running_loop()).setdefault(_ATTRIBUTE, [])
    return found


def join(state: TaskState) -> None:
    """Add books to the current run."""
    states().append(state)


def all_work_items() -> list[WorkItem]:
    """All work items of the run, oldest first."""
    found = states()
    items = [item for state in found for item in state.work_items()]
    return items if len(found) < 2 else sorted(items, key=lambda item: item.created_at)


def max_retries(item: WorkItem) -> int:
    """How many retries the lineage of a work item of the run has."""
    found = states()
    own = found[0] if len(found) == 1 else next(one for one in found if one.find(item.id) is not None)
    return own.max_retries(item)


def others_open(own: TaskState) -> frozenset[str]:
    """The ids of open work items in the other books of the run."""
    others = (state for state in states() if state is not own)
    return frozenset(item.id for state in others for item in state.open_work_items())


def show_above(line: str) -> None:
    """Show a line of Markdown above the work items from now on. An empty string removes it."""
    vars(asyncio.get_running_loop())[_ABOVE] = line
    show_work_items()


def note(work_item_id: str, line: str) -> None:
    """Show a line of Markdown about a work item, below all of them, until it ends."""
    vars(asyncio.get_running_loop()).setdefault(_NOTES, {})[work_item_id] = line
    show_work_items()


def show_work_items() -> None:
    """Show the work items of the run in the Web UI, unless the workflow shows details of its own."""
    loop = vars(asyncio.get_running_loop())
    if workflow.get_current_details() == loop.get(_SHOWN, ""):
        items = all_work_items()
        noted: dict[str, str] = loop.get(_NOTES, {})
        notes = [noted[item.id] for item in items if item.id in noted and not item.state.is_terminal]
        parts = [loop.get(_ABOVE), markdown_table(items, max_retries), *notes]
        loop[_SHOWN] = "\n\n".join(part for part in parts if part)
        workflow.set_current_details(loop[_SHOWN])


def listing() -> list[dict[str, Any]]:
    """All work items of the run as the query `work_items` tells them: without payloads and results."""
    return [_listed(item) for item in all_work_items()]


def _listed(item: WorkItem) -> dict[str, Any]:
    listed = item.model_dump(mode="json", exclude={"payload", "result"})
    listed["failure_kind"] = item.failure.kind if item.failure is not None else None
    listed["failure_message"] = item.failure.message if item.failure is not None else None
    return listed
