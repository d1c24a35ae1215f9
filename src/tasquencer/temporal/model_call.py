"""The AI call of one attempt, for workflow code."""

from __future__ import annotations

from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.common import RawValue

from tasquencer.ai.answer import AiAnswer, returned_answer
from tasquencer.ai.job import AiJob
from tasquencer.ai.request import CallOptions
from tasquencer.ai.timeouts import CALL_MARGIN
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.temporal.attempts import ActiveWorkItem
from tasquencer.temporal.failures import as_application_error
from tasquencer.temporal.wire import received_json, sent

__all__ = ["answer", "job_of"]

_SHORTEST_CALL = timedelta(seconds=1)
"""A call that may still begin gets at least this much time, however near the deadline is."""


def job_of(work_item: ActiveWorkItem) -> AiJob:
    """What this attempt has to do: a hook may have changed it from the attempt before."""
    return AiJob.model_validate(work_item.payload)


async def answer(
    work_item: ActiveWorkItem,
    job: AiJob,
    options: CallOptions,
    deadline: datetime | None,
    *,
    summary: str | None = None,
) -> AiAnswer:
    """Call the model once for this work item, in the activity `generate`. Return the model's answer.

    Args:
        work_item: The attempt's work item. Call this in its `async with` block.
        job: The request to the model.
        options: Timeouts of the attempt.
        deadline: The call is cut off at this time, even while it waits for a worker. None: no deadline.
        summary: The name of the call in the Web UI. None: the name of the attempt.
    """
    limit = timedelta(seconds=options.attempt_timeout_seconds)
    left = None if deadline is None else max(deadline - workflow.now(), _SHORTEST_CALL)
    queue_timeout = options.queue_timeout_seconds
    # Read as JSON first. If Temporal itself could not read the answer, the task would be stuck.
    returned = await work_item.execute_activity(
        "generate",
        # Without its defaults: a worker of an earlier release refuses fields that it does not know.
        sent(job.model_dump(mode="json", exclude_defaults=True)),
        result_type=RawValue,
        start_to_close_timeout=(limit if left is None else min(limit, left)) + CALL_MARGIN,
        schedule_to_start_timeout=None if queue_timeout is None else timedelta(seconds=queue_timeout),
        schedule_to_close_timeout=None if left is None else left + CALL_MARGIN,
        heartbeat_timeout=timedelta(seconds=options.heartbeat_timeout_seconds),
        summary=summary,
    )
    try:
        return returned_answer(received_json(returned, workflow.payload_converter().from_payload))
    except InvalidRequest as problem:
        message = f"the activity 'generate' returned no answer: {problem}"
        raise as_application_error(
            Failure.of(FailureKind.UNEXPECTED, message, outcome_unknown=True)
        ) from None
