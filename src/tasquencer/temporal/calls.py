"""The running calls of a task, and the order in which their outcomes count."""

from __future__ import annotations

import asyncio
from itertools import takewhile
from typing import Any, TypeVar

from temporalio import workflow

from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import WorkItem, WorkItemState

__all__ = ["Calls", "cancels_seen"]

T = TypeVar("T")

_OUTCOME_STEPS = 10
"""Maximum turns of the loop until the outcome of an activity reaches the code that waits for it."""


def cancels_seen() -> int:
    """How often the code that runs now has been canceled and has seen it, as a `CancelledError`."""
    running = asyncio.current_task()
    if running is None:
        return 0
    return running.cancelling() - bool(getattr(running, "_must_cancel", False))


class Calls:
    """Waits for calls, and stops them.

    Args:
        state: The task's state.
        stops_for_its_code: True to stop a call also if only the code that waits for it is canceled.
    """

    def __init__(self, state: TaskState, *, stops_for_its_code: bool) -> None:
        self._state = state
        self._stops_for_its_code = stops_for_its_code
        self._under_way: dict[str, asyncio.Task[Any]] = {}
        self._arrived: dict[str, None] = {}
        self._stopping: set[str] = set()
        self._stopped: set[str] = set()

    def is_calling(self, activity_id: str | None) -> bool:
        """Return whether an activity with this id is the call of a started work item."""
        item = self._state.find(activity_id) if activity_id is not None else None
        return item is not None and item.state is WorkItemState.STARTED

    async def call(self, item: WorkItem, call: asyncio.Task[T]) -> T:
        """Wait for the work item's call. Stop it if the work item ends in another way."""
        self._under_way[item.id] = call
        call.add_done_callback(lambda _: self.arrive(item))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            if call.cancelled() or (not self._stops_for_its_code and workflow.cancellation_reason() is None):
                raise
            # Outcome and cancellation may arrive in one workflow task. The outcome then still has to pass a
            # few callbacks, but it counts, because the call was made and billed.
            self._stopping.add(item.id)
            await self.catch_up()
            if call.done():
                await self._wait_for_those_before(item)
            elif self._stops_for_its_code:
                self._stop_in_order()
            else:
                call.cancel()
            return await self._ended_call(call)
        finally:
            del self._under_way[item.id]

    def _stop_in_order(self) -> None:
        """Stop the calls whose code was canceled, in the order in which they were made.

        A `TaskGroup` cancels in the order of a set, which differs from one process to the next.
        """
        for known, call in self._under_way.items():
            if known in self._stopping:
                self._stopped.add(known)
                call.cancel()
        self._stopping.clear()

    async def _ended_call(self, call: asyncio.Task[T]) -> T:
        """Wait for a call that is being stopped, even if the code around it is canceled again."""
        while not call.done():
            try:
                await asyncio.shield(call)
            except asyncio.CancelledError:
                if not self._stops_for_its_code:
                    raise
            except Exception:  # noqa: BLE001 - the call's own, raised below
                break
        return await call

    def arrive(self, item: WorkItem) -> None:
        """Note that the call or the wait of a work item has ended in this workflow task."""
        self._arrived.pop(item.id, None)
        self._arrived[item.id] = None

    async def _wait_for_those_before(self, item: WorkItem) -> None:
        """Return when the outcomes that arrived before this one have been processed, as without a cancel.

        Otherwise the policy would see them in the order in which the cancel reached the waiting code.
        """
        before = list(takewhile(lambda known: known != item.id, self._arrived))
        for _ in range(_OUTCOME_STEPS * len(before)):
            found = (self._state.find(known) for known in before)
            if not any(one is not None and one.state is WorkItemState.STARTED for one in found):
                return
            await asyncio.sleep(0)

    def has_arrived(self, work_item_id: str) -> bool:
        """Return whether its call or wait has ended in this workflow task but was not processed yet."""
        return work_item_id in self._arrived

    async def catch_up(self) -> None:
        """Return when the outcomes of this workflow task have been processed."""
        for _ in range(_OUTCOME_STEPS):
            await asyncio.sleep(0)

    def started(self, work_item_id: str) -> None:
        """Note that the work item begins. An earlier arrival was the end of its wait."""
        self._arrived.pop(work_item_id, None)

    def was_stopped(self, work_item_id: str) -> bool:
        """Return whether the work item's call was asked to end because its code was canceled."""
        return work_item_id in self._stopped

    def stop(self, work_item_id: str) -> None:
        """Stop the work item's call, if it has one."""
        if work_item_id in self._under_way:
            self._under_way[work_item_id].cancel()

    async def stop_all(self) -> None:
        """Stop all calls, and return when their outcomes have been processed."""
        while self._under_way:
            await self.catch_up()
            for call in list(self._under_way.values()):
                call.cancel()
            await workflow.wait_condition(lambda: not self._under_way)
            await self.catch_up()
