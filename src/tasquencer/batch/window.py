"""Decides the next steps of a batch: rows to start, load and save, and the end by its policy.

Pure: the workflow reports events and asks for steps. Rows are loaded in the order of their positions. The
window is full when the allowed number of tasks is running.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from tasquencer.ai.usage import Usage
from tasquencer.batch.rows import (
    AiBatchRequest,
    AiBatchResult,
    BatchCounts,
    BatchPause,
    BatchProgress,
    BatchRow,
    CarriedBatch,
    OpenRow,
    RowOutcome,
    RowState,
)
from tasquencer.core.policy import Counts, Verdict
from tasquencer.core.work_item import Transition, WorkItemState

__all__ = ["LARGEST_PAGE", "MOST_UNSAVED", "BatchWindow"]

LARGEST_PAGE = 500
"""Rows on a page."""

MOST_UNSAVED = 200
"""Outcomes that are saved immediately, without waiting for more."""

_SMALLEST_PAGE = 20

_MOST_BYTES = 1024 * 1024
"""A limit for the requests that are loaded in advance, and for those that start in one workflow task (a
single larger one may still start). Temporal terminates a workflow whose workflow task has more than 4 MiB.
The events
that arrive during the task count too: up to 2 MiB of answers."""


class BatchWindow:
    """The progress of a batch.

    Args:
        request: Its input.
        counts: The counts of its rows in the ledger. Only the pending rows are left to do.
        carried: The state from the previous run, used instead of the counts.
    """

    def __init__(
        self, request: AiBatchRequest, counts: BatchCounts, carried: CarriedBatch | None = None
    ) -> None:
        self._concurrency = request.concurrency
        self._policy = request.policy.decide()
        found = counts if carried is None else carried.counts
        self.rows = found.pending + found.completed + found.failed + found.canceled
        self._states = {
            RowState.COMPLETED: found.completed,
            RowState.FAILED: found.failed,
            RowState.CANCELED: found.canceled,
        }
        self._number = found.ended
        self._usage = found.usage
        self._loaded: deque[BatchRow] = deque()
        self._all_loaded = False
        left = [] if carried is None else carried.unrecorded
        self._unsaved = {outcome.position: outcome for outcome in left}
        self._being_saved: dict[int, RowOutcome] = {}
        self._ended_lately: set[int] = set()  # since the last page
        self.cursor = -1 if carried is None else carried.cursor
        self.open: dict[int, OpenRow] = {} if carried is None else {row.position: row for row in carried.open}
        self.paused = None if carried is None else carried.paused
        self.last_failure = None if carried is None else carried.last_failure
        has_enough = not found.pending or request.policy.is_reached_by(found.completed)
        self.verdict = Verdict.COMPLETE if has_enough else Verdict.CONTINUE

    @property
    def ended(self) -> int:
        """The number of rows that have ended, in any state."""
        return sum(self._states.values())

    @property
    def lost(self) -> int:
        """Rows that ended without an answer."""
        return self._states[RowState.FAILED] + self._states[RowState.CANCELED]

    @property
    def page_size(self) -> int:
        """How many rows to load in one page."""
        return min(max(_SMALLEST_PAGE, self._concurrency), LARGEST_PAGE)

    @property
    def needs_rows(self) -> bool:
        """Return whether to load the rows after `cursor`."""
        few = len(self._loaded) <= self.page_size // 2 and sum(row.size for row in self._loaded) < _MOST_BYTES
        return few and not self._all_loaded and self.paused is None

    @property
    def is_missing_rows(self) -> bool:
        """True if nothing is left to do, but not all rows have ended, because some were deleted."""
        nothing_left = self._all_loaded and not self._loaded and not self.open
        return nothing_left and self.verdict is Verdict.CONTINUE

    @property
    def unsaved(self) -> int:
        """Outcomes that are neither in the ledger nor being saved."""
        return len(self._unsaved)

    def load(self, page: Sequence[BatchRow], *, after: int, is_last: bool) -> None:
        """Take the pending rows that follow this position.

        The position was `cursor` when the page was requested. If `cursor` has changed since, the page is
        ignored. It may contain rows that are running, and rows that have ended in the meantime.
        """
        if after != self.cursor:
            return
        for row in page:
            known = (self.open, self._unsaved, self._being_saved, self._ended_lately)
            if not any(row.position in positions for positions in known):
                self._loaded.append(row)
        if page:
            self.cursor = page[-1].position
        self._all_loaded = is_last
        self._ended_lately = {*self._unsaved, *self._being_saved}

    def start(self, used: int = 0) -> list[BatchRow]:
        """Return the rows to start now. They become open.

        Args:
            used: Bytes of the requests that have already started in this workflow task.
        """
        started: list[BatchRow] = []
        while (
            self._loaded
            and (not used or used + self._loaded[0].size <= _MOST_BYTES)
            and len(self.open) < self._concurrency
            and self.paused is None
            and self.verdict is Verdict.CONTINUE
        ):
            row = self._loaded.popleft()
            used += row.size
            self.open[row.position] = OpenRow(position=row.position, row_id=row.row_id)
            started.append(row)
        return started

    def find(self, row: BatchRow) -> OpenRow:
        """The task of a row that should start already existed."""
        found = OpenRow(position=row.position, row_id=row.row_id, found=True)
        self.open[row.position] = found
        return found

    def end(self, outcome: RowOutcome, at: datetime) -> None:
        """The task of an open row has ended. Other outcomes are ignored."""
        if self.open.pop(outcome.position, None) is None:
            return
        self._ended_lately.add(outcome.position)
        self._number += 1
        counted = outcome.model_copy(update={"number": self._number, "ended_at": at})
        self._unsaved[outcome.position] = counted
        self._states[outcome.state] += 1
        self._usage = Usage.sum_of([self._usage, outcome])
        if outcome.failure is not None and outcome.state is not RowState.COMPLETED:
            failure = outcome.failure
            self.last_failure = f"{outcome.row_id}: {failure.type}: {failure.message}"
        if self.verdict is Verdict.CONTINUE:
            self.verdict = self._policy(_transition(outcome, at), self._counts())

    def forget(self, positions: Iterable[int]) -> None:
        """Temporal has no tasks for these open rows. They are loaded again."""
        lost = [position for position in positions if self.open.pop(position, None) is not None]
        if lost:
            first = min([*lost, *(row.position for row in self._loaded)])
            self._loaded.clear()
            self._all_loaded = False
            self.cursor = min(self.cursor, first - 1)

    def to_save(self) -> list[RowOutcome]:
        """Return the outcomes to save now, in the order of their numbers. Call `saved` afterwards."""
        self._being_saved = self._unsaved
        self._unsaved = {}
        return list(self._being_saved.values())

    def saved(self, used: Mapping[int, Usage]) -> None:
        """The ledger has the outcomes that `to_save` returned.

        Args:
            used: Tokens and cost by position, for rows whose outcome does not report them.
        """
        for position, outcome in self._being_saved.items():
            if outcome.usage == Usage():
                self._usage = Usage.sum_of([self._usage, used.get(position, Usage())])
        self._being_saved = {}

    def carry(self) -> CarriedBatch:
        """Return the state for the next run. It loads and saves unfinished rows and outcomes again."""
        cursor = self._loaded[0].position - 1 if self._loaded else self.cursor
        return CarriedBatch(
            counts=self._batch_counts(),
            cursor=cursor,
            open=list(self.open.values()),
            unrecorded=[*self._being_saved.values(), *self._unsaved.values()],
            paused=self.paused,
            last_failure=self.last_failure,
        )

    def pause(self, pause: BatchPause | None) -> None:
        """Start no further rows. None: continue."""
        self.paused = pause

    def progress(self) -> BatchProgress:
        """For people."""
        now = {"rows": self.rows, "running": len(self.open), "paused": self.paused}
        return BatchProgress.model_validate(now | self._sums())

    def result(self) -> AiBatchResult:
        """The counts at its end. Rows that have neither completed nor failed are canceled, begun or not."""
        answered = self._states[RowState.COMPLETED] + self._states[RowState.FAILED]
        return AiBatchResult.model_validate(
            {"rows": self.rows, **self._sums(), "canceled": self.rows - answered}
        )

    def _sums(self) -> dict[str, int | float | None]:
        return {
            "completed": self._states[RowState.COMPLETED],
            "failed": self._states[RowState.FAILED],
            "canceled": self._states[RowState.CANCELED],
            **self._usage.model_dump(),
        }

    def _batch_counts(self) -> BatchCounts:
        return BatchCounts.model_validate(
            {"pending": self.rows - self.ended, "ended": self._number, **self._sums()}
        )

    def _counts(self) -> Counts:
        """Return the counts for a policy: each row is a lineage, and all have begun."""
        return Counts(
            open_lineages=self.rows - self.ended,
            completed_lineages=self._states[RowState.COMPLETED],
            failed_lineages=self._states[RowState.FAILED],
            canceled_lineages=self._states[RowState.CANCELED],
        )


def _transition(outcome: RowOutcome, at: datetime) -> Transition:
    return Transition(
        work_item_id=outcome.work_item_id or outcome.row_id,
        sequence=1,
        previous_state=WorkItemState.STARTED,
        next_state=WorkItemState(outcome.state.value),
        at=at,
        actor="task",
    )
