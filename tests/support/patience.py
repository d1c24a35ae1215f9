"""Waiting for what must come: as long as a busy machine may take, and no longer than it takes to come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 90.0
"""How long a test waits, on a machine that is busy with something else."""


async def eventually(probe: Callable[[], Awaitable[T | None]], what: str) -> T:
    """Poll until the probe returns something true; fail with what was awaited after the deadline."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := await probe()):
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:g} s in vain: {what}"
        await asyncio.sleep(0.02)
    return found
