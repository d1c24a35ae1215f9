"""Drives a task's decisions on Temporal: ids, times, records, durable sleeps, cancellation.

`TaskState` decides, the driver carries out. Its rule: every transition is in the ledger before the
workflow continues, that is before a durable sleep begins, before an activity is scheduled, before the
task ends.

A worker may die between a write and the end of its workflow task. Then the ledger holds decisions that no
history knows, and the next worker decides again:

- The ledger skips what it decides alike, and lets a later decision take the place of an earlier one
  (`tasquencer.ledger.rules`).
- An action that ends a work item waits until it is in the history (`news`), and an outcome counts before a
  cancellation that came with it.
- When the task ends, `Ledger.settle` cancels what only the lost workflow task had begun.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from pydantic import JsonValue
from temporalio import workflow

from tasquencer.core.carried import CarriedTask
from tasquencer.core.errors import TaskMisused
from tasquencer.core.failure import Failure
from tasquencer.core.policy import Verdict
from tasquencer.core.task_state import TaskState
from tasquencer.core.wording import delay_label
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.temporal.activations import Behaviour, behaves, is_new_run_due
from tasquencer.temporal.calls import Calls
from tasquencer.temporal.places import Places
from tasquencer.temporal.writing import CANCELED, Writing

__all__ = ["STOPPED", "TaskDriver", "cancels_seen"]

STOPPED = "the code around it was canceled"
"""Why a work item ends whose code was canceled though the task was not."""

T = TypeVar("T")

_NEWS = timedelta(milliseconds=1)
"""A timer so short that it only ends the workflow task, and brings the next one. The server may fire it a
second late; there is no quicker way that does not depend on a free place for an activity."""


def cancels_seen() -> int:
    """How often the code that runs now has been canceled and has seen it, as a `CancelledError`."""
    running = asyncio.current_task()
    if running is None:
        return 0
    return running.cancelling() - bool(getattr(running, "_must_cancel", False))


class TaskDriver:
    """Carries out what a `TaskState` decides.

    Args:
        state: Decides.
        continue_as_new: Ends this run and begins the next one, which takes the task along.
        concurrency: How many work items may be started at once; None: any number.
    """

    def __init__(
        self, state: TaskState, continue_as_new: Callable[[], NoReturn], concurrency: int | None = None
    ) -> None:
        self.state = state
        self._continue_as_new = continue_as_new
        self._places = Places(concurrency)
        self._writing = Writing(state, hands_over=self._places.are_limited, news=self.news)
        self._sleeping: dict[str, asyncio.Task[None]] = {}
        self._waking: set[str] = set()
        self._hurried: dict[str, tuple[str, str | None]] = {}
        self._successors: dict[str, str] = {}
        self._compensating: set[str] = set()
        self._drained: set[str] = set()
        self.is_second_edition = behaves(Behaviour.SECOND_EDITION)
        for behaviour in (Behaviour.NEW_RUN_ON_NEWS, Behaviour.RESULTS_ONE_BY_ONE):
            behaves(behaviour)  # decided here, so that the first workflow task has the flag
        self.calls = Calls(state, stops_for_its_code=self.is_second_edition)
        self.is_ending = False
        self.actions_under_way = 0
        workflow.register_random_seed_callback(self._on_reset)

    def _on_reset(self, seed: int) -> None:
        # Temporal gives a run a new seed when a reset has made it: what was open then has a past of its own,
        # in the run that was abandoned, and under its id a request may have left.
        self.state.left_behind.update(item.id for item in self.state.open_work_items())

    def is_left_behind(self, item: WorkItem) -> bool:
        """Whether the work item was open when a reset made this run."""
        return item.id in self.state.left_behind

    def successor(self, work_item_id: str) -> str:
        """The work item that a reset has put in this one's place; else itself."""
        return self._successors.get(work_item_id, work_item_id)

    async def replace(self, item: WorkItem) -> WorkItem:
        """Record a new work item in the place of one that a reset has left behind, and return it."""
        fresh = self._replaced(item)
        if (sleeping := self._sleeping.get(item.id)) is not None:
            sleeping.cancel()
        await self._record(fresh)
        return fresh

    def _replaced(self, item: WorkItem) -> WorkItem:
        self._places.forget(item.id)
        fresh = self.state.replace(item.id, now=workflow.now(), reason="after a reset of the task")
        self._successors[item.id] = fresh.id
        if item.id in self._hurried:
            self._hurried[fresh.id] = self._hurried.pop(item.id)
        return fresh

    def hurry(self, work_item_id: str, actor: str, reason: str | None) -> None:
        """End the work item's wait, now or as soon as it begins."""
        self._hurried[work_item_id] = (actor, reason)
        if work_item_id in self._sleeping:
            self._sleeping[work_item_id].cancel()

    def is_ready(self, work_item_id: str) -> bool:
        """Return whether the work item waits for nothing but a place, or for the next run."""
        return self._places.is_waiting(work_item_id) or work_item_id in self._drained

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

    def is_calling(self, activity_id: str | None) -> bool:
        """Whether an activity of this id is the call of a started work item."""
        item = self.state.find(activity_id) if activity_id is not None else None
        return item is not None and item.state is WorkItemState.STARTED

    def started_by(self, work_item_id: str) -> str:
        """Return the run that has recorded the start of the work item: this one, or one before a reset."""
        return self._writing.started_by(work_item_id)

    async def continue_if_due(self) -> None:
        """Go on in a new run if one is due and nothing is under way."""
        if is_new_run_due() and self._may_continue_as_new():
            await self._go_on_in_a_new_run()

    async def wait_for(self, item: WorkItem) -> None:
        """Sleep the work item's delay, or go on in a new run that will."""
        await self.continue_if_due()
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
        sleeping.add_done_callback(lambda _: self.calls.arrive(item))
        self._sleeping[item.id] = sleeping
        try:
            await workflow.wait([sleeping])
        except asyncio.CancelledError:
            await self._stop_sleeping(item.id)
            await self.stopped(item)
            raise
        finally:
            del self._sleeping[item.id]

    async def _stop_sleeping(self, work_item_id: str) -> None:
        """Cancel the timer of a work item; those of several in the order in which they were started."""
        self._waking.add(work_item_id)
        if self.is_second_edition:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        for known, sleeping in self._sleeping.items():
            if known in self._waking:
                sleeping.cancel()
        self._waking.clear()

    async def take_place(self, item: WorkItem) -> None:
        """Return when fewer work items than allowed are started, or go on in a new run if one is due."""
        try:
            has_place = await self._places.take(item.id)
            if not has_place and not self.state.work_item(item.id).state.is_terminal:
                self._drained.add(item.id)
                await self.flush()
                await workflow.wait_condition(self._may_continue_as_new)
                await self._go_on_in_a_new_run()
        except asyncio.CancelledError:
            await self.stopped(item)
            raise

    async def _go_on_in_a_new_run(self) -> NoReturn:
        """End this run: the next one takes the task up where it is.

        The run ends here and now, whatever waits for this lineage: an exception would have to find its way
        through a `TaskGroup` or a `gather` of the user's.
        """
        try:
            self._continue_as_new()
        except workflow.ContinueAsNewError as error:
            if not self.is_second_edition:
                raise
            self.is_ending = True
            error._apply_command()  # type: ignore[attr-defined] # as the SDK does when the error reaches it
        await self.nothing_more()

    async def nothing_more(self) -> NoReturn:
        """Wait until the run is gone: for code that the end of the run has left behind."""
        # A plain future would not notice that the instance leaves the cache, if the code swallows the cancel.
        await workflow.wait_condition(lambda: False)
        raise AssertionError("the run has ended")

    def _stop_what_ended(self) -> None:
        """Of the work items that have just ended, stop the wait or the call, whoever ended them."""
        for work_item_id in self.state.just_ended():
            if work_item_id in self._sleeping:
                self._sleeping[work_item_id].cancel()
            self.calls.stop(work_item_id)
            self._places.drop(work_item_id)

    async def expire(self, item: WorkItem) -> bool:
        """Give the work item up if its deadline has passed, and record that; whether it has."""
        if not self.state.expire(item.id, now=workflow.now()):
            return False
        self._places.leave(item.id)
        await self._record(item)
        return True

    def replaces_at_the_start(self, item: WorkItem) -> bool:
        """Return whether the work item was left behind after the loop had handed it out."""
        return self.is_second_edition and self.is_left_behind(item) and self.still_waits(item)

    def still_waits(self, item: WorkItem) -> bool:
        """Return whether the work item is still to be started."""
        present = self.state.find(item.id)
        return present is not None and present.state is WorkItemState.INITIALIZED

    def leave_place(self, item: WorkItem) -> None:
        """Give the place of a work item away that is not started after all."""
        self._places.leave(item.id)

    def begins(self, lineage: str) -> None:
        """Note that a lineage begins. One that begins after its code has seen a cancel compensates for it."""
        if self.is_second_edition and workflow.cancellation_reason() is not None and cancels_seen():
            self._compensating.add(lineage)

    def is_being_canceled(self, lineage: str) -> bool:
        """Return whether the task was canceled while the lineage was under way."""
        return workflow.cancellation_reason() is not None and lineage not in self._compensating

    async def start(self, item: WorkItem) -> None:
        """Record the work item as started."""
        self.calls.started(item.id)
        if item.id in self._hurried:
            actor, reason = self._hurried.pop(item.id)
            self.state.start(item.id, now=workflow.now(), actor=actor, reason=reason, hurried=True)
        else:
            self.state.start(item.id, now=workflow.now())
        await self._record(item)

    async def complete(self, item: WorkItem, result: JsonValue) -> None:
        """Record the work item as completed, and what follows from it."""
        self.state.complete(item.id, result, now=workflow.now())
        await self.ended(item)

    async def fail(self, item: WorkItem, failure: Failure, *, may_retry: bool, **facts: Any) -> None:
        """Record the work item as failed, and what follows from it: a retry, or the end.

        Facts are the `worker`, `actor` and `reason` that `TaskState.fail` takes.
        """
        may_retry = may_retry and not self.is_ending and not self.is_being_canceled(item.lineage)
        self.state.fail(item.id, failure, now=workflow.now(), may_retry=may_retry, **facts)
        await self.ended(item)

    async def ended(self, item: WorkItem) -> None:
        """Return once the end of the work item is recorded, and its place is free.

        The end of a call and the cancellation of the task can meet. The call keeps its outcome (it was
        made, and billed), nothing new begins, and the task ends canceled.
        """
        canceled = self.is_being_canceled(item.lineage)
        if not canceled:
            self._places.leave(item.id)
        await self._record(item)
        if canceled:
            raise asyncio.CancelledError(CANCELED)

    async def stopped(self, item: WorkItem) -> None:
        """Record that the code which carries the work item out was canceled.

        If the task was, `close` records that for all lineages together. If only this code was, by a timeout
        around it or a `TaskGroup`, the policy decides.
        """
        if self.is_ending:
            return  # `close` records it
        if self.is_being_canceled(item.lineage) or not self.is_second_edition:
            self._places.forget(item.id)
            self.cancel(item.lineage)
            return
        present = self.state.find(item.id)
        if present is not None and not present.state.is_terminal:
            self.state.cancel(item.id, now=workflow.now(), reason=STOPPED)
        self._places.leave(item.id)
        with contextlib.suppress(asyncio.CancelledError):
            await self.flush()

    def cancel(self, lineage: str) -> None:
        """Cancel what is open in the lineage: its task was. `close` records it, for all lineages together."""
        self.state.close(now=workflow.now(), reason=CANCELED, lineage=lineage)

    async def give_up(self, item: WorkItem, reason: str) -> None:
        """Record the work item as canceled though its task was not; the policy decides."""
        self.state.cancel(item.id, now=workflow.now(), reason=reason)
        self._places.leave(item.id)
        await self._record(item)

    async def close(self, reason: str) -> None:
        """Record everything that is open as canceled, and settle what is forgotten: the task is ending.

        A task does not end before its requests do, and what they come to counts: of several lineages only the
        first one canceled may have said so yet.
        """
        self.is_ending = self.is_second_edition
        await self.calls.stop_all()
        self.state.close(now=workflow.now(), reason=reason)
        forgot_some = workflow.cancellation_reason() is not None or self.state.left_out_retries
        if self.is_second_edition or forgot_some:
            self._writing.settle()
        await self.flush()

    async def news(self) -> None:
        """Return in the next workflow task, in its turn among what came with it."""
        await workflow.sleep(_NEWS, summary="look for news")
        # One turn of the loop later the ends of calls and waits are told, in the order of the history.
        await asyncio.sleep(0)

    async def catch_up_with_timers(self) -> None:
        """As `catch_up`, and once the waits that are over have had their effect, too.

        Of the timers that fired with this workflow task the SDK tells after what came from outside: whether
        one has shows in the next. Its start may be in the ledger already, by a worker that has died since.
        """
        await self.calls.catch_up()
        now = workflow.now()
        if any(self.state.work_item(known).not_before <= now for known in self._sleeping):
            await self.news()
            await self.calls.catch_up()

    def carry(self) -> CarriedTask:
        """The state for the next run."""
        if not self._may_continue_as_new():
            raise TaskMisused("a task cannot continue as new while one of its work items is started")
        marks = {"hurried": dict(self._hurried), "left_behind": set(self.state.left_behind)}
        return self.state.carry().model_copy(update=marks)

    def resume(self, carried: CarriedTask) -> None:
        """Take up what the run before carried along."""
        self.state.resume(carried)
        self._hurried.update(carried.hurried)
        self.state.left_behind.update(carried.left_behind)

    async def flush(self) -> None:
        """Return once every transition so far is in the ledger. A cancellation is raised afterwards."""
        self._stop_what_ended()
        self._places.hand_out()
        await self._writing.flush()

    async def _record(self, item: WorkItem) -> None:
        try:
            await self.flush()
        except asyncio.CancelledError:
            await self.stopped(item)
            raise

    def _may_continue_as_new(self) -> bool:
        # What is not yet in the ledger would be lost: the next run only records what it decides itself.
        idle = self.actions_under_way == 0 if self.is_second_edition else workflow.all_handlers_finished()
        return (
            idle
            and self.state.verdict is not Verdict.FAIL
            and self._writing.is_done
            and all(item.state is WorkItemState.INITIALIZED for item in self.state.open_work_items())
        )
