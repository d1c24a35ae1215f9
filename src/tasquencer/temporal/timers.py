"""Timers of workflow code that the Web UI names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import TypeVar

from temporalio import workflow
from temporalio.api.sdk.v1 import UserMetadata
from temporalio.worker import _workflow_instance as sdk

__all__ = ["named_timeout"]

T = TypeVar("T")


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
        options.reset(before)
