"""Drives a task's decisions on Temporal: ids, times, records, durable sleeps, cancellation.

`TaskState` decides, the driver carries out. Its rule: every transition is in the ledger before the
workflow goes on, that is before a durable sleep begins, before an activity is scheduled, before the
task ends.

A worker may die between a write and the end of its workflow task: then the ledger holds decisions that no
history knows. The next worker decides again, from the same history and what came since:

- what it decides alike, the ledger skips;
- what came since must not come between: an action that ends a work item waits until it is in the history and
  what happened before it is decided (`news`), and an outcome counts before a cancellation that came with it;
- an outcome that came together with a verdict against the whole task is canceled where the ledger holds it
  already: the task takes that end over (`AlreadyEnded`);
- what it decides no more (a retry that a cancellation or a deadline now forbids) is settled when the task
  ends without completing (`Ledger.settle`).
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, TypeVar

from pydantic import JsonValue
from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from tasquencer.entries import LedgerEntry
from tasquencer.errors import BookkeepingRefused, TaskMisused
from tasquencer.failure import Failure
from tasquencer.ledger import Settlement
from tasquencer.policy import Verdict
from tasquencer.task_state import TASK_ACTOR, CarriedTask, TaskState
from tasquencer.temporal.bookkeeping import (
    LOCAL_RETRY_THRESHOLD,
    RECORD,
    RECORD_RETRY,
    RECORD_TIMEOUT,
    already_ended,
)
from tasquencer.temporal.scope import TaskScope
from tasquencer.wording import delay_label, markdown_table, record_label
from tasquencer.work_item import WorkItem, WorkItemState

__all__ = ["TaskDriver"]

T = TypeVar("T")

_CANCELED = "the task was canceled"

_OUTCOME_STEPS = 10
"""Turns of the loop that the outcome of an activity needs at most to reach the one who waits for it."""

_NEWS = timedelta(milliseconds=1)
"""A timer so short that it only ends the workflow task, and brings the next one. The server may fire it a
second late; there is no quicker way that does not depend on a free place for an activity."""

_HANDOVER_STEPS = 4
"""Turns of the loop from the end of one work item to the start of the one that takes its place."""


class TaskDriver:
    """Carries out what a `TaskState` decides.

    Args:
        state: Decides.
        concurrency: How many work items may be started at once; None: any number.
    """

    def __init__(self, state: TaskState, concurrency: int | None = None) -> None:
        self.state = state
        self._concurrency = concurrency
        self._running: set[str] = set()
        self._queued: dict[str, asyncio.Future[None]] = {}
        self._writing: asyncio.Task[None] | None = None
        self._must_settle = False
        self._has_settled = False
        self._sleeping: dict[str, asyncio.Task[None]] = {}
        self._calls: dict[str, asyncio.Task[Any]] = {}
        self._hurried: dict[str, tuple[str, str | None]] = {}
        self._arrived: set[str] = set()
        self._left_behind: set[str] = set()
        self._successors: dict[str, str] = {}
        workflow.register_random_seed_callback(self._on_reset)

    def _on_reset(self, seed: int) -> None:
        # Temporal gives a run a new seed when a reset has made it: what was open then has a past of its own,
        # in the run that was abandoned, and under its id a request may have left.
        self._left_behind.update(item.id for item in self.state.open_work_items())

    def is_left_behind(self, item: WorkItem) -> bool:
        """Whether the work item was open when a reset made this run."""
        return item.id in self._left_behind

    def successor(self, work_item_id: str) -> str:
        """The work item that a reset has put in this one's place; else itself."""
        return self._successors.get(work_item_id, work_item_id)

    async def replace(self, item: WorkItem) -> None:
        """Go on with a new work item in the place of one that a reset has left behind."""
        self._left_behind.discard(item.id)
        self._running.discard(item.id)
        fresh = self.state.replace(item.id, now=workflow.now(), reason="after a reset of the task")
        self._successors[item.id] = fresh.id
        if item.id in self._hurried:
            self._hurried[fresh.id] = self._hurried.pop(item.id)
        await self._settle(item.lineage)

    def hurry(self, work_item_id: str, actor: str, reason: str | None) -> None:
        """End the work item's wait, now or as soon as it begins."""
        self._hurried[work_item_id] = (actor, reason)
        if work_item_id in self._sleeping:
            self._sleeping[work_item_id].cancel()

    def is_ready(self, work_item_id: str) -> bool:
        """Whether the work item waits for nothing but its turn."""
        return work_item_id in self._queued

    def is_hurried(self, work_item_id: str) -> bool:
        """Whether the work item's wait is being ended."""
        return work_item_id in self._hurried

    async def outcome(self, item: WorkItem) -> WorkItem:
        """Wait until somebody outside ends the work item, and that is recorded."""
        await workflow.wait_condition(
            lambda: self.state.work_item(item.id).state.is_terminal or self.is_left_behind(item)
        )
        await self.flush()
        return self.state.work_item(item.id)

    async def call(self, item: WorkItem, call: asyncio.Task[T]) -> T:
        """Wait for the call that the work item makes; it is stopped if the work item ends otherwise."""
        self._calls[item.id] = call
        call.add_done_callback(lambda _: self._arrived.add(item.id))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            if workflow.cancellation_reason() is None or call.cancelled():
                raise
            # Outcome and cancellation may have come in one workflow task. The outcome is on its way
            # through a few callbacks then, and counts: the call was made, and billed.
            await self.turns()
            if not call.done():
                call.cancel()
            return await call
        finally:
            del self._calls[item.id]

    def is_calling(self, activity_id: str | None) -> bool:
        """Whether an activity of this id is the call of a started work item."""
        item = self.state.find(activity_id) if activity_id is not None else None
        return item is not None and item.state is WorkItemState.STARTED

    def max_retries(self, item: WorkItem) -> int:
        """How many retries the work item's lineage has."""
        return self.state.recipe_of(item).max_retries

    async def wait_for(self, item: WorkItem) -> None:
        """Sleep the work item's delay, or go on in a new run that will."""
        if (
            workflow.info().is_continue_as_new_suggested()
            and self._may_continue_as_new()
            and workflow.all_handlers_finished()
        ):
            TaskScope.current().continue_as_new()
        is_replacement = item.id in self._successors.values()
        if item.run_id == workflow.info().run_id and not is_replacement:
            # Just recorded: the whole delay from here.
            delay = timedelta(seconds=item.delay_seconds)
        else:
            delay = item.not_before - workflow.now()
        if delay <= timedelta(0) or item.id in self._hurried:
            return
        before = self.state.before(item)
        kind = before.failure.kind if before is not None and before.failure is not None else None
        # A task of its own, so that an operator can end the sleep without canceling the lineage.
        sleeping = asyncio.create_task(workflow.sleep(delay, summary=delay_label(item, kind)))
        sleeping.add_done_callback(lambda _: self._arrived.add(item.id))
        self._sleeping[item.id] = sleeping
        try:
            await workflow.wait([sleeping])
        except asyncio.CancelledError:
            sleeping.cancel()
            self.cancel(item.lineage)
            raise
        finally:
            del self._sleeping[item.id]

    async def turn(self, item: WorkItem) -> None:
        """Return when fewer work items than allowed are started, first come, first served.

        Where a new run is due, nobody gets a turn any more, and the last one to leave opens it.
        """
        if self._concurrency is None:
            return
        try:
            if self._queued or self._is_full():
                mine = self._queued[item.id] = asyncio.get_running_loop().create_future()
                self._take_turns()  # where a new run is due there may be nobody left to do so
                await mine
            else:
                self._running.add(item.id)
            if item.id not in self._running and not self.state.work_item(item.id).state.is_terminal:
                await self.flush()
                await workflow.wait_condition(
                    lambda: self._may_continue_as_new() and workflow.all_handlers_finished()
                )
                TaskScope.current().continue_as_new()
        except asyncio.CancelledError:
            self._queued.pop(item.id, None)
            self.leave(item)
            self.cancel(item.lineage)
            raise

    def _is_full(self) -> bool:
        return len(self._running) >= (self._concurrency or 0) or (
            workflow.info().is_continue_as_new_suggested()
        )

    def leave(self, item: WorkItem) -> None:
        """Let the next one have its turn: this work item has ended."""
        self._running.discard(item.id)
        self._take_turns()

    def _take_turns(self) -> None:
        due = bool(self._queued) and workflow.info().is_continue_as_new_suggested()
        if due and self._running:
            return
        while self._queued and (due or len(self._running) < (self._concurrency or 0)):
            work_item_id = next(iter(self._queued))
            turn = self._queued.pop(work_item_id)
            if turn.done():  # canceled, and about to say so
                continue
            if not due:
                self._running.add(work_item_id)
            turn.set_result(None)

    def _stop_what_ended(self) -> None:
        """Of the work items that have just ended, stop the wait or the call, whoever ended them."""
        for work_item_id in self.state.just_ended():
            doing = self._sleeping.get(work_item_id) or self._calls.get(work_item_id)
            if doing is not None:
                doing.cancel()
            turn = self._queued.pop(work_item_id, None)
            if turn is not None and not turn.done():
                turn.set_result(None)

    async def expire(self, item: WorkItem) -> bool:
        """Give the work item up if its deadline has passed, and record that; whether it has."""
        if not self.state.expire(item.id, now=workflow.now()):
            return False
        self.leave(item)
        await self._settle(item.lineage)
        return True

    async def start(self, item: WorkItem) -> None:
        """Record the work item as started."""
        self._arrived.discard(item.id)
        if item.id in self._hurried:
            actor, reason = self._hurried.pop(item.id)
            self.state.start(item.id, now=workflow.now(), actor=actor, reason=reason, hurried=True)
        else:
            self.state.start(item.id, now=workflow.now())
        await self._settle(item.lineage)

    async def complete(self, item: WorkItem, result: JsonValue) -> None:
        """Record the work item as completed, and what follows from it."""
        self.state.complete(item.id, result, now=workflow.now())
        await self.ended(item)

    async def fail(self, item: WorkItem, failure: Failure, worker: str | None) -> None:
        """Record the work item as failed, and what follows from it: a retry, or the end."""
        may_retry = workflow.cancellation_reason() is None
        self.state.fail(item.id, failure, now=workflow.now(), worker=worker, may_retry=may_retry)
        await self.ended(item)

    async def ended(self, item: WorkItem) -> None:
        """Return once the end of the work item is recorded, whoever ended it; its place is free at once.

        The end of a call and the cancellation of the task can meet. The call keeps its outcome (it was
        made, and billed), nothing new begins, and the task ends canceled.
        """
        canceled = workflow.cancellation_reason() is not None
        if not canceled:
            self.leave(item)
        await self._settle(item.lineage)
        if canceled:
            raise asyncio.CancelledError(_CANCELED)

    def cancel(self, lineage: str) -> None:
        """Cancel what is open in the lineage: its task was. `close` records it, for all lineages at once."""
        self.state.close(now=workflow.now(), reason=_CANCELED, lineage=lineage)

    async def give_up(self, item: WorkItem, reason: str) -> None:
        """Record the work item as canceled though its task was not; the policy decides."""
        self.state.cancel(item.id, now=workflow.now(), reason=reason)
        self.leave(item)
        await self._settle(item.lineage)

    async def close(self, reason: str) -> None:
        """Record everything that is open as canceled, and settle what is forgotten: the task is ending.

        A task does not end before its requests do, and what they come to counts: of several lineages only the
        first one canceled may have said so yet.
        """
        if self._calls:
            await self.turns()
            for call in self._calls.values():
                call.cancel()
            await workflow.wait_condition(lambda: not self._calls)
            await self.turns()
        self.state.close(now=workflow.now(), reason=reason)
        forgetful = workflow.cancellation_reason() is not None or self.state.left_out_retries
        self._must_settle = forgetful and (self.state.has_entries or not self._has_settled)
        await self.flush()

    async def news(self) -> None:
        """Return in the next workflow task, in its turn among what came with it."""
        await workflow.sleep(_NEWS, summary="look for news")
        # One turn of the loop later the ends of calls and waits are told, in the order of the history.
        await asyncio.sleep(0)

    def has_arrived(self, work_item_id: str) -> bool:
        """Whether its call, or its wait, has ended in this workflow task, and nothing has followed yet."""
        return work_item_id in self._arrived

    async def turns(self) -> None:
        """Return once the outcomes that came with this workflow task have had their effect."""
        for _ in range(_OUTCOME_STEPS):
            await asyncio.sleep(0)

    def carry(self) -> CarriedTask:
        """The state for the next run."""
        if not self._may_continue_as_new():
            raise TaskMisused("a task cannot continue as new while one of its work items is started")
        marks = {"hurried": dict(self._hurried), "left_behind": set(self._left_behind)}
        return self.state.carry().model_copy(update=marks)

    def resume(self, carried: CarriedTask) -> None:
        """Take up what the run before carried along."""
        self.state.resume(carried)
        self._hurried.update(carried.hurried)
        self._left_behind.update(carried.left_behind)

    async def flush(self) -> None:
        """Return once every transition so far is in the ledger.

        A cancellation that arrives meanwhile is raised afterwards; the write itself goes on. What
        other lineages want to record while a batch is being written goes together into the next.
        """
        self._stop_what_ended()
        self._take_turns()
        canceled: asyncio.CancelledError | None = None
        while self._writing is not None or self.state.has_entries or self._must_settle:
            if self._writing is None:
                self._writing = asyncio.create_task(self._write())
            writing = self._writing
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError as error:
                if writing.cancelled():
                    raise
                canceled = error
        if canceled is not None:
            raise canceled

    async def _settle(self, lineage: str) -> None:
        try:
            await self.flush()
        except asyncio.CancelledError:
            self.cancel(lineage)
            raise

    async def _write(self) -> None:
        try:
            if self._concurrency is not None:
                # What the end of one work item lets others begin goes into the same batch.
                for _ in range(_HANDOVER_STEPS):
                    await asyncio.sleep(0)
            entries = self.state.take_entries()
            settlement = self._settlement()
            slow = await self._record(entries, settlement)
            if slow and settlement is None:
                await self.news()
        finally:
            self._writing = None

    async def _record(self, entries: list[LedgerEntry], settlement: Settlement | None) -> bool:
        """Write the entries; whether that was slow."""
        while True:
            workflow.set_current_details(markdown_table(self.state.work_items(), self.max_retries))
            try:
                slow: bool = await workflow.execute_local_activity(
                    RECORD,
                    args=[entries, settlement],
                    result_type=bool,
                    summary=record_label(entries, self.max_retries),
                    start_to_close_timeout=RECORD_TIMEOUT,
                    retry_policy=RECORD_RETRY,
                    local_retry_threshold=LOCAL_RETRY_THRESHOLD,
                )
            except (ActivityError, ApplicationError) as error:
                known = already_ended(error.cause or error)
                if known is None:
                    raise BookkeepingRefused(str(error.cause or error)) from error
                entries = self.state.adopt(known, entries)
            else:
                return slow

    def _settlement(self) -> Settlement | None:
        """What the write that is about to begin settles besides: nothing, unless the task ends with it."""
        self._has_settled = self._must_settle or self.state.verdict is Verdict.FAIL
        self._must_settle = False
        if not self._has_settled:
            return None
        return Settlement(
            task_id=self.state.task_id,
            run_id=workflow.info().run_id,
            at=workflow.now(),
            actor=TASK_ACTOR,
            reason=_CANCELED if workflow.cancellation_reason() is not None else "the task ended without it",
        )

    def _may_continue_as_new(self) -> bool:
        # What is not yet in the ledger would be lost: the next run only records what it decides itself.
        return (
            self._writing is None
            and not self.state.has_entries
            and all(item.state is WorkItemState.INITIALIZED for item in self.state.open_work_items())
        )
