"""The activities of a batch, as its workflow calls them: names, arguments, timeouts.

Temporal retries them during outages of the ledger and of Temporal, without a limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from pydantic import BaseModel, ConfigDict
from temporalio import workflow
from temporalio.common import Priority, RawValue, RetryPolicy

from tasquencer.ai.usage import Usage
from tasquencer.batch.rows import BatchCounts, OpenRow, RowOutcome
from tasquencer.batch.store import BatchState, RowPage
from tasquencer.temporal.bookkeeping import LOCAL_RETRY_THRESHOLD, RECORD_TIMEOUT
from tasquencer.temporal.wire import received, sent

__all__ = [
    "BATCH_WORKFLOW",
    "BEGIN",
    "CANCEL",
    "END",
    "FOLLOW",
    "LOAD",
    "PAUSED",
    "SAVE",
    "TASK_WORKFLOW",
    "BatchCalls",
    "EndRequest",
    "FollowRequest",
    "Followed",
    "LoadRequest",
    "SaveRequest",
]

BATCH_WORKFLOW = "AiBatchTask"
TASK_WORKFLOW = "AiAgentTask"

BEGIN = "tasquencer.begin_batch"
LOAD = "tasquencer.load_batch_rows"
SAVE = "tasquencer.record_batch_rows"
CANCEL = "tasquencer.cancel_batch_rows"
FOLLOW = "tasquencer.follow_batch_rows"
END = "tasquencer.end_batch"
"""Names of the activities."""

PAUSED = "paused"
"""The key in the workflow's memo for the person who paused the batch, and the reason."""

_CANCEL_TIMEOUT = timedelta(minutes=1)
_LOAD_TIMEOUT = timedelta(seconds=30)
_HEARTBEAT_TIMEOUT = timedelta(seconds=15)
_ANY_TIME = timedelta(days=365)
"""For activities that send heartbeats. Their time is not limited."""

_UNTIL_IT_WORKS = RetryPolicy(
    initial_interval=timedelta(milliseconds=100), maximum_interval=timedelta(minutes=1)
)

_BEFORE_ALL_CALLS = Priority(priority_key=1)
"""The priority of a batch's own few activities. Without it they would wait behind hundreds of AI calls."""

_TRY = workflow.ActivityCancellationType.TRY_CANCEL
_WAIT = workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED


class LoadRequest(BaseModel):
    """Selects the rows to load."""

    model_config = ConfigDict(frozen=True)

    batch_id: str
    after: int
    limit: int


class SaveRequest(BaseModel):
    """The outcomes to save."""

    model_config = ConfigDict(frozen=True)

    batch_id: str
    outcomes: list[RowOutcome]


class FollowRequest(BaseModel):
    """The tasks to follow.

    Attributes:
        is_last: True after they have been canceled. The activity then returns when all have ended.
    """

    model_config = ConfigDict(frozen=True)

    batch_id: str
    rows: list[OpenRow]
    is_last: bool = False


class Followed(BaseModel):
    """Outcomes of the tasks that have ended, and positions of the tasks that Temporal does not have."""

    model_config = ConfigDict(frozen=True)

    outcomes: list[RowOutcome] = []
    unknown: list[int] = []


class EndRequest(BaseModel):
    """The end of a batch."""

    model_config = ConfigDict(frozen=True)

    batch_id: str
    state: BatchState


class BatchCalls:
    """The activities of one batch, for use in its workflow."""

    def __init__(self, batch_id: str) -> None:
        self._batch_id = batch_id

    async def begin(self) -> BatchCounts:
        """Begin the batch, or continue it with the rows that have no answer yet."""
        # Waits for its end when canceled, because the activity that ends the batch must not run beside it.
        counts = await _execute(BEGIN, self._batch_id, cancellation_type=_WAIT)
        return received(counts, BatchCounts)

    async def load(self, *, after: int, limit: int) -> RowPage:
        """Load the pending rows after this position."""
        request = LoadRequest(batch_id=self._batch_id, after=after, limit=limit)
        page = await workflow.execute_activity(
            LOAD,
            sent(request),
            result_type=RawValue,
            start_to_close_timeout=_LOAD_TIMEOUT,
            retry_policy=_UNTIL_IT_WORKS,
            priority=_BEFORE_ALL_CALLS,
        )
        return received(page, RowPage)

    async def save(self, outcomes: list[RowOutcome]) -> dict[int, Usage]:
        """Save the outcomes of rows. Return what their tasks used, by position."""
        # A local activity, because one per second would use up the queue's limit of calls per second.
        request = SaveRequest(batch_id=self._batch_id, outcomes=outcomes)
        used = await _execute_locally(SAVE, request, RECORD_TIMEOUT)
        return received(used, dict[int, Usage]) or {}  # an earlier release returned nothing

    async def cancel(self, rows: Sequence[OpenRow]) -> None:
        """Ask the tasks of these rows to cancel."""
        # A local activity, because another one would wait for a slot among the calls that it has to end.
        request = FollowRequest(batch_id=self._batch_id, rows=list(rows), is_last=True)
        await _execute_locally(CANCEL, request, _CANCEL_TIMEOUT)

    async def follow(self, rows: Sequence[OpenRow], *, is_last: bool = False) -> Followed:
        """Follow the tasks of these rows for a few seconds, or (`is_last`) until all have ended."""
        request = FollowRequest(batch_id=self._batch_id, rows=list(rows), is_last=is_last)
        return received(await _execute(FOLLOW, request), Followed)

    async def end(self, state: BatchState) -> BatchCounts | None:
        """End the batch in this state. Return the counts of its rows, or None from an earlier release."""
        request = EndRequest(batch_id=self._batch_id, state=state)
        return received(await _execute(END, request), BatchCounts)


async def _execute(
    name: str,
    argument: object,
    *,
    cancellation_type: workflow.ActivityCancellationType = _TRY,
) -> RawValue:
    returned: RawValue = await workflow.execute_activity(
        name,
        sent(argument),
        result_type=RawValue,
        start_to_close_timeout=_ANY_TIME,
        heartbeat_timeout=_HEARTBEAT_TIMEOUT,
        retry_policy=_UNTIL_IT_WORKS,
        priority=_BEFORE_ALL_CALLS,
        cancellation_type=cancellation_type,
    )
    return returned


async def _execute_locally(name: str, argument: object, limit: timedelta) -> RawValue:
    returned: RawValue = await workflow.execute_local_activity(
        name,
        sent(argument),
        result_type=RawValue,
        start_to_close_timeout=limit,
        retry_policy=_UNTIL_IT_WORKS,
        local_retry_threshold=LOCAL_RETRY_THRESHOLD,
    )
    return returned
