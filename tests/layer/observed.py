"""Activities to observe, as somebody else's application has them."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError


class Scripted:
    """Each attempt does what the script says; at its end it returns."""

    def __init__(self, *script: BaseException | str) -> None:
        self._script = list(script)
        self.attempts: list[int] = []
        self.started = asyncio.Event()
        self.token = b""

    async def is_over(self) -> bool:
        """Return whether an attempt has taken the last step."""
        return not self._script

    def _next(self) -> BaseException | str | None:
        self.attempts.append(activity.info().attempt)
        return self._script.pop(0) if self._script else None

    @activity.defn
    async def work(self, value: Any) -> Any:
        step = self._next()
        self.started.set()
        if isinstance(step, BaseException):
            raise step
        if step == "hang":
            while True:
                activity.heartbeat()
                await asyncio.sleep(0.05)
        if step == "silent":
            await asyncio.sleep(3600)
        if step == "elsewhere":
            self.token = activity.info().task_token
            activity.raise_complete_async()
        return {"got": value}

    @activity.defn
    def work_in_a_thread(self, value: Any) -> Any:
        step = self._next()
        if isinstance(step, BaseException):
            raise step
        return {"got": value, "thread": threading.current_thread() is not threading.main_thread()}


@activity.defn
def work_in_a_process(value: int) -> int:
    time.sleep(0.01)
    if activity.info().attempt == 1:
        raise ApplicationError("the first attempt of a process", type="Flaky")
    return value + 1


@workflow.defn
class Works:
    """Executes one activity, natively."""

    @workflow.run
    async def run(self, kind: str, value: Any, options: dict[str, Any]) -> Any:
        limits: dict[str, Any] = {
            "start_to_close_timeout": timedelta(seconds=options.get("limit", 60)),
            "heartbeat_timeout": timedelta(seconds=options["heartbeat"]) if "heartbeat" in options else None,
            "retry_policy": RetryPolicy(
                initial_interval=timedelta(milliseconds=100),
                backoff_coefficient=2,
                maximum_attempts=options.get("attempts", 5),
            ),
            "activity_id": options.get("id"),
        }
        if options.get("waits_for_cancel"):
            limits["cancellation_type"] = workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED
        if options.get("local"):
            limits |= {"heartbeat_timeout": None}
            limits = {name: limit for name, limit in limits.items() if limit is not None}
            return await workflow.execute_local_activity(kind, value, **limits)
        for _ in range(options.get("times", 1)):
            result = await workflow.execute_activity(kind, value, **limits)
        return result
