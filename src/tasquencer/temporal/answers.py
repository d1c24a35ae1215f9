"""The time at which a workflow answers an update.

If a query ends a workflow task before the result of a local activity comes, such as a write to the ledger,
the next workflow task gives the answer that follows from it. If a worker then loses that workflow task, a
replay gives the answer one workflow task earlier, the SDK has nothing to send, and the run would stop for
good. So the answer waits for the next event, which the driver makes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from temporalio import workflow

from tasquencer.temporal.activations import behaves, follows_local_result
from tasquencer.temporal.behaviour import Behaviour
from tasquencer.temporal.driver import TaskDriver
from tasquencer.temporal.timers import news

__all__ = ["answered_on_news"]


async def answered_on_news(answering: Awaitable[Any], find: Callable[[], TaskDriver | None]) -> Any:
    """Return the answer of an update's handler when it can be given.

    Args:
        answering: The handler.
        find: Finds the driver of the run's books. It may return None: the run keeps none.
    """
    try:
        answer = await answering
    except (Exception, asyncio.CancelledError) as error:
        runtime = workflow._Runtime.current()  # the SDK has no public name for this question
        is_canceled = isinstance(error, asyncio.CancelledError)
        if is_canceled or runtime.workflow_is_failure_exception(error):  # or else a bug, which is no answer
            await _wait(find())
        raise
    await _wait(find())
    return answer


async def _wait(driver: TaskDriver | None) -> None:
    if driver is None or not follows_local_result() or not behaves(Behaviour.ANSWERS_ON_NEWS):
        return
    driver.actions_under_way += 1  # the run does not end before
    try:
        await news()
    finally:
        driver.actions_under_way -= 1
