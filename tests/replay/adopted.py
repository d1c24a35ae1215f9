"""A workflow of an application, whose activities are adopted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError

__all__ = ["AdoptedShop", "adopted_activities"]

_POLICY = RetryPolicy(initial_interval=timedelta(milliseconds=50), maximum_attempts=3)


@workflow.defn
class AdoptedShop:
    """Activities side by side, retries, a failure, a canceled backoff, and one that nobody awaits."""

    @workflow.run
    async def run(self, raw: object = None) -> list[Any]:
        found: list[Any] = list(await asyncio.gather(self._call(0), self._call(1), self._call(9)))
        waiting = workflow.start_activity(
            "charge_in_vain",
            start_to_close_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(initial_interval=timedelta(hours=1)),
        )
        await workflow.sleep(1)
        waiting.cancel()
        try:
            await waiting
        except ActivityError as error:
            found.append(str(error))
        workflow.start_activity("charge", args=["unawaited", 0], start_to_close_timeout=timedelta(seconds=30))
        await workflow.sleep(0.001)
        return found

    def _call(self, failures: int) -> Awaitable[Any]:
        return asyncio.create_task(self._told(failures))

    async def _told(self, failures: int) -> Any:
        try:
            return await workflow.execute_activity(
                "charge",
                args=[f"order-{failures}", failures],
                start_to_close_timeout=timedelta(seconds=30),
                retry_policy=_POLICY,
            )
        except ActivityError as error:
            return str(error.cause)


def adopted_activities() -> list[Any]:
    """The activities that it calls."""

    @activity.defn
    async def charge(order: str, failures: int) -> str:
        if activity.info().attempt <= failures:
            raise ApplicationError(f"attempt {activity.info().attempt} of {order}", type="Flaky")
        return f"charged {order}"

    @activity.defn
    async def charge_in_vain() -> None:
        raise ApplicationError("never", type="Flaky")

    return [charge, charge_in_vain]
