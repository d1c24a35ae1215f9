"""The activities of a batch, and the end of a row's task as its outcome.

The run of the batch that started a task learns of its end. A later run does not, so its activity `FOLLOW`
asks Temporal. It takes a slot of the worker, and the calls that it waits for need slots, too. So it looks
only for a few seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import (
    ApplicationError,
    ApplicationErrorCategory,
    CancelledError,
    TerminatedError,
    TimeoutError as TimedOutError,
)
from temporalio.service import RPCError

from tasquencer.ai.answer import AiAgentResult
from tasquencer.ai.usage import Usage
from tasquencer.batch.rows import ID_TAKEN, BatchCounts, OpenRow, RowFailure, RowOutcome, RowState, task_id_of
from tasquencer.batch.store import BatchStore, RowPage
from tasquencer.core.entries import cleaned_text
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.failure import FailureKind
from tasquencer.core.wording import one_line
from tasquencer.core.work_item import WorkItemState
from tasquencer.ledger.contract import Ledger
from tasquencer.temporal.authority import only_for
from tasquencer.temporal.batch_calls import (
    BATCH_WORKFLOW,
    BEGIN,
    CANCEL,
    END,
    FOLLOW,
    LOAD,
    SAVE,
    TASK_WORKFLOW,
    EndRequest,
    Followed,
    FollowRequest,
    LoadRequest,
    SaveRequest,
)
from tasquencer.temporal.heartbeats import heartbeats
from tasquencer.temporal.ledger_outage import retried_outages
from tasquencer.temporal.not_found import is_missing

__all__ = ["BatchActivities", "completed_row", "lost_row"]

_PAGE_BYTES = 768 * 1024
"""Maximum bytes of the requests on a page. Temporal accepts 2 MiB as a result."""

_MESSAGE_LENGTH = 500

_CLOSING_AT_ONCE = 20
"""Tasks that are asked to cancel at the same time."""

_LOOK_SECONDS = 3.0
"""The length of a long poll of Temporal."""

_TOGETHER_SECONDS = 0.2
"""How long the first end that is found waits for others, to return them together."""


def completed_row(row: OpenRow, result: object) -> RowOutcome:
    """Return the outcome of a row whose task returned this."""
    try:
        answer = AiAgentResult.model_validate(result)
    except ValidationError:
        failure = RowFailure(
            type="TaskFailed", kind=FailureKind.UNEXPECTED, message="the task returned no answer"
        )
        return RowOutcome(position=row.position, row_id=row.row_id, state=RowState.FAILED, failure=failure)
    return RowOutcome(
        position=row.position,
        row_id=row.row_id,
        state=RowState.COMPLETED,
        work_item_id=answer.work_item_id,
        attempts=answer.attempts,
        **(answer.total or answer.usage).model_dump(),
    )


def lost_row(row: OpenRow, cause: BaseException | None) -> RowOutcome:
    """Return the outcome of a row whose task ended with this error."""
    state = RowState.FAILED
    match cause:
        case CancelledError():
            state = RowState.CANCELED
            failure = RowFailure(type="Canceled", message="the task was canceled")
        case ApplicationError():
            details = cause.details[0] if cause.details else None
            kind = details.get("kind") if isinstance(details, dict) else None
            failure = RowFailure(
                type=cause.type or "ApplicationError",
                kind=kind if isinstance(kind, str) else None,
                message=one_line(cause.message, _MESSAGE_LENGTH),
            )
        case TerminatedError():
            failure = RowFailure(type="Terminated", message="the task was terminated")
        case TimedOutError():
            failure = RowFailure(type="TimedOut", message="the task ran into Temporal's timeout")
        case _:
            told = one_line(str(cause), _MESSAGE_LENGTH)
            failure = RowFailure(type=type(cause).__name__, message=told)
    texts: dict[str, str] = failure.model_dump(exclude_none=True)
    failure = RowFailure(**{name: cleaned_text(text) for name, text in texts.items()})
    return RowOutcome(position=row.position, row_id=row.row_id, state=state, failure=failure)


class BatchActivities:
    """The activities of batches. One per worker.

    Args:
        batches: Open while the worker runs.
        ledger: The ledger of the tasks.
    """

    def __init__(self, batches: BatchStore, ledger: Ledger) -> None:
        self._batches = batches
        self._ledger = ledger

    @activity.defn(name=BEGIN)
    async def begin(self, batch_id: str) -> BatchCounts:
        """Begin the batch, or continue with the rows that have no answer yet."""
        only_for(BATCH_WORKFLOW, batch_id)
        with retried_outages():
            async with heartbeats():
                batch = await self._batches.find(batch_id)
                if batch is None or batch.filled_at is None:
                    found = "no rows" if batch is None else "only a part of its rows"
                    raise ApplicationError(
                        f"batch {batch_id!r} has {found} in the ledger: add them with `tasq batch`",
                        type=InvalidRequest.__name__,
                        non_retryable=True,
                        category=ApplicationErrorCategory.BENIGN,
                    )
                return await self._batches.begin(batch_id)

    @activity.defn(name=LOAD)
    async def load(self, request: LoadRequest) -> RowPage:
        """Load a page of pending rows."""
        only_for(BATCH_WORKFLOW, request.batch_id)
        with retried_outages():
            return await self._batches.pending(
                request.batch_id, after=request.after, limit=request.limit, most_bytes=_PAGE_BYTES
            )

    @activity.defn(name=SAVE)
    async def save(self, request: SaveRequest) -> dict[int, Usage]:
        """Save outcomes. Return what their tasks used, by position."""
        only_for(BATCH_WORKFLOW, request.batch_id)
        with retried_outages():
            outcomes = [await self._believed(request.batch_id, one) for one in request.outcomes]
            return await self._batches.save(request.batch_id, outcomes)

    async def _believed(self, batch_id: str, outcome: RowOutcome) -> RowOutcome:
        """Return the outcome, or a failure if its work item belongs to another task than the row's.

        A work item that the ledger no longer has may have been pruned. `tasq ledger rebuild` brings it back.
        """
        if outcome.work_item_id is None:
            return outcome
        holder = await self._ledger.holder(outcome.work_item_id)
        if holder is None or holder[0] == task_id_of(batch_id, outcome.row_id):
            return outcome
        row = OpenRow(position=outcome.position, row_id=outcome.row_id, found=True)
        return lost_row(row, _taken()).model_copy(update=outcome.model_dump(include={"number", "ended_at"}))

    @activity.defn(name=END)
    async def end(self, request: EndRequest) -> BatchCounts:
        """End the batch. Return the counts of its rows.

        Cancels tasks that a terminated run has left and that this run has not reached.
        """
        only_for(BATCH_WORKFLOW, request.batch_id)
        with retried_outages():
            async with heartbeats():
                left = await self._batches.left_running(request.batch_id)
                await self._following(request.batch_id).cancel(left)
                await self._batches.end(request.batch_id, request.state)
                return await self._batches.counts(request.batch_id)

    @activity.defn(name=CANCEL)
    async def cancel(self, request: FollowRequest) -> None:
        """Ask the tasks to cancel."""
        only_for(BATCH_WORKFLOW, request.batch_id)
        with retried_outages():
            await self._following(request.batch_id).cancel(request.rows)

    @activity.defn(name=FOLLOW)
    async def follow(self, request: FollowRequest) -> Followed:
        """Wait a few seconds for the end of a task. The last look waits for all of them."""
        only_for(BATCH_WORKFLOW, request.batch_id)
        with retried_outages():
            async with heartbeats():
                following = self._following(request.batch_id)
                rows, taken = await following.divide(request.rows)
                found = Followed()
                if request.is_last or not taken:
                    found = await following.ends(rows, all_of_them=request.is_last)
                others = [lost_row(row, _taken()) for row in taken]
                return found.model_copy(update={"outcomes": [*found.outcomes, *others]})

    def _following(self, batch_id: str) -> _Following:
        return _Following(activity.client(), self._batches, self._ledger, batch_id)


def _taken() -> ApplicationError:
    return ApplicationError("a task that the batch has not started has this row's id", type=ID_TAKEN)


def _stopping() -> ApplicationError:
    """Return the error that makes Temporal give the activity to another worker, so that this one can stop."""
    return ApplicationError("the worker stops", category=ApplicationErrorCategory.BENIGN)


class _Following:
    """Asks Temporal how tasks ended."""

    def __init__(self, client: Client, batches: BatchStore, ledger: Ledger, batch_id: str) -> None:
        self._client = client
        self._batches = batches
        self._ledger = ledger
        self._batch_id = batch_id
        self._known_runs: set[str] = set()

    async def divide(self, rows: Sequence[OpenRow]) -> tuple[list[OpenRow], list[OpenRow]]:
        """Split rows into those whose tasks belong to the batch and those whose ids other tasks have."""
        ours: list[OpenRow] = []
        taken: list[OpenRow] = []
        for row in rows:
            (ours if not row.found or await self._is_ours(row) else taken).append(row)
        return ours, taken

    async def _is_ours(self, row: OpenRow) -> bool:
        """Return whether the task with the row's id is a child of this batch and does what the row says.

        Anyone who may start workflows can take the id first, with the same request but a worker of their own.
        """
        page = await self._batches.pending(
            self._batch_id, after=row.position - 1, limit=1, most_bytes=_PAGE_BYTES
        )
        handle = self._client.get_workflow_handle(task_id_of(self._batch_id, row.row_id))
        try:
            first = await anext(handle.fetch_history_events(page_size=1))
        except RPCError as error:
            if not is_missing(error):
                raise
            return True  # it no longer exists
        if not page.rows or page.rows[0].position != row.position:
            return True  # its outcome is saved
        started = first.workflow_execution_started_event_attributes
        parent = started.parent_workflow_execution
        is_task = started.workflow_type.name == TASK_WORKFLOW
        is_here = started.task_queue.name == activity.info().task_queue
        if not (is_task and is_here and parent.workflow_id == self._batch_id):
            return False
        (request, *_) = await self._client.data_converter.decode(started.input.payloads) or [None]
        return request == page.rows[0].request and await self._is_run_of_the_batch(parent.run_id)

    async def _is_run_of_the_batch(self, run_id: str) -> bool:
        """Return whether Temporal has this run as one of the batch's workflow on this task queue."""
        info = activity.info()
        if run_id in {info.workflow_run_id, *self._known_runs}:
            return True
        try:
            run = await self._client.get_workflow_handle(self._batch_id, run_id=run_id).describe()
        except RPCError as error:
            if not is_missing(error):
                raise
            return False
        if (run.workflow_type, run.task_queue) != (BATCH_WORKFLOW, info.task_queue):
            return False
        self._known_runs.add(run_id)
        return True

    async def cancel(self, rows: Sequence[OpenRow]) -> None:
        """Ask the tasks that belong to the batch to cancel."""
        ours, _ = await self.divide(rows)
        slots = asyncio.Semaphore(_CLOSING_AT_ONCE)

        async def one(row: OpenRow) -> None:
            handle = self._client.get_workflow_handle(task_id_of(self._batch_id, row.row_id))
            async with slots:
                try:
                    await handle.cancel()
                except RPCError as error:  # it has ended or never begun
                    if not is_missing(error):
                        raise

        await asyncio.gather(*(one(row) for row in ours))

    async def ends(self, rows: Sequence[OpenRow], *, all_of_them: bool) -> Followed:
        asking = {asyncio.create_task(self._end(row)): row for row in rows}
        stopping = asyncio.create_task(activity.wait_for_worker_shutdown())
        left: set[asyncio.Task[Any]] = set(asking)
        try:
            while left and (all_of_them or len(left) == len(asking)):
                ended, left = await asyncio.wait(
                    {*left, stopping},
                    return_when=asyncio.FIRST_COMPLETED,
                    timeout=None if all_of_them else _LOOK_SECONDS,
                )
                if stopping.done():
                    raise _stopping()
                left -= {stopping}
                if not ended:
                    return Followed()
            if left:
                await asyncio.wait(left, timeout=_TOGETHER_SECONDS)
            done = {row.position: task.result() for task, row in asking.items() if task.done()}
        finally:
            for task in (*asking, stopping):
                task.cancel()
            await asyncio.gather(*asking, stopping, return_exceptions=True)
        return Followed(
            outcomes=[outcome for outcome in done.values() if outcome is not None],
            unknown=[position for position, outcome in done.items() if outcome is None],
        )

    async def _end(self, row: OpenRow) -> RowOutcome | None:
        """Return how the row's task ended, or None if neither Temporal nor the ledger has it."""
        task_id = task_id_of(self._batch_id, row.row_id)
        try:
            return completed_row(row, await self._client.get_workflow_handle(task_id).result())
        except WorkflowFailureError as error:
            return lost_row(row, error.cause)
        except RPCError as error:
            if not is_missing(error):
                raise
            return await self._end_in_ledger(row, task_id)

    async def _end_in_ledger(self, row: OpenRow, task_id: str) -> RowOutcome | None:
        """Return how a task ended that Temporal no longer has."""
        items = await self._ledger.work_items_of(task_id)
        if not items or not items[-1].state.is_terminal:
            return None
        item = items[-1]
        if item.state is WorkItemState.COMPLETED:
            attempts = items[-(item.attempt + 1) :]  # not those of an earlier task with the same id
            return completed_row(row, AiAgentResult.of(item, attempts))
        if item.failure is None:
            return lost_row(row, CancelledError())
        told = ApplicationError(item.failure.message, {"kind": item.failure.kind}, type="TaskFailed")
        return lost_row(row, told)
