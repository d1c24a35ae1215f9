"""Carries out a task's decisions on Temporal: ids, times, records, durable sleeps, cancellation.

`TaskState` decides, and the driver acts. Every transition is in the ledger before the workflow continues:
before a durable sleep begins, an activity is scheduled, or the task ends.

A worker may die after a write. Then the ledger holds decisions that are in no history, and the next worker
decides again:

- The ledger skips equal decisions, and replaces an earlier decision by a different later one
(`tasquencer.ledger.rules`).
- An action that ends a work item waits until it is in the history (`news`). Outcomes count before cancels.
- When a run ends, `Ledger.settle` cancels work items that only a lost workflow task had begun, unless the
last write has found none.
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
from tasquencer.temporal.activations import behaves, decide_early, first_part, is_new_run_due
from tasquencer.temporal.behaviour import Behaviour
from tasquencer.temporal.calls import Calls, cancels_seen
from tasquencer.temporal.pausing import Pausing
from tasquencer.temporal.places import Places
from tasquencer.temporal.timers import news
from tasquencer.temporal.writing import CANCELED, Writing

__all__ = ["STOPPED", "TaskDriver"]

STOPPED = "the code around it was canceled"
"""The reason for the end of a work item whose code was canceled, but not its task."""

T = TypeVar("T")


class TaskDriver:
    """Carries out the decisions of a `TaskState`.

    Args:
        state: The task's state, which decides.
        continue_as_new: Ends this run and begins the next one, which continues the task.
        concurrency: How many work items may be started at the same time. None: no limit.
    """

    def __init__(
        self, state: TaskState, continue_as_new: Callable[[], NoReturn], concurrency: int | None = None
    ) -> None:
        self.state = state
        self._continue_as_new = continue_as_new
        self.places = Places(concurrency)
        self.writing = Writing(state, hands_over=self.places.are_limited, news=news)
        self._sleeping: dict[str, asyncio.Task[None]] = {}
        self._waking: set[str] = set()
        self._hurried: dict[str, tuple[str, str | None]] = {}
        self._successors: dict[str, str] = {}
        self._compensating: set[str] = set()
        self._drained: set[str] = set()
        self.is_second_edition = behaves(Behaviour.SECOND_EDITION)
        decide_early()
        # A compensation may wait for the place of a work item that a cancel has ended.
        self._frees_places = behaves(Behaviour.RESULTS_ONE_BY_ONE)
        self.pausing = Pausing.current()
        self.calls = Calls(state, stops_for_its_code=self.is_second_edition)
        self.is_ending = False
        self.actions_under_way = 0
        self._is_first_part = first_part()  # the SDK calls back outside of the workflow
        workflow.register_random_seed_callback(self._on_reset)

    def _on_reset(self, seed: int) -> None:
        # A run made by a reset gets a new seed. Open work items also belong to the abandoned run, which may
        # have sent requests under their ids, except those that a handler has begun with the start.
        if not self._is_first_part():
            self.state.left_behind.update(item.id for item in self.state.open_work_items())

    def is_left_behind(self, item: WorkItem) -> bool:
        """Return whether the work item was open when a reset made this run."""
        return item.id in self.state.left_behind

    def successor(self, work_item_id: str) -> str:
        """Return the work item that replaces this one after a reset, or else this one."""
        return self._successors.get(work_item_id, work_item_id)

    async def replace(self, item: WorkItem) -> WorkItem:
        """Record and return a new work item in the place of one that a reset has left behind."""
        fresh = self._replaced(item)
        if (sleeping := self._sleeping.get(item.id)) is not None:
            sleeping.cancel()
        await self._record(fresh)
        return fresh

    def _replaced(self, item: WorkItem) -> WorkItem:
        self.places.forget(item.id)
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
        """Return whether the work item waits for nothing but a place, the end of a pause, or the next run."""
        waits = (self.places.is_waiting, self.pausing.holds, self._drained.__contains__)
        return any(wait(work_item_id) for wait in waits)

    def is_hurried(self, work_item_id: str) -> bool:
        """Return whether the work item's wait is being ended."""
        return work_item_id in self._hurried

    async def outcome(self, item: WorkItem) -> WorkItem:
        """Wait until an action from outside ends the work item and the end is recorded."""
        await workflow.wait_condition(
            lambda: self.state.work_item(item.id).state.is_terminal or self.is_left_behind(item)
        )
        await self.flush()
        return self.state.work_item(item.id)

    async def continue_if_due(self) -> None:
        """Go on in a new run if one is due and nothing is under way."""
        if is_new_run_due() and self._may_continue_as_new():
            await self._settle_and_go_on()

    async def wait_for(self, item: WorkItem) -> None:
        """Sleep the work item's delay, and return when the task is not paused."""
        await self._sleep(item)
        await self.pausing.hold(item, self.state, self._record, self.stopped)

    async def _sleep(self, item: WorkItem) -> None:
        """Sleep the work item's delay, or continue in a new run that does."""
        try:
            await self.continue_if_due()
        except asyncio.CancelledError:
            await self.stopped(item)
            raise
        if behaves(Behaviour.SETTLES_EACH_RUN) and not self.still_waits(item):
            return
        is_replacement = item.id in self._successors.values()
        if item.run_id == workflow.info().run_id and not is_replacement:
            # It was just recorded, so the whole delay starts here.
            delay = timedelta(seconds=item.delay_seconds)
        else:
            delay = item.not_before - workflow.now()
        if delay <= timedelta(0) or item.id in self._hurried:
            return
        before = self.state.before(item)
        kind = before.failure.kind if before is not None and before.failure is not None else None
        # A separate asyncio task, so that an operator can end the sleep without canceling the lineage.
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
        """Cancel the timers of work items, in the order in which they were started."""
        self._waking.add(work_item_id)
        if self.is_second_edition:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        for known, sleeping in self._sleeping.items():
            if known in self._waking:
                sleeping.cancel()
        self._waking.clear()

    async def take_place(self, item: WorkItem) -> None:
        """Wait for a free place, or continue in a new run if one is due."""
        try:
            has_place = await self.places.take(item.id, needs_place=self.state.takes_place(item))
            if not has_place and not self.state.work_item(item.id).state.is_terminal:
                self._drained.add(item.id)
                await self.flush()
                await self._wait_for_new_run(item)
        except asyncio.CancelledError:
            await self.stopped(item)
            raise
        await self.pausing.hold(item, self.state, self._record, self.stopped)

    async def _wait_for_new_run(self, item: WorkItem) -> None:
        """Continue in a new run, or return if the work item ends before."""
        is_newer = behaves(Behaviour.SETTLES_EACH_RUN)
        while not is_newer or self.still_waits(item):
            await workflow.wait_condition(
                lambda: self._may_continue_as_new() or (is_newer and not self.still_waits(item))
            )
            await self._settle_and_go_on()

    async def _settle_and_go_on(self) -> None:
        if behaves(Behaviour.SETTLES_EACH_RUN):
            await self.writing.settle_run()
            await news()  # events that waited for a write come first, a cancel for example
        if self._may_continue_as_new():
            await self._go_on_in_a_new_run()

    async def _go_on_in_a_new_run(self) -> NoReturn:
        """End this run. The next one continues the task from here.

        The run ends immediately, even if other code waits for this lineage. An exception would have to pass
        through a `TaskGroup` or a `gather` of the user's code.
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
        """Wait until the run is gone, for code that is left over at the end of the run."""
        # If the code swallows the cancel, a plain future would not notice that the instance leaves the cache.
        await workflow.wait_condition(lambda: False)
        raise AssertionError("the run has ended")

    def _stop_what_ended(self) -> None:
        """Stop the waits and calls of work items that have just ended, for any reason."""
        for work_item_id in self.state.just_ended():
            if work_item_id in self._sleeping:
                self._sleeping[work_item_id].cancel()
            self.calls.stop(work_item_id)
            self.places.drop(work_item_id)

    async def expire(self, item: WorkItem) -> bool:
        """Cancel the work item if its deadline has passed, and record that. Return whether it has."""
        if not self.state.expire(item.id, now=workflow.now()):
            return False
        self.places.leave(item.id)
        await self._record(item)
        return True

    def replaces_at_the_start(self, item: WorkItem) -> bool:
        """Return whether the work item was left behind after the loop had returned it."""
        return self.is_second_edition and self.is_left_behind(item) and self.still_waits(item)

    def still_waits(self, item: WorkItem) -> bool:
        """Return whether the work item still has to start."""
        present = self.state.find(item.id)
        return present is not None and present.state is WorkItemState.INITIALIZED

    def begins(self, lineage: str) -> None:
        """Note that a lineage begins. One that begins after its code has seen a cancel may compensate."""
        if self.is_second_edition and workflow.cancellation_reason() is not None and cancels_seen():
            self._compensating.add(lineage)

    def is_being_canceled(self, lineage: str) -> bool:
        """Return whether the task was canceled while the lineage was running."""
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
        """Record the work item as completed, with the consequences."""
        self.state.complete(item.id, result, now=workflow.now())
        await self.ended(item)

    async def fail(self, item: WorkItem, failure: Failure, *, may_retry: bool, **facts: Any) -> None:
        """Record the work item as failed, with the consequences: a retry, or the end.

        The facts are the arguments `worker`, `actor` and `reason` of `TaskState.fail`.
        """
        may_retry = may_retry and not self.is_ending and not self.is_being_canceled(item.lineage)
        self.state.fail(item.id, failure, now=workflow.now(), may_retry=may_retry, **facts)
        await self.ended(item)

    async def ended(self, item: WorkItem) -> None:
        """Return when the end of the work item is recorded and its place is free.

        A call may end when its task is canceled. The call then keeps its outcome (it was made and billed),
        nothing new begins, and the task ends as canceled.
        """
        canceled = self.is_being_canceled(item.lineage)
        if not canceled or self._frees_places:
            self.places.leave(item.id)
        await self._record(item)
        if canceled:
            raise asyncio.CancelledError(CANCELED)

    async def stopped(self, item: WorkItem) -> None:
        """Record that the work item's code was canceled.

        If the task was canceled, `close` records that for all lineages together. If only this code was, by a
        timeout around it or a `TaskGroup`, the policy decides.
        """
        if self.is_ending:
            return  # `close` records it
        if self.is_being_canceled(item.lineage) or not self.is_second_edition:
            (self.places.leave if self._frees_places else self.places.forget)(item.id)
            self.cancel(item.lineage)
            return
        present = self.state.find(item.id)
        if present is not None and not present.state.is_terminal:
            self.state.cancel(item.id, now=workflow.now(), reason=STOPPED)
        self.places.leave(item.id)
        with contextlib.suppress(asyncio.CancelledError):
            await self.flush()

    def cancel(self, lineage: str) -> None:
        """Cancel the lineage's open work items, because its task was canceled. `close` records it."""
        self.state.close(now=workflow.now(), reason=CANCELED, lineage=lineage)

    async def give_up(self, item: WorkItem, reason: str) -> None:
        """Record the work item as canceled although its task was not. The policy decides."""
        self.state.cancel(item.id, now=workflow.now(), reason=reason)
        self.places.leave(item.id)
        await self._record(item)

    async def close(self, reason: str) -> None:
        """Record the open work items as canceled, and settle forgotten ones, because the task is ending.

        A task does not end before its requests do, and their outcomes count. Of several canceled lineages,
        only the first one may have reported it yet.
        """
        self.is_ending = self.is_second_edition
        await self.calls.stop_all()
        self.state.close(now=workflow.now(), reason=reason)
        forgot_some = workflow.cancellation_reason() is not None or self.state.left_out_retries
        if self.is_second_edition or forgot_some:
            self.writing.settle()
        await self.flush()

    async def catch_up_with_timers(self) -> None:
        """Do the same as `catch_up`, and also wait for the effects of ended waits.

        The SDK delivers the timers of a workflow task after the events from outside, so a fired timer shows
        only in the next one. A worker that has died may already have written its start to the ledger.
        """
        await self.calls.catch_up()
        now = workflow.now()
        if any(self.state.work_item(known).not_before <= now for known in self._sleeping):
            await news()
            await self.calls.catch_up()

    def carry(self) -> CarriedTask:
        """Return the state for the next run."""
        if not self._may_continue_as_new():
            raise TaskMisused("a task cannot continue as new while one of its work items is started")
        marks = {"hurried": dict(self._hurried), "left_behind": set(self.state.left_behind)}
        return self.state.carry().model_copy(update={**marks, "paused": self.pausing.pause})

    def resume(self, carried: CarriedTask) -> None:
        """Continue from the state that the previous run carried along."""
        self.state.resume(carried)
        self._hurried.update(carried.hurried)
        self.state.left_behind.update(carried.left_behind)
        self.pausing.take_up(carried.paused)

    async def flush(self) -> None:
        """Return when every transition so far is in the ledger. A cancellation is raised afterwards."""
        self._stop_what_ended()
        self.places.hand_out()
        await self.writing.flush()

    async def _record(self, item: WorkItem) -> None:
        try:
            await self.flush()
        except asyncio.CancelledError:
            await self.stopped(item)
            raise

    def _may_continue_as_new(self) -> bool:
        # Unwritten entries would be lost, because the next run only records its own decisions.
        idle = self.actions_under_way == 0 if self.is_second_edition else workflow.all_handlers_finished()
        return (
            idle
            and self.state.verdict is not Verdict.FAIL
            and self.writing.is_done
            and all(item.state is WorkItemState.INITIALIZED for item in self.state.open_work_items())
        )
