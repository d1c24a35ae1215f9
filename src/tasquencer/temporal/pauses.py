"""The effect of Temporal's own commands on a running call: a pause changes nothing, a reset ends it.

For each of them the SDK cancels the activity and gives the reason, but only once: after a pause it passes on
no other cancel. So a paused call asks the server itself until it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import activity
from temporalio.client import AsyncActivityCancelledError, AsyncActivityHandle
from temporalio.service import RPCError

from tasquencer.core.failure import Failure, FailureKind
from tasquencer.temporal.not_found import is_missing
from tasquencer.temporal.only_once import CALLED

__all__ = ["through_pauses"]

T = TypeVar("T")

_ASK_TIMEOUT = timedelta(seconds=2)


async def through_pauses(
    call: Coroutine[Any, Any, T], *, interval: timedelta, grace_period: timedelta
) -> T | Failure:
    """Await the call of the current activity, even while an operator has paused it. Return its outcome.

    A reset stops it and is a failure of the kind `operator`. Any other cancel stops it and propagates.

    Args:
        call: The call. It is awaited until it has ended, even when it is stopped.
        interval: The time between two questions to the server while the activity is paused.
        grace_period: How long a paused call may still run after its worker began to stop.
    """
    calling = asyncio.create_task(call)
    try:
        return await asyncio.shield(calling)
    except asyncio.CancelledError:
        why = activity.cancellation_details()
        if calling.cancelled() or why is None or why.cancel_requested or not (why.paused or why.reset):
            await _stopped(calling)
            raise
    running = asyncio.current_task()
    if running is not None:
        running.uncancel()
    if why.reset:
        return await _outcome_of_stopped(calling, _reset())
    return await _while_paused(calling, interval.total_seconds(), grace_period.total_seconds())


async def _while_paused(calling: asyncio.Task[T], interval: float, grace_period: float) -> T | Failure:
    handle = activity.client().get_async_activity_handle(task_token=activity.info().task_token)
    stopping = asyncio.create_task(activity.wait_for_worker_shutdown())
    ends = None
    try:
        while True:
            news = {calling} if ends is not None else {calling, stopping}
            await asyncio.wait(news, timeout=interval, return_when=asyncio.FIRST_COMPLETED)
            if calling.done():
                return await calling
            if ends is None and stopping.done():
                ends = time.monotonic() + grace_period
            if ends is not None and time.monotonic() >= ends:
                return await _outcome_of_stopped(calling, _shutdown())
            ended = await _asked(handle, calling)
            if ended is not None:
                return ended
    finally:
        stopping.cancel()
        await _stopped(calling)


async def _asked(handle: AsyncActivityHandle, calling: asyncio.Task[T]) -> T | Failure | None:
    """Ask the server about the activity, and stop the call if necessary. None: the call continues."""
    try:
        await handle.heartbeat(CALLED, rpc_timeout=_ASK_TIMEOUT)
    except AsyncActivityCancelledError as told:
        details = told.details
        if details is not None and details.reset:
            return await _outcome_of_stopped(calling, _reset())
        if details is None or details.cancel_requested:
            await _stopped(calling)
            # The SDK would report the pause as the reason.
            await handle.report_cancellation()
            activity.raise_complete_async()
    except RPCError as error:
        if is_missing(error):  # it was just completed or failed, or its workflow has ended
            await _stopped(calling)
            raise asyncio.CancelledError from None
    return None


async def _stopped(calling: asyncio.Task[Any]) -> None:
    calling.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await calling


async def _outcome_of_stopped(calling: asyncio.Task[T], failure: Failure) -> T | Failure:
    """Stop the call. If it already has an outcome, that counts."""
    if not calling.done():
        await _stopped(calling)
    return failure if calling.cancelled() else await calling


def _reset() -> Failure:
    message = "the activity was reset with Temporal's own command while its request was under way"
    return Failure.of(FailureKind.OPERATOR, message, outcome_unknown=True)


def _shutdown() -> Failure:
    message = "the worker was stopped before the call ended"
    return Failure.of(FailureKind.WORKER_SHUTDOWN, message, outcome_unknown=True)
