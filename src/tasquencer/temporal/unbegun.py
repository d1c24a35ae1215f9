"""Tasks that end before they begin a work item, though a lost workflow task may have begun one.

A worker may die after its first write. Events that follow, a cancel for example, can end the run before its
code begins the task again. The row would stay open.
"""

from __future__ import annotations

import asyncio

from temporalio import workflow

from tasquencer.temporal.activations import behaves, first_part
from tasquencer.temporal.behaviour import Behaviour
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
    driver: TaskDriver | None = vars(asyncio.get_running_loop()).get(_ATTRIBUTE)
    if driver is None:
        return None
    has_lost_none = workflow.info().get_current_history_length() <= _FIRST_EVENTS
    # After the result of a local activity, a replay may find the history shorter.
    if has_lost_none and (first_part()() or not behaves(Behaviour.CANCELS_ON_NEWS)):
        return None
    return driver
