"""Delivers outcomes of activities when Temporal answers.

The SDK tries for ten seconds to report the outcome of an activity, and then drops it. Core's `init_worker`
overwrites the client's retry configuration. So each longer outage would lose answers that were paid for.
Therefore a call keeps its outcome until Temporal answers, or until the activity is canceled because its
start-to-close timeout or the worker's grace period is over.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from time import monotonic
from typing import Any

from temporalio import activity
from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from tasquencer.temporal.failures import left_behind
from tasquencer.temporal.headers import RUN_HEADER, HeaderCodec
from tasquencer.temporal.wire import received

__all__ = ["OUTAGES", "CallInbound", "Delivery"]

OUTAGES = {RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED}
"""The errors of a request that Temporal does not answer."""

_FRESH_SECONDS = 1.0
"""A check of at most this age is not repeated. In a new outage the SDK's own tries are enough."""

_PATIENCE = timedelta(seconds=5)
_AGAIN_SECONDS = 0.5


class Delivery:
    """Knows whether Temporal answers. All calls of a worker share it, and one of them asks for all."""

    def __init__(self) -> None:
        self._answered_at = -_FRESH_SECONDS
        self._asking = asyncio.Lock()

    async def possible(self, client: Client) -> None:
        """Return when Temporal answers or the activity is canceled. Both deliver the outcome."""
        with contextlib.suppress(asyncio.CancelledError):
            async with self._asking:
                while monotonic() - self._answered_at > _FRESH_SECONDS:
                    if await _answers(client):
                        self._answered_at = monotonic()
                    else:
                        await asyncio.sleep(_AGAIN_SECONDS)


async def _answers(client: Client) -> bool:
    try:
        await client.workflow_service.get_system_info(GetSystemInfoRequest(), timeout=_PATIENCE)
    except RPCError as error:
        return error.status not in OUTAGES
    return True


class CallInbound(ActivityInboundInterceptor):
    """Stops a call that a reset has left behind. Keeps the outcome of others until Temporal answers."""

    def __init__(
        self,
        next: ActivityInboundInterceptor,  # noqa: A002
        delivery: Delivery,
        headers: HeaderCodec,
    ) -> None:
        super().__init__(next)
        self._delivery = delivery
        self._headers = headers

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        """See the base class."""
        payload = input.headers.get(RUN_HEADER)
        if payload is None:
            return await super().execute_activity(input)
        info = activity.info()
        header = await self._headers.received(payload, info.namespace, info.workflow_id or "")
        if received(RawValue(header), str) != info.workflow_run_id:
            raise left_behind()
        if input.executor is not None:  # an activity in a thread has no client to ask
            return await super().execute_activity(input)
        try:
            outcome = await super().execute_activity(input)
        except Exception:
            await self._delivery.possible(activity.client())
            raise
        await self._delivery.possible(activity.client())
        return outcome
