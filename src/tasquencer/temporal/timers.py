"""Timers of workflow code that the Web UI names, and one that only brings an event."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.api.sdk.v1 import UserMetadata
from temporalio.worker import _workflow_instance as sdk

__all__ = ["named_timeout", "news"]

T = TypeVar("T")

_NEWS = timedelta(milliseconds=1)
"""A very short timer that only ends the workflow task and brings the next one. The server may fire it a
second late. All faster ways depend on a free slot for an activity."""


async def news() -> None:
    """Return in the next workflow task, in the order of its events."""
    await workflow.sleep(_NEWS, summary="look for news")
    # One turn of the loop later the ends of calls and waits are delivered, in the order of the history.
    await asyncio.sleep(0)


async def named_timeout(awaitable: Awaitable[T], seconds: float | None, summary: str) -> T:
    """Wait like `asyncio.wait_for`, with a timer that has this summary in the Web UI.

    It makes the same commands in the same order as `asyncio.wait_for`, so that histories of either replay
    with the other. `workflow.wait_condition` starts its timer later.
    """
    waiting = asyncio.ensure_future(awaitable)
    options = sdk._TimerOptionsCtxVar  # the SDK has no public name for this
    metadata = UserMetadata(summary=workflow.payload_converter().to_payload(summary))
    before = options.set(replace(options.get(), user_metadata=metadata))
    try:
        return await asyncio.wait_for(waiting, seconds)
    finally:
        with contextlib.suppress(ValueError):  # the instance leaves the cache: the context is another one
            options.reset(before)
