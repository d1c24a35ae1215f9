"""Places for work items, if only a limited number may be started at the same time."""

from __future__ import annotations

import asyncio

from tasquencer.temporal.activations import is_new_run_due

__all__ = ["Places"]


class Places:
    """Gives places in the order of requests.

    When a new run is due, it gives no places. When the last place is free, all waiting work items are
    released, and the new run can begin. A work item that waits for a person takes no place and may take days.
    While there is one, no new run is due.

    Args:
        places: The number of places. None: no limit.
    """

    def __init__(self, places: int | None) -> None:
        self._places = places
        self._taken: set[str] = set()
        self._without_place: set[str] = set()
        self._queue: dict[str, asyncio.Future[None]] = {}

    @property
    def are_limited(self) -> bool:
        """Return whether a work item may have to wait."""
        return self._places is not None

    def is_waiting(self, work_item_id: str) -> bool:
        """Return whether the work item waits for a place."""
        return work_item_id in self._queue

    async def take(self, work_item_id: str, *, needs_place: bool = True) -> bool:
        """Wait for a place. Return False if the work item was dropped, or a new run is due."""
        if self._places is None:
            return True
        if not needs_place and not self._is_new_run_due():
            self._without_place.add(work_item_id)
            return True
        if self._queue or self._is_full():
            future = self._queue[work_item_id] = asyncio.get_running_loop().create_future()
            self.hand_out()  # if a new run is due, no other code may be left to do this
            try:
                await future
            except asyncio.CancelledError:
                self._queue.pop(work_item_id, None)
                self.leave(work_item_id)
                raise
        else:
            self._taken.add(work_item_id)
        return work_item_id in self._taken

    def leave(self, work_item_id: str) -> None:
        """Give the place to the next one, because this work item has ended."""
        self.forget(work_item_id)
        self.hand_out()

    def forget(self, work_item_id: str) -> None:
        """Take the place back for another work item that replaces this one."""
        self._taken.discard(work_item_id)
        self._without_place.discard(work_item_id)

    def drop(self, work_item_id: str) -> None:
        """Stop the work item's wait, if it waits, because it has ended."""
        future = self._queue.pop(work_item_id, None)
        if future is not None and not future.done():
            future.set_result(None)

    def hand_out(self) -> None:
        """Give the free places to waiting work items."""
        due = bool(self._queue) and self._is_new_run_due()
        if due and self._taken:
            return
        while self._queue and (due or len(self._taken) < (self._places or 0)):
            work_item_id = next(iter(self._queue))
            future = self._queue.pop(work_item_id)
            if future.done():  # canceled, but not removed yet
                continue
            if not due:
                self._taken.add(work_item_id)
            future.set_result(None)

    def _is_full(self) -> bool:
        return len(self._taken) >= (self._places or 0) or self._is_new_run_due()

    def _is_new_run_due(self) -> bool:
        return not self._without_place and is_new_run_due()
