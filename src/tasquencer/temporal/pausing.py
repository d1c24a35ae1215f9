"""The pause of a workflow run: while it lasts, no further attempt starts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from temporalio import workflow

from tasquencer.core.carried import TaskPause
from tasquencer.core.display_text import markdown_line
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.temporal.run_books import show_above

__all__ = ["PAUSED", "Pausing"]

PAUSED = "tasquencer_paused"
"""Name in the workflow's memo: the pause of the task. Clients read it without asking a worker."""

_ATTRIBUTE = "__tasquencer_pausing__"
"""Attribute of the run's event loop. See `TaskScope`."""


class Pausing:
    """Holds back the attempts of all books of a run, also of books that are made during the pause.

    An attempt that is under way continues, and its outcome counts. Backoffs and deadlines continue, too.
    """

    def __init__(self) -> None:
        self._held: set[str] = set()
        self.pause: TaskPause | None = None

    @classmethod
    def current(cls) -> Pausing:
        """Return the one of the current run."""
        found: Pausing = vars(asyncio.get_running_loop()).setdefault(_ATTRIBUTE, cls())
        return found

    def begin(self, pause: TaskPause) -> None:
        """Pause the run."""
        self.pause = pause
        self._tell()

    def take_up(self, pause: TaskPause | None) -> None:
        """Continue the pause of the run before, if there was one."""
        if pause is not None:
            self.begin(pause)

    def end(self) -> None:
        """Let the attempts start that were held back."""
        self.pause = None
        self._tell()

    def holds(self, work_item_id: str) -> bool:
        """Return whether the work item waits for the end of the pause and for nothing else."""
        return work_item_id in self._held

    async def hold(
        self,
        item: WorkItem,
        state: TaskState,
        record: Callable[[WorkItem], Awaitable[None]],
        stopped: Callable[[WorkItem], Awaitable[None]],
    ) -> None:
        """Return when the work item may start, or has ended, or its deadline has passed.

        Args:
            item: The work item.
            state: The books that have it.
            record: Writes the books to the ledger. A first attempt is not there yet.
            stopped: Records that the code which waits for the work item was canceled.
        """
        if self.pause is None:
            return
        await record(item)
        deadline = state.lineages[item.lineage].deadline
        left = None if deadline is None else max(deadline - workflow.now(), timedelta(0))
        self._held.add(item.id)
        try:
            await workflow.wait_condition(
                lambda: self.pause is None or not _still_waits(item, state), timeout=left
            )
        except TimeoutError:
            pass  # the start checks the deadline
        except asyncio.CancelledError:
            await stopped(item)
            raise
        finally:
            self._held.discard(item.id)

    def _tell(self) -> None:
        pause = self.pause
        told: dict[str, Any] | None = None if pause is None else pause.model_dump(mode="json")
        workflow.upsert_memo({PAUSED: told})
        show_above("" if pause is None else f"**{markdown_line(str(pause))}**")


def _still_waits(item: WorkItem, state: TaskState) -> bool:
    present = state.find(item.id)
    is_waiting = present is not None and present.state is WorkItemState.INITIALIZED
    return is_waiting and item.id not in state.left_behind
