"""Tasks that end before they begin a work item, though a lost workflow task may have begun one.

A worker may die after its first write. Events that follow, a cancel for example, can end the run before its
code begins the task again. The row would stay open.
"""

from __future__ import annotations

import asyncio

from tasquencer.temporal.activations import length_at_news
from tasquencer.temporal.driver import TaskDriver

__all__ = ["may_never_begin", "unbegun"]

_ATTRIBUTE = "__tasquencer_unbegun__"

_FIRST_EVENTS = 3
"""Events of a run in its first workflow task, which has lost none: started, task scheduled, task started."""


def may_never_begin(driver: TaskDriver) -> None:
    """Note the driver of the run's task before it begins anything."""
    setattr(asyncio.get_running_loop(), _ATTRIBUTE, driver)


def unbegun() -> TaskDriver | None:
    """Return the driver of a task whose first work item a lost workflow task may have begun."""
    if length_at_news() <= _FIRST_EVENTS:
        return None
    driver: TaskDriver | None = vars(asyncio.get_running_loop()).get(_ATTRIBUTE)
    return driver
