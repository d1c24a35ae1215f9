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
from collections.abc import Callable
from datetime import timedelta
from itertools import takewhile
from typing import Any, NoReturn, TypeVar

from pydantic import JsonValue
from temporalio import workflow

from tasquencer.core.carried import CarriedTask
from tasquencer.core.errors import TaskMisused
from tasquencer.core.failure import Failure
from tasquencer.core.task_state import TaskState
from tasquencer.core.wording import delay_label
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.temporal.turns import Turns
from tasquencer.temporal.writing import CANCELED, Writing

__all__ = ["TaskDriver"]

T = TypeVar("T")

_OUTCOME_STEPS = 10
"""Turns of the loop that the outcome of an activity needs at most to reach the one who waits for it."""

_NEWS = timedelta(milliseconds=1)
"""A timer so short that it only ends the workflow task, and brings the next one. The server may fire it a
second late; there is no quicker way that does not depend on a free place for an activity."""


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
        self._turns = Turns(concurrency)
        self._writing = Writing(state, hands_over=self._turns.are_limited, news=self.news)
        self._sleeping: dict[str, asyncio.Task[None]] = {}
        self._calls: dict[str, asyncio.Task[Any]] = {}
        self._hurried: dict[str, tuple[str, str | None]] = {}
        self._arrived: dict[str, None] = {}
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
        self._turns.forget(item.id)
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
        return self._turns.is_waiting(work_item_id)

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
        call.add_done_callback(lambda _: self._arrive(item))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            if workflow.cancellation_reason() is None or call.cancelled():
                raise
            # Outcome and cancellation may have come in one workflow task. The outcome is on its way
            # through a few callbacks then, and counts: the call was made, and billed.
            await self.turns()
            if call.done():
                await self._take_turn_to_end(item)
            else:
                call.cancel()
            return await call
        finally:
            del self._calls[item.id]

    def _arrive(self, item: WorkItem) -> None:
        self._arrived.pop(item.id, None)
        self._arrived[item.id] = None

    async def _take_turn_to_end(self, item: WorkItem) -> None:
        """Return once the outcomes that arrived before this one have had their effect, as without a cancel.

        Else the policy would see them in the order in which the cancel reached those who wait for them.
        """
        before = list(takewhile(lambda known: known != item.id, self._arrived))
        for _ in range(_OUTCOME_STEPS * len(before)):
            found = (self.state.find(known) for known in before)
            if not any(one is not None and one.state is WorkItemState.STARTED for one in found):
                return
            await asyncio.sleep(0)

    def is_calling(self, activity_id: str | None) -> bool:
        """Whether an activity of this id is the call of a started work item."""
        item = self.state.find(activity_id) if activity_id is not None else None
        return item is not None and item.state is WorkItemState.STARTED

    async def wait_for(self, item: WorkItem) -> None:
        """Sleep the work item's delay, or go on in a new run that will."""
        if (
            workflow.info().is_continue_as_new_suggested()
            and self._may_continue_as_new()
            and workflow.all_handlers_finished()
        ):
            self._continue_as_new()
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
        sleeping.add_done_callback(lambda _: self._arrive(item))
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
        """Return when fewer work items than allowed are started, or go on in a new run if one is due."""
        try:
            has_place = await self._turns.take(item.id)
            if not has_place and not self.state.work_item(item.id).state.is_terminal:
                await self.flush()
                await workflow.wait_condition(
                    lambda: self._may_continue_as_new() and workflow.all_handlers_finished()
                )
                self._continue_as_new()
        except asyncio.CancelledError:
            self._turns.leave(item.id)
            self.cancel(item.lineage)
            raise

    def _stop_what_ended(self) -> None:
        """Of the work items that have just ended, stop the wait or the call, whoever ended them."""
        for work_item_id in self.state.just_ended():
            doing = self._sleeping.get(work_item_id) or self._calls.get(work_item_id)
            if doing is not None:
                doing.cancel()
            self._turns.drop(work_item_id)

    async def expire(self, item: WorkItem) -> bool:
        """Give the work item up if its deadline has passed, and record that; whether it has."""
        if not self.state.expire(item.id, now=workflow.now()):
            return False
        self._turns.leave(item.id)
        await self._settle(item.lineage)
        return True

    async def start(self, item: WorkItem) -> None:
        """Record the work item as started."""
        self._arrived.pop(item.id, None)
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
            self._turns.leave(item.id)
        await self._settle(item.lineage)
        if canceled:
            raise asyncio.CancelledError(CANCELED)

    def cancel(self, lineage: str) -> None:
        """Cancel what is open in the lineage: its task was. `close` records it, for all lineages at once."""
        self.state.close(now=workflow.now(), reason=CANCELED, lineage=lineage)

    async def give_up(self, item: WorkItem, reason: str) -> None:
        """Record the work item as canceled though its task was not; the policy decides."""
        self.state.cancel(item.id, now=workflow.now(), reason=reason)
        self._turns.leave(item.id)
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
        if forgetful:
            self._writing.settle()
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

    async def waits(self) -> None:
        """As `turns`, and once the waits that are over have had their effect, too.

        Of the timers that fired with this workflow task the SDK tells after what came from outside: whether
        one has shows in the next. Its start may be in the ledger already, by a worker that has died since.
        """
        await self.turns()
        now = workflow.now()
        if any(self.state.work_item(known).not_before <= now for known in self._sleeping):
            await self.news()
            await self.turns()

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
        """Return once every transition so far is in the ledger. A cancellation is raised afterwards."""
        self._stop_what_ended()
        self._turns.go_on()
        await self._writing.flush()

    async def _settle(self, lineage: str) -> None:
        try:
            await self.flush()
        except asyncio.CancelledError:
            self.cancel(lineage)
            raise

    def _may_continue_as_new(self) -> bool:
        # What is not yet in the ledger would be lost: the next run only records what it decides itself.
        return self._writing.is_done and all(
            item.state is WorkItemState.INITIALIZED for item in self.state.open_work_items()
        )
