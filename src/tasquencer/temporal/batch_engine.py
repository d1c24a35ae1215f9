"""The engine of a batch: starts its rows as child workflows, collects their ends and saves them.

`tasquencer.batch.window` decides which rows to start, load and save. The engine does this in a workflow.
Loading, saving and following run in the background, one of each at a time. `changed` returns after each event
of one of them, of a row or of a pause.

A child workflow outlives the run of the batch that started it. The next run learns of its end by asking
Temporal (`follow_tasks`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from temporalio import workflow
from temporalio.common import Priority, WorkflowIDReusePolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)

from tasquencer.batch.rows import (
    AiBatchRequest,
    AiBatchResult,
    BatchCounts,
    BatchPause,
    BatchProgress,
    BatchRow,
    CarriedBatch,
    OpenRow,
    parse_batch,
    task_id_of,
)
from tasquencer.batch.store import BatchState, RowPage
from tasquencer.batch.window import MOST_UNSAVED, BatchWindow
from tasquencer.core.display_text import markdown_line
from tasquencer.core.errors import InvalidRequest, TaskMisused
from tasquencer.core.policy import Verdict
from tasquencer.core.wording import counted
from tasquencer.temporal.batch_calls import PAUSED, TASK_WORKFLOW, BatchCalls, Followed
from tasquencer.temporal.batches import completed_row, lost_row
from tasquencer.temporal.failures import task_error
from tasquencer.temporal.scope import to_the_end

__all__ = ["BatchEngine"]

_LONGEST_HISTORY = 7_000
"""Events after which a batch continues as new, unless Temporal suggests it earlier. The rows that are then
running add up to 2,000 events."""

_SAVE_SECONDS = 1.0
"""How long an outcome waits for others, to be saved together."""

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
"""The pause between two looks at the tasks of an earlier run. It doubles after each look that found nothing,
because a task may sleep for hours."""

_NOTES_PAUSE = "pause-in-memo"
"""Earlier releases do not write a pause to the workflow's memo."""

_AFTER_SINGLE_TASKS = Priority(priority_key=4)
"""The calls of single tasks come before those of a batch."""


