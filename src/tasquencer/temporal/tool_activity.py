"""A tool call: one work item, one activity, one call of the tool."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta

from pydantic import JsonValue
from temporalio import activity

from tasquencer.ai.provider.redaction import Redactor
from tasquencer.ai.timeouts import call_limit
from tasquencer.ai.tool_calls import ToolJob
from tasquencer.ai.tools import ToolContext, ToolError, ToolSource
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.ledger.contract import Ledger
from tasquencer.temporal.authority import only_for_started
from tasquencer.temporal.cancels import heartbeat_interval
from tasquencer.temporal.failures import as_application_error
from tasquencer.temporal.heartbeats import heartbeats
from tasquencer.temporal.only_once import CALLED, is_second_run, second_run
from tasquencer.temporal.pauses import through_pauses

__all__ = ["CALL_TOOL", "TOOL_FAILED", "ToolActivity"]

CALL_TOOL = "call_tool"

TOOL_FAILED = "tool_failed"
"""The kind of a failure that a tool has raised."""


class ToolActivity:
    """The activity `call_tool`.

    Args:
        tools: The worker's tools, by name.
        clean: Returns the function that removes secrets from a tool's error.
        interval: The time between two heartbeats.
    """

    def __init__(
        self, tools: Mapping[str, ToolSource], clean: Callable[[], Redactor], interval: timedelta
    ) -> None:
        self._tools = tools
        self._clean = clean
        self._interval = interval
        self.ledger: Ledger | None = None
        self.grace_period = timedelta(0)
        self.pushed = False

    @activity.defn(name=CALL_TOOL)
    async def call_tool(self, job: ToolJob, attempt: int) -> JsonValue:
        """Call the tool once. Return its result as JSON.

        Args:
            job: The call.
            attempt: 0 for the first try, k for retry k.

        A tool that is not async runs in a thread, and continues there after a timeout or a cancellation.

        Raises:
            ApplicationError: of the failure's kind, with the `Failure` as its detail. `NotAllowed` for a
            caller whose work item is not started.
        """
        info = activity.info()
        interval = heartbeat_interval(self._interval, info.heartbeat_timeout, pushed=self.pushed)
        outcome = await through_pauses(
            self._checked_attempt(job, attempt, info, interval),
            interval=self._interval,
            grace_period=self.grace_period,
        )
        if isinstance(outcome, Failure):
            raise as_application_error(outcome, is_final=True)
        return outcome

    async def _checked_attempt(
        self, job: ToolJob, attempt: int, info: activity.Info, interval: timedelta
    ) -> JsonValue | Failure:
        if self.ledger is not None:
            async with heartbeats(interval, begins_with_one=False):
                await only_for_started(self.ledger)
        if is_second_run():
            return second_run()
        async with heartbeats(interval, CALLED, begins_with_one=not self.pushed):
            return await self._attempt(job, attempt, info)

    async def _attempt(self, job: ToolJob, attempt: int, info: activity.Info) -> JsonValue | Failure:
        known = self._tools.get(job.tool)
        if known is None:
            return Failure.of(FailureKind.INVALID_REQUEST, f"this worker has no tool {job.tool!r}")
        context = ToolContext(
            task_id=info.workflow_id or "",
            work_item_id=info.activity_id,
            attempt=attempt,
            idempotency_key=job.idempotency_key,
        )
        limit = call_limit(info.start_to_close_timeout)
        try:
            async with asyncio.timeout(limit.total_seconds() if limit is not None else None) as timeout:
                return await known.call(job.arguments, context)
        except ToolError as error:
            return self._failed(str(error), transient=error.retry)
        except Exception as error:  # noqa: BLE001 - it is the tool's
            if isinstance(error, TimeoutError) and timeout.expired():
                seconds = "" if limit is None else f" within {limit.total_seconds():g} s"
                return Failure.of(
                    FailureKind.TIMED_OUT, f"the tool did not end{seconds}", outcome_unknown=True
                )
            transient = known.is_transient(error)
            if not transient:  # it may be a bug
                trace = "".join(traceback.format_exception(error))
                activity.logger.warning("%s: %s", job.tool, self._clean()(trace))
            return self._failed(f"{type(error).__name__}: {error}", transient=transient)

    def _failed(self, message: str, *, transient: bool) -> Failure:
        return Failure(kind=TOOL_FAILED, message=self._clean()(message), transient=transient)
