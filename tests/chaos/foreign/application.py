"""A Temporal application that knows nothing of this library: one workflow, and its scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, is_cancelled_exception

__all__ = ["HEARTBEAT_TIMEOUT", "SEEN", "TAKEN", "Call", "Mixed", "Script"]

SEEN = "seen_work"
"""The activity that is observed."""

TAKEN = "taken_work"
"""The activity that is adopted."""

HEARTBEAT_TIMEOUT = timedelta(seconds=8)
"""Longer than a busy machine keeps a worker that lives from its heartbeats."""


@dataclass(frozen=True)
class Call:
    """One activity.

    Attributes:
        activity: Its type.
        fails: How many attempts fail before one succeeds.
        ms: How long an attempt takes.
    """

    activity: str
    fails: int
    ms: int


@dataclass(frozen=True)
class Script:
    """What the workflow does: all calls side by side, each with this retry policy."""

    attempts: int
    calls: Sequence[Call] = field(default_factory=list)


@workflow.defn
class Mixed:
    """Returns the activities' results, and None for each activity that has failed."""

    @workflow.run
    async def run(self, script: Script) -> list[dict[str, Any] | None]:
        return list(await asyncio.gather(*(self._made(call, script.attempts) for call in script.calls)))

    async def _made(self, call: Call, attempts: int) -> dict[str, Any] | None:
        try:
            made: dict[str, Any] = await workflow.execute_activity(
                call.activity,
                call,
                start_to_close_timeout=timedelta(seconds=30),
                heartbeat_timeout=HEARTBEAT_TIMEOUT,
                retry_policy=RetryPolicy(
                    initial_interval=timedelta(seconds=0.1),
                    maximum_interval=timedelta(seconds=0.4),
                    maximum_attempts=attempts,
                ),
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            return None
        return made
