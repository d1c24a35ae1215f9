"""A scripted stand-in for the AI call: an activity `generate` that follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from temporalio import activity

from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.job import AiJob
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.temporal import as_application_error

ANSWER = AiAnswer(
    text="42",
    model="tiny",
    finish_reason="stop",
    input_tokens=3,
    output_tokens=1,
    cost_usd=0.0004,
    latency_seconds=0.1,
)
SLOW_DOWN = Failure.of(FailureKind.RATE_LIMITED, "429 from the provider")
GONE = Failure.of(FailureKind.UNREACHABLE, "connection refused")
WRONG_KEY = Failure.of(FailureKind.UNAUTHORIZED, "401 from the provider")


class Hang:
    """The call never ends, but its worker sends heartbeats."""


class Freeze:
    """The call never ends and its worker is silent, as if it had died."""


Step = AiAnswer | Failure | Hang | Freeze | Exception


@dataclass(frozen=True)
class Call:
    """One call that was made."""

    work_item_id: str
    job: AiJob
    at: datetime


class ScriptedCalls:
    """Answers the first call with the first step, and so on; when the script ends, with `ANSWER`."""

    def __init__(self, *script: Step, before: Callable[[str], Awaitable[None]] | None = None) -> None:
        self._script = list(script)
        self._before = before
        self.calls: list[Call] = []
        self.under_way = asyncio.Event()
        self.canceled: list[str] = []

    @activity.defn(name="generate")
    async def generate(self, job: AiJob) -> AiAnswer:
        """Do as the script says."""
        work_item_id = activity.info().activity_id
        self.calls.append(Call(work_item_id, job, datetime.now(UTC)))
        if self._before is not None:
            await self._before(work_item_id)
        step = self._script.pop(0) if self._script else ANSWER
        if isinstance(step, Failure):
            raise as_application_error(step)
        if isinstance(step, Exception):
            raise step
        if isinstance(step, Hang | Freeze):
            self.under_way.set()
            try:
                while True:
                    if isinstance(step, Hang):
                        activity.heartbeat()
                    await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                self.canceled.append(work_item_id)
                raise
        return step
