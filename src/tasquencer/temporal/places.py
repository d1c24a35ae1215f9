"""Places for work items, where only a limited number may be started at the same time."""

from __future__ import annotations

import asyncio

from tasquencer.temporal.activations import is_new_run_due

__all__ = ["Places"]


class Places:
    """Gives places, first come, first served.

    When a new run is due, no place is given away. All who wait are let go once the last place is free: then
    the new run can begin.

    Args:
        places: How many there are; None: any number.
    """

    def __init__(self, places: int | None) -> None:
        self._places = places
        self._taken: set[str] = set()
        self._queue: dict[str, asyncio.Future[None]] = {}

    @property
    def are_limited(self) -> bool:
        """Return whether a work item may have to wait."""
        return self._places is not None

    def is_waiting(self, work_item_id: str) -> bool:
        """Return whether the work item waits for a place."""
        return work_item_id in self._queue

    async def take(self, work_item_id: str) -> bool:
        """Wait for a place; False if the work item was dropped, or a new run is due."""
        if self._places is None:
            return True
        if self._queue or self._is_full():
            future = self._queue[work_item_id] = asyncio.get_running_loop().create_future()
            self.hand_out()  # where a new run is due there may be nobody left to do so
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
        """Give the place to the next one: this work item has ended."""
        self._taken.discard(work_item_id)
        self.hand_out()

    def forget(self, work_item_id: str) -> None:
        """Take the place back, for another work item that comes in this one's stead."""
        self._taken.discard(work_item_id)

    def drop(self, work_item_id: str) -> None:
        """Let the work item go if it waits: it has ended."""
        future = self._queue.pop(work_item_id, None)
        if future is not None and not future.done():
            future.set_result(None)

    def hand_out(self) -> None:
        """Give away the places that are free."""
        due = bool(self._queue) and is_new_run_due()
        if due and self._taken:
            return
        while self._queue and (due or len(self._taken) < (self._places or 0)):
            work_item_id = next(iter(self._queue))
            future = self._queue.pop(work_item_id)
            if future.done():  # canceled, and about to say so
                continue
            if not due:
                self._taken.add(work_item_id)
            future.set_result(None)

    def _is_full(self) -> bool:
        return len(self._taken) >= (self._places or 0) or is_new_run_due()
