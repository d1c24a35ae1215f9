"""A tool call: one work item, one activity, one call of the tool."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Mapping
from functools import partial

from pydantic import JsonValue
from temporalio import activity

from tasquencer.ai.provider.redaction import Redactor
from tasquencer.ai.timeouts import call_limit
from tasquencer.ai.tool_calls import ToolJob
from tasquencer.ai.tools import ToolContext, ToolError, ToolSource
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.temporal.supervision import Supervision

__all__ = ["CALL_TOOL", "TOOL_FAILED", "ToolActivity"]

CALL_TOOL = "call_tool"

TOOL_FAILED = "tool_failed"
"""The kind of a failure that a tool has raised."""


class ToolActivity:
    """The activity `call_tool`.

    Args:
        tools: The worker's tools, by name.
        clean: Returns what removes the worker's secrets from a tool's result or error.
        supervision: Runs the calls.
    """

    def __init__(
        self, tools: Mapping[str, ToolSource], clean: Callable[[], Redactor], supervision: Supervision
    ) -> None:
        self._tools = tools
        self._clean = clean
        self._supervision = supervision

    @activity.defn(name=CALL_TOOL)
    async def call_tool(self, job: ToolJob, attempt: int) -> JsonValue:
        """Call the tool once. Return its result as JSON, without the worker's secrets.

        Args:
            job: The call.
            attempt: 0 for the first try, k for retry k.

        A tool that is not async runs in a thread, and continues there after a timeout or a cancellation.

        Raises:
            ApplicationError: of the failure's kind, with the `Failure` as its detail. `NotAllowed` for a
            caller whose work item is not started.
        """
        return await self._supervision.run(partial(self._attempt, job, attempt))

    async def _attempt(self, job: ToolJob, attempt: int) -> JsonValue | Failure:
        info = activity.info()
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
                result = await known.call(job.arguments, context)
                # In a thread, because a long result takes some time.
                return await asyncio.to_thread(self._clean().json_without_secrets, result)
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