class BatchEngine:
    """Runs one batch in its workflow. Make it in the workflow's `__init__`.

    Args:
        raw: The workflow's input. `run` refuses input that is not valid.
    """

    def __init__(self, raw: object) -> None:
        self._id = workflow.info().workflow_id
        self._calls = BatchCalls(self._id)
        self._begun: BatchWindow | None = None
        self._request = AiBatchRequest()
        self._paused: BatchPause | None = None
        self._to_follow: dict[int, OpenRow] = {}  # open rows without a child workflow of this run
        self._starting = 0
        self._started_bytes = _StartedBytes()
        self._is_ending = False
        self._final: BatchCounts | None = None
        self._has_changed = False
        self._bug: BaseException | None = None
        self._loading: asyncio.Task[RowPage] | None = None
        self._loading_after = -1
        self._saving: asyncio.Task[None] | None = None
        self._following: asyncio.Task[Followed] | None = None
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        with contextlib.suppress(InvalidRequest):
            if (carried := _carried(parse_batch(raw))) is not None:
                self._paused = carried.paused
                self._to_follow = {row.position: row for row in carried.open}

    def progress(self) -> BatchProgress | None:
        """Return the batch's progress, or None before it has begun."""
        return None if self._begun is None else self._begun.progress()

    def set_pause(self, pause: BatchPause | None) -> BatchPause | None:
        """Start no further rows. None: start rows again. Running rows are not affected."""
        self._paused = pause
        if self._begun is not None:
            self._begun.pause(pause)
        if workflow.patched(_NOTES_PAUSE):
            workflow.upsert_memo({PAUSED: None if pause is None else pause.model_dump()})
        self._has_changed = True
        return pause

    async def begin(self, request: AiBatchRequest) -> None:
        """Begin the batch, or continue the previous run.

        Raises:
            ApplicationError: of type `InvalidRequest`, if the ledger lacks its rows, or has too few for the
            policy.
        """
        carried = _carried(request)
        self._request = request.model_copy(update={"carried": carried})
        if carried is not None:
            counts = carried.counts
        else:
            try:
                counts = await self._calls.begin()
            except ActivityError as error:
                if not isinstance(error.cause, ApplicationError):
                    raise
                raise task_error(InvalidRequest.__name__, error.cause.message) from None
        self._begun = BatchWindow(request, counts, carried)
        self._begun.pause(self._paused)
        if problem := request.policy.problem_with(self._begun.rows):
            await to_the_end(self._end(BatchState.FAILED))
            raise task_error(InvalidRequest.__name__, f"policy.successes: {problem}")
        self._take_in()

    @property
    def _window(self) -> BatchWindow:
        if self._begun is None:
            raise TaskMisused("the batch has not begun: call begin() first")
        return self._begun

    @property
    def is_decided(self) -> bool:
        """True if the policy has a verdict, or no row is left."""
        return self._window.verdict is not Verdict.CONTINUE or self._window.is_missing_rows

    @property
    def history_is_long(self) -> bool:
        """Return whether it is time to continue as new."""
        info = workflow.info()
        return info.is_continue_as_new_suggested() or info.get_current_history_length() >= _LONGEST_HISTORY

    def continue_as_new(self) -> None:
        """Continue in a new run, unless a row is just being started. Then call it again after the next
        change.

        A child workflow that has not begun before its run ends never begins. The next run follows the others.
        """
        if not self._starting:
            carried = self._window.carry().model_copy(update={"run_id": workflow.info().run_id})
            workflow.continue_as_new(self._request.model_copy(update={"carried": carried}))

    def start_rows(self) -> None:
        """Start as many rows as the window has room for."""
        for row in self._window.start(self._started_bytes.total()):
            self._starting += 1
            self._started_bytes.add(row.size)
            self._in_background(self._carry_out(row))

    def load_rows(self) -> None:
        """Load the next page of rows, if the window needs one."""
        if self._window.needs_rows and self._loading is None:
            self._loading_after = self._window.cursor
            page = self._calls.load(after=self._window.cursor, limit=self._window.page_size)
            self._loading = self._in_background(page)

    def save_outcomes(self) -> None:
        """Save the outcomes that the ledger does not have, those of a second at a time."""
        if self._window.unsaved and self._saving is None:
            self._saving = self._in_background(self._save_soon())

    def follow_tasks(self) -> None:
        """Follow the tasks that another run of the batch has started."""
        if self._to_follow and self._following is None:
            self._following = self._in_background(self._look(list(self._to_follow.values())))

    async def changed(self) -> None:
        """Wait for a change and process it. Raises errors of the background work."""
        await workflow.wait_condition(lambda: self._has_changed)
        self._take_in()

    async def end(self) -> AiBatchResult:
        """Cancel the running rows, and save all outcomes.

        Raises:
            ApplicationError: of type `TaskFailed`, if the policy ended the batch or rows have disappeared.
        """
        failure = self._failure()
        await to_the_end(self._end(BatchState.COMPLETED if failure is None else BatchState.FAILED))
        if failure is not None:
            raise failure
        result = self._window.result()
        if self._final is not None:  # the ledger also has what rows used in earlier runs
            result = result.model_copy(update=self._final.usage.model_dump())
        return result

    async def cancel(self) -> None:
        """Cancel all running rows, and save all outcomes. A cancel cannot interrupt it."""
        await to_the_end(self._end(BatchState.CANCELED))

    async def _carry_out(self, row: BatchRow) -> None:
        window = self._window
        open_row = window.open[row.position]
        try:
            child = await workflow.start_child_workflow(
                TASK_WORKFLOW,
                row.request,
                id=task_id_of(self._id, row.row_id),
                # A batch that runs again repeats failed rows, not completed ones.
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
                priority=_AFTER_SINGLE_TASKS,
            )
        except WorkflowAlreadyStartedError:
            self._to_follow[row.position] = window.find(row)
            if self._following is not None:  # it does not follow this row
                self._following.cancel()
            return
        finally:
            self._starting -= 1
            self._has_changed = True
        try:
            outcome = completed_row(open_row, await child)
        except ChildWorkflowError as error:
            outcome = lost_row(open_row, error.cause)
        window.end(outcome, workflow.now())
        self._has_changed = True

    def _take_in(self) -> None:
        self._has_changed = False
        if self._bug is not None:
            raise self._bug
        if self._loading is not None and self._loading.done():
            page = self._loading.result()
            self._loading = None
            self._window.load(page.rows, after=self._loading_after, is_last=page.is_last)
        if self._saving is not None and self._saving.done():
            self._saving.result()
            self._saving = None
        if self._following is not None and self._following.done():
            followed = Followed() if self._following.cancelled() else self._following.result()
            self._following = None
            self._take_ends(followed)

    def _take_ends(self, followed: Followed) -> None:
        for outcome in followed.outcomes:
            self._to_follow.pop(outcome.position, None)
            self._window.end(outcome, workflow.now())
        for position in followed.unknown:
            self._to_follow.pop(position, None)
        self._window.forget(followed.unknown)

    async def _save_soon(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await workflow.wait_condition(
                lambda: self._is_ending or self._window.unsaved >= MOST_UNSAVED,
                timeout=_SAVE_SECONDS,
                timeout_summary="more outcomes to record",
            )
        await self._save(self._window)

    async def _save(self, window: BatchWindow) -> None:
        workflow.set_current_details(_details(window.progress()))
        if outcomes := window.to_save():
            window.saved(await self._calls.save(outcomes))

    async def _look(self, rows: list[OpenRow]) -> Followed:
        """Look once for tasks that have ended. If there are none, pause."""
        try:
            followed = await self._calls.follow(rows)
        except ActivityError as error:
            if not is_cancelled_exception(error):
                raise
            return Followed()
        if followed.outcomes or followed.unknown:
            self._pause_seconds = _FIRST_PAUSE_SECONDS
        else:
            pause = self._pause_seconds
            self._pause_seconds = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            await workflow.sleep(pause, summary="look again how the tasks of the run before end")
        return followed

    async def _end(self, state: BatchState) -> None:
        self._is_ending = True
        await workflow.wait_condition(lambda: not self._starting)
        if self._following is not None:
            self._following.cancel()
        if self._saving is not None:
            await self._saving
        if (window := self._begun) is not None:
            if rows := list(window.open.values()):
                await self._calls.cancel(rows)
                self._take_ends(await self._calls.follow(rows, is_last=True))
            await self._save(window)
        self._final = await self._calls.end(state)

    def _failure(self) -> ApplicationError | None:
        """Return the error with which the decided batch ends, or None if it completes."""
        window, progress = self._window, self._window.progress()
        if window.verdict is Verdict.COMPLETE:
            return None
        if window.verdict is Verdict.CONTINUE:
            missing = progress.rows - progress.ended
            return task_error(
                "TaskFailed", f"the ledger no longer has {counted(missing, 'row')} of the batch"
            )
        lost = progress.failed + progress.canceled
        message = f"the policy ended the batch: {lost:,} of {counted(progress.rows, 'row')} failed"
        last = f"; the last one: {window.last_failure}" if window.last_failure is not None else ""
        return task_error("TaskFailed", message + last)

    def _in_background(self, doing: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(doing)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, done: asyncio.Task[Any]) -> None:
        if not done.cancelled():
            self._bug = self._bug or done.exception()
        self._has_changed = True


def _carried(request: AiBatchRequest) -> CarriedBatch | None:
    """Return what the run before this one has carried along; nothing that a client has put into the input."""
    carried, info = request.carried, workflow.info()
    if carried is None or info.continued_run_id is None:
        return None
    if carried.run_id is None:  # by an earlier release
        return carried if info.cron_schedule is None and info.retry_policy is None else None
    return carried if carried.run_id == info.continued_run_id else None


class _StartedBytes:
    """Counts the bytes of the requests that the current workflow task starts."""

    def __init__(self) -> None:
        self._history_length = 0
        self._bytes = 0

    def total(self) -> int:
        if (length := workflow.info().get_current_history_length()) != self._history_length:
            self._history_length, self._bytes = length, 0
        return self._bytes

    def add(self, size: int) -> None:
        self._bytes = self.total() + size


def _details(progress: BatchProgress) -> str:
    """Return a table for the Web UI."""
    figures = {
        "rows": progress.rows,
        "completed": progress.completed,
        "failed": progress.failed,
        "canceled": progress.canceled,
        "under way": progress.running,
    }
    lines = ["| | |", "| --- | ---: |", *(f"| {name} | {figure:,} |" for name, figure in figures.items())]
    if progress.paused is not None:
        lines.append(f"| paused by | {markdown_line(progress.paused.actor, 120)} |")
    return "\n".join(lines)
