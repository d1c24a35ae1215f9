"""Runs the calls of work items in activities: once, only for work items that are started, with heartbeats."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from temporalio import activity

from tasquencer.core.failure import Failure
from tasquencer.ledger.contract import Ledger
from tasquencer.temporal.authority import only_for_started
from tasquencer.temporal.cancels import heartbeat_interval
from tasquencer.temporal.failures import as_application_error
from tasquencer.temporal.heartbeats import heartbeats
from tasquencer.temporal.only_once import CALLED, is_second_run, second_run
from tasquencer.temporal.pauses import through_pauses

__all__ = ["Supervision"]

T = TypeVar("T")


class Supervision:
    """Runs the calls of one worker.

    Args:
        interval: The time between two heartbeats where a cancel comes in the answer to one.

    Attributes:
        ledger: Only work items that it has as started may make calls. None: any activity may.
        grace_period: How long a paused call may still run after its worker began to stop.
        pushed: Whether the server pushes cancels, which makes most heartbeats needless.
    """

    def __init__(self, interval: timedelta) -> None:
        self._interval = interval
        self.ledger: Ledger | None = None
        self.grace_period = timedelta(0)
        self.pushed = False

    async def run(self, call: Callable[[], Awaitable[T | Failure]]) -> T:
        """Make the call of the current activity, and return its result.

        A pause by an operator changes nothing, a reset is a failure. Other cancels stop the call and
        propagate.

        Raises:
            ApplicationError: of the failure's kind, with the `Failure` as its detail. `NotAllowed` for a
            caller whose work item is not started.
        """
        outcome = await through_pauses(
            self._made(call), interval=self._interval, grace_period=self.grace_period
        )
        if isinstance(outcome, Failure):
            # Not raised within `except`, because the history would keep the cause, with all its quotes.
            raise as_application_error(outcome, is_final=True)
        return outcome

    async def _made(self, call: Callable[[], Awaitable[T | Failure]]) -> T | Failure:
        timeout = activity.info().heartbeat_timeout
        interval = heartbeat_interval(self._interval, timeout, pushed=self.pushed)
        if self.ledger is not None:
            async with heartbeats(interval, begins_with_one=False):
                await only_for_started(self.ledger)
        if is_second_run():
            return second_run()
        async with heartbeats(interval, CALLED, begins_with_one=not self.pushed):
            return await call()
