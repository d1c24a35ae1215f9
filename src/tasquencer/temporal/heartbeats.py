"""Heartbeats of an activity that is busy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from temporalio import activity

__all__ = ["heartbeats"]


@asynccontextmanager
async def heartbeats(
    interval: timedelta = timedelta(seconds=5), *details: Any, begins_with_one: bool = True
) -> AsyncIterator[None]:
    """Send one in each interval, in the background of the block, and one before if it `begins_with_one`."""

    async def beat() -> None:
        if not begins_with_one:
            await asyncio.sleep(interval.total_seconds())
        while True:
            activity.heartbeat(*details)
            await asyncio.sleep(interval.total_seconds())

    beating = asyncio.create_task(beat(), name="heartbeats")
    try:
        yield
    finally:
        beating.cancel()
