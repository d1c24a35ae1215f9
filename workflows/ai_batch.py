"""The batch: any number of prompts, each a task of its own, a few at a time, under one policy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy, WorkflowIDReusePolicy
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
    OpenRow,
    parse_batch,
    parse_pause,
    task_id_of,
)
from tasquencer.batch.store import BatchState, RowPage
from tasquencer.batch.window import MOST_UNRECORDED, BatchWindow
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.policy import Verdict
from tasquencer.temporal import accept
from tasquencer.temporal.batches import (
    BATCH_WORKFLOW,
    BEGIN,
    CANCEL,
    END,
    FOLLOW,
    LOAD,
    RECORD,
    TASK_WORKFLOW,
    EndRequest,
    Followed,
    FollowRequest,
    LoadRequest,
    RecordRequest,
    completed_row,
    lost_row,
)
from tasquencer.temporal.bookkeeping import LOCAL_RETRY_THRESHOLD, RECORD_TIMEOUT
from tasquencer.temporal.failures import task_error
from tasquencer.temporal.scope import to_the_end

__all__ = ["AiBatchTask"]

_LONGEST_HISTORY = 7_000
"""Events after which a batch goes on in a new run, if Temporal does not suggest it before. What is under way
then adds up to 2,000."""

_RECORD_SECONDS = 1.0
"""How long an outcome waits for others to be recorded with."""

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
"""From a look at the tasks of an earlier run that brought nothing to the next: it doubles, for a task may
sleep for hours."""

_CANCEL_TIMEOUT = timedelta(minutes=1)
_LOAD_TIMEOUT = timedelta(seconds=30)
_HEARTBEAT_TIMEOUT = timedelta(seconds=15)
_ANY_TIME = timedelta(days=365)
"""The activities that may take any time send heartbeats."""

_UNTIL_IT_WORKS = RetryPolicy(
    initial_interval=timedelta(milliseconds=100), maximum_interval=timedelta(minutes=1)
)
"""An outage is waited for."""

_TRY = workflow.ActivityCancellationType.TRY_CANCEL
_WAIT = workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED

_TASKS = Priority(priority_key=4)
_OWN = Priority(priority_key=1)
"""The calls of a batch come after those of single tasks, and its own activities before all of them: they are
few, and would wait behind hundreds."""


@workflow.defn(name=BATCH_WORKFLOW, sandboxed=False)  # see AiAgentTask
class AiBatchTask:
    """Input: nothing, or the JSON object that `AiBatchRequest` describes. Result: `AiBatchResult`.

    The rows are in the ledger, under the workflow's id. Each is carried out by an `AiAgentTask`, a child
    workflow that outlives this run: the next one follows it by asking Temporal.
    """

    @workflow.init
    def __init__(self, raw: object = None, *rest: object) -> None:
        self._id = workflow.info().workflow_id
        self._window: BatchWindow | None = None
        self._paused: BatchPause | None = None
        self._starting = 0
        self._task = _WorkflowTask()
        self._ending = False
        self._stirred = False
        self._to_follow: dict[int, OpenRow] = {}  # open rows whose end no child event tells
        self._bug: BaseException | None = None
        self._loading: asyncio.Task[RowPage] | None = None
        self._loading_after = -1
        self._recording: asyncio.Task[None] | None = None
        self._following: asyncio.Task[Followed] | None = None
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        with contextlib.suppress(InvalidRequest):  # `run` says so
            if (carried := parse_batch(raw).carried) is not None:
                self._paused = carried.paused
                self._to_follow = {row.position: row for row in carried.open}

    @workflow.query
    def progress(self) -> BatchProgress | None:
        """How far it is; None before it has begun."""
        return None if self._window is None else self._window.progress()

    @workflow.update
    def pause(self, raw: object = None) -> BatchPause | None:
        """Start nothing more, until `resume`; what is under way goes on."""
        return self._set_pause(parse_pause(raw))

    @workflow.update
    def resume(self, raw: object = None) -> BatchPause | None:
        """Go on."""
        return self._set_pause(None)

    @pause.validator
    def _check_pause(self, raw: object = None) -> None:
        accept(parse_pause, raw)

    @resume.validator
    def _check_resume(self, raw: object = None) -> None:
        accept(parse_pause, raw)

    def _set_pause(self, pause: BatchPause | None) -> BatchPause | None:
        self._paused = pause
        if self._window is not None:
            self._window.pause(pause)
        self._stirred = True
        return pause

    @workflow.run
    async def run(self, raw: object = None, *rest: object) -> AiBatchResult:
        """Carry out all rows, or as many as the policy lets it."""
        request = accept(parse_batch, [raw, *rest] if rest else raw)
        try:
            window = self._window = await self._begin(request)
            if problem := request.policy.problem_with(window.rows):
                await to_the_end(self._end(BatchState.FAILED))
                raise task_error(InvalidRequest.__name__, f"policy.successes: {problem}")
            await self._carry_out(window, request)
        except (asyncio.CancelledError, ActivityError) as error:
            if not is_cancelled_exception(error):
                raise
            await to_the_end(self._end(BatchState.CANCELED))
            raise
        failure = _failure(window)
        await to_the_end(self._end(BatchState.COMPLETED if failure is None else BatchState.FAILED))
        if failure is not None:
            raise failure
        return window.result()

    async def _begin(self, request: AiBatchRequest) -> BatchWindow:
        if request.carried is not None:
            counts = request.carried.counts
        else:
            try:
                counts = await self._execute(BEGIN, self._id, BatchCounts)
            except ActivityError as error:
                if not isinstance(error.cause, ApplicationError):
                    raise
                raise task_error(InvalidRequest.__name__, error.cause.message) from None
        window = BatchWindow(request, counts, request.carried)
        window.pause(self._paused)
        return window

    async def _carry_out(self, window: BatchWindow, request: AiBatchRequest) -> None:
        """Until the policy has a verdict."""
        while True:
            self._stirred = False
            if self._bug is not None:
                raise self._bug
            self._take_what_has_come(window)
            if window.verdict is not Verdict.CONTINUE or window.is_missing_rows:
                return
            if _history_is_long():
                # A child that has not begun when this run ends never does. For the rest the next run looks.
                if not self._starting:
                    workflow.continue_as_new(request.model_copy(update={"carried": window.carry()}))
                await workflow.wait_condition(lambda: self._stirred)
                continue
            for row in window.start(self._task.used()):
                self._starting += 1
                self._task.use(row.size)
                self._in_background(self._carry_out_row(window, row))
            if window.needs_rows and self._loading is None:
                self._loading_after = window.cursor
                wanted = LoadRequest(batch_id=self._id, after=window.cursor, limit=window.page_size)
                self._loading = self._in_background(self._execute(LOAD, wanted, RowPage))
            if window.waits_to_be_recorded and self._recording is None:
                self._recording = self._in_background(self._record(window))
            if self._to_follow and self._following is None:
                rows = list(self._to_follow.values())
                self._following = self._in_background(self._look_after(rows))
            await workflow.wait_condition(lambda: self._stirred)

    async def _carry_out_row(self, window: BatchWindow, row: BatchRow) -> None:
        told = window.open[row.position]
        try:
            child = await workflow.start_child_workflow(
                TASK_WORKFLOW,
                row.request,
                id=task_id_of(self._id, row.row_id),
                # What has completed is not done again; what failed when the batch ran before is.
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
                priority=_TASKS,
            )
        except WorkflowAlreadyStartedError:
            self._to_follow[row.position] = window.find(row)
            if self._following is not None:  # it follows too few
                self._following.cancel()
            return
        finally:
            self._starting -= 1
            self._stirred = True
        try:
            outcome = completed_row(told, await child)
        except ChildWorkflowError as error:
            outcome = lost_row(told, error.cause)
        window.end(outcome, workflow.now())
        self._stirred = True

    def _take_what_has_come(self, window: BatchWindow) -> None:
        if self._loading is not None and self._loading.done():
            page = self._loading.result()
            self._loading = None
            window.load(page.rows, after=self._loading_after, is_last=page.is_last)
        if self._recording is not None and self._recording.done():
            self._recording.result()
            self._recording = None
        if self._following is not None and self._following.done():
            found = Followed() if self._following.cancelled() else self._following.result()
            self._following = None
            self._take(window, found)

    def _take(self, window: BatchWindow, found: Followed) -> None:
        for outcome in found.outcomes:
            self._to_follow.pop(outcome.position, None)
            window.end(outcome, workflow.now())
        for position in found.unknown:
            self._to_follow.pop(position, None)
        window.forget(found.unknown)

    async def _record(self, window: BatchWindow) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await workflow.wait_condition(
                lambda: self._ending or window.waits_to_be_recorded >= MOST_UNRECORDED,
                timeout=_RECORD_SECONDS,
                timeout_summary="more outcomes to record",
            )
        await self._write(window)

    async def _write(self, window: BatchWindow) -> None:
        workflow.set_current_details(_details(window.progress()))
        if outcomes := window.to_record():
            # As a local activity: one a second would use up the calls per second of the queue.
            request = RecordRequest(batch_id=self._id, outcomes=outcomes)
            await self._execute_locally(RECORD, request, RECORD_TIMEOUT)
            window.recorded()

    async def _look_after(self, rows: list[OpenRow]) -> Followed:
        """Look whether one of the tasks has ended. After a look that brought nothing comes a pause."""
        try:
            found = await self._follow(FollowRequest(batch_id=self._id, rows=rows))
        except ActivityError as error:
            if not is_cancelled_exception(error):
                raise
            return Followed()  # others are to be followed, too
        if found.outcomes or found.unknown:
            self._pause_seconds = _FIRST_PAUSE_SECONDS
        else:
            pause = self._pause_seconds
            self._pause_seconds = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            await workflow.sleep(pause, summary="look again how the tasks of the run before end")
        return found

    async def _follow(self, request: FollowRequest) -> Followed:
        found: Followed = await self._execute(FOLLOW, request, Followed)
        return found

    async def _cancel(self, rows: list[OpenRow]) -> Followed:
        """Cancel the tasks, and wait for their ends."""
        request = FollowRequest(batch_id=self._id, rows=rows, is_last=True)
        # As a local activity: an activity would wait for a place among the calls that it is to end.
        await self._execute_locally(CANCEL, request, _CANCEL_TIMEOUT)
        return await self._follow(request)

    async def _end(self, state: BatchState) -> None:
        """Cancel what is under way, and record how everything ended."""
        self._ending = True
        await workflow.wait_condition(lambda: not self._starting)
        if self._following is not None:
            self._following.cancel()
        if self._recording is not None:
            await self._recording
        if (window := self._window) is not None:
            if window.open:
                self._take(window, await self._cancel(list(window.open.values())))
            await self._write(window)
        await self._execute(END, EndRequest(batch_id=self._id, state=state))

    async def _execute(self, name: str, argument: object, result_type: type[Any] | None = None) -> Any:
        return await workflow.execute_activity(
            name,
            argument,
            result_type=result_type,
            start_to_close_timeout=_LOAD_TIMEOUT if name == LOAD else _ANY_TIME,
            heartbeat_timeout=None if name == LOAD else _HEARTBEAT_TIMEOUT,
            retry_policy=_UNTIL_IT_WORKS,
            priority=_OWN,
            # What begins the batch must not go on beside what ends it.
            cancellation_type=_WAIT if name == BEGIN else _TRY,
        )

    async def _execute_locally(self, name: str, argument: object, limit: timedelta) -> None:
        await workflow.execute_local_activity(
            name,
            argument,
            start_to_close_timeout=limit,
            retry_policy=_UNTIL_IT_WORKS,
            local_retry_threshold=LOCAL_RETRY_THRESHOLD,
        )

    def _in_background(self, doing: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(doing)
        task.add_done_callback(self._stir)
        return task

    def _stir(self, done: asyncio.Task[Any]) -> None:
        if not done.cancelled():
            self._bug = self._bug or done.exception()
        self._stirred = True


class _WorkflowTask:
    """Counts the bytes of the requests that start in the present workflow task."""

    def __init__(self) -> None:
        self._history_length = 0
        self._bytes = 0

    def used(self) -> int:
        """So many up to now."""
        if (length := workflow.info().get_current_history_length()) != self._history_length:
            self._history_length, self._bytes = length, 0
        return self._bytes

    def use(self, size: int) -> None:
        """So many more."""
        self._bytes = self.used() + size


def _history_is_long() -> bool:
    info = workflow.info()
    return info.is_continue_as_new_suggested() or info.get_current_history_length() >= _LONGEST_HISTORY


def _failure(window: BatchWindow) -> ApplicationError | None:
    """The error that the batch ends with, now that it is decided; None if it completes."""
    progress = window.progress()
    if window.verdict is Verdict.COMPLETE:
        return None
    if window.verdict is Verdict.CONTINUE:
        missing = progress.rows - progress.ended
        return task_error("TaskFailed", f"{missing:,} rows of the batch are no longer in the ledger")
    lost = progress.failed + progress.canceled
    said = f"the policy ended the batch: {lost:,} of {progress.rows:,} rows failed"
    last = f"; the last one: {window.last_failure}" if window.last_failure is not None else ""
    return task_error("TaskFailed", said + last)


def _details(progress: BatchProgress) -> str:
    """A table for the Web UI."""
    figures = {
        "rows": progress.rows,
        "completed": progress.completed,
        "failed": progress.failed,
        "canceled": progress.canceled,
        "under way": progress.running,
    }
    lines = ["| | |", "| --- | ---: |", *(f"| {name} | {figure:,} |" for name, figure in figures.items())]
    if progress.paused is not None:
        lines.append(f"| paused by | {progress.paused.actor} |")
    return "\n".join(lines)
