"""Writes a task's decisions to the ledger, from within its workflow, one write at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError, ApplicationError

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import BookkeepingRefused
from tasquencer.core.policy import Verdict
from tasquencer.core.task_state import TASK_ACTOR, TaskState
from tasquencer.core.wording import record_label
from tasquencer.core.work_item import WorkItemState
from tasquencer.ledger.contract import Settlement
from tasquencer.temporal.activations import (
    activation_number,
    behaves,
    is_new_run_suggested,
    note_suggestion,
    workflow_task_began,
)
from tasquencer.temporal.behaviour import Behaviour
from tasquencer.temporal.bookkeeping import (
    LOCAL_RETRY_THRESHOLD,
    RECORD,
    RECORD_RETRY,
    RECORD_TIMEOUT,
    Look,
    already_ended,
    refused_work_item,
)
from tasquencer.temporal.run_books import others_open, show_work_items
from tasquencer.temporal.wire import is_marked, received, run_of, sent

__all__ = ["CANCELED", "Writing"]

CANCELED = "the task was canceled"
"""The reason for the end of a canceled task's open work items."""

_ENDED = "the task ended without it"
_RESULT: Any = bool | Look
"""The type of the result of a write."""

_HANDOVER_STEPS = 4
"""Turns of the loop from the end of one work item to the start of the one that gets its place."""


class Writing:
    """Takes a `TaskState`'s entries and writes them.

    Args:
        state: The task's state, which decides.
        hands_over: True if the end of one work item lets others begin, to write both together.
        news: Awaited after a slow write, because the server may have new events for the task.
    """

    def __init__(self, state: TaskState, *, hands_over: bool, news: Callable[[], Awaitable[None]]) -> None:
        self._state = state
        self._hands_over = hands_over
        self._news = news
        self._batch: asyncio.Task[None] | None = None
        self._must_settle = False
        self._has_settled = False
        self._reason = _ENDED
        self._nothing_left_at: int | None = None
        self._started_by: dict[str, str] = {}

    def started_by(self, work_item_id: str) -> str:
        """Return the run that has recorded the start of the work item: this one, or one before a reset."""
        return self._started_by.get(work_item_id, workflow.info().run_id)

    @property
    def is_done(self) -> bool:
        """Return whether all decisions of the state are written."""
        return self._batch is None and not self._state.has_entries

    def settle(self) -> None:
        """Make the last write settle work items that are in the ledger but not in the state."""
        self._must_settle = self._state.has_entries or not (self._has_settled or self._has_just_looked())

    async def settle_run(self) -> None:
        """Settle what lost workflow tasks of this run have left, because the task continues in a new run."""
        self.settle()
        self._reason = "the task continued as new without it"
        try:
            await self.flush()
        finally:
            self._reason, self._has_settled = _ENDED, False
        self._nothing_left_at = activation_number()

    def _has_just_looked(self) -> bool:
        """Return whether the last write has found nothing to settle, and the run has had no news since.

        Without news it has decided nothing since that a lost workflow task could have written.
        """
        return self._nothing_left_at is not None and self._nothing_left_at == activation_number()

    async def flush(self) -> None:
        """Return when every transition so far is in the ledger.

        A cancellation during the write is raised afterwards, and the write itself continues. New entries of
        other lineages during a write go together into the next one.
        """
        canceled: asyncio.CancelledError | None = None
        while not self.is_done or self._must_settle:
            if self._batch is None:
                self._batch = asyncio.create_task(self._write())
            batch = self._batch
            try:
                await asyncio.shield(batch)
            except asyncio.CancelledError as error:
                if batch.cancelled():
                    raise
                canceled = error
        if canceled is not None:
            raise canceled

    async def _write(self) -> None:
        try:
            if self._hands_over:
                for _ in range(_HANDOVER_STEPS):
                    await asyncio.sleep(0)
            entries = self._state.take_entries()
            settlement = self._settlement() or self._look(entries)
            slow = await self._record(entries, settlement)
            if slow and (settlement is None or settlement.only_looks):
                await self._news()
        finally:
            self._batch = None

    async def _record(self, entries: list[LedgerEntry], settlement: Settlement | None) -> bool:
        """Write the entries. Return whether that was slow."""
        entries = _as_of(workflow_task_began(), entries)
        told_again: set[str] = set()
        while True:
            show_work_items()
            try:
                slow = await workflow.execute_local_activity(
                    RECORD,
                    args=[sent(entries, mark=is_new_run_suggested()), sent(settlement)],
                    result_type=RawValue,
                    summary=record_label(entries, self._state.max_retries),
                    start_to_close_timeout=RECORD_TIMEOUT,
                    retry_policy=RECORD_RETRY,
                    local_retry_threshold=LOCAL_RETRY_THRESHOLD,
                )
            except (ActivityError, ApplicationError) as error:
                cause = error.cause or error
                known, refused = already_ended(cause), refused_work_item(cause)
                if known is not None:
                    entries = self._state.adopt(known, entries)
                elif refused is not None and refused not in told_again and self._state.log(refused):
                    # The ledger contradicts these entries, so send all of them again.
                    told_again.add(refused)
                    others = [entry for entry in entries if entry.work_item.id != refused]
                    entries = _as_of(workflow_task_began(), [*self._state.log(refused), *others])
                else:
                    raise BookkeepingRefused(str(cause)) from error
            else:
                self._note_run(run_of(slow), entries)
                note_suggestion(suggested=is_marked(slow))
                return self._slow(received(slow, _RESULT))

    def _slow(self, result: bool | Look | None) -> bool:
        """Return whether the write was slow, and note what its look has found."""
        if not isinstance(result, Look):
            return bool(result)  # None in histories of earlier releases
        if not result.left:
            self._nothing_left_at = activation_number()
        return result.slow

    def _note_run(self, run: str | None, entries: list[LedgerEntry]) -> None:
        if run is None or run == workflow.info().run_id:
            return
        for entry in entries:
            if entry.transition.next_state is WorkItemState.STARTED:
                self._started_by[entry.work_item.id] = run

    def _settlement(self) -> Settlement | None:
        """Return the settlement for the next write. There is none unless the task ends with it."""
        self._has_settled = self._must_settle or self._state.verdict is Verdict.FAIL
        self._must_settle = False
        return self._settlement_of_now() if self._has_settled else None

    def _look(self, entries: list[LedgerEntry]) -> Settlement | None:
        """Return what to look for with the next write, if the task may end with it.

        If nothing is found and the task ends right after it, the task needs no settlement of its own.
        """
        ends = any(entry.transition.next_state.is_terminal for entry in entries)
        if not ends or self._state.open_work_items() or others_open(self._state):
            return None
        if not behaves(Behaviour.RESULTS_ONE_BY_ONE):
            return None  # news might come together with the look
        return self._settlement_of_now().model_copy(update={"only_looks": True})

    def _settlement_of_now(self) -> Settlement:
        return Settlement(
            task_id=self._state.task_id,
            run_id=workflow.info().run_id,
            spared=others_open(self._state) | {item.id for item in self._state.open_work_items()},
            at=workflow.now(),
            actor=TASK_ACTOR,
            reason=CANCELED if workflow.cancellation_reason() is not None else self._reason,
        )


def _as_of(began: datetime, entries: list[LedgerEntry]) -> list[LedgerEntry]:
    return [entry.model_copy(update={"as_of": began}) for entry in entries]
