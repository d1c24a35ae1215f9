"""The contract of the store that holds the rows of batches: the ledger's database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue

from tasquencer.ai.usage import Usage
from tasquencer.batch.rows import BatchCounts, BatchRow, OpenRow, RowFailure, RowOutcome, RowState

__all__ = ["Batch", "BatchState", "BatchStore", "RowAnswer", "RowPage", "UnansweredRow"]


class BatchState(StrEnum):
    """The state of a batch in the ledger. A terminated batch still counts as started."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"


class Batch(BaseModel):
    """A batch.

    Attributes:
        digest: Identifies its rows and defaults. A batch with the same id and another digest is a
        different batch.
        rows: How many rows it has when it is filled.
        defaults: Fields of `AiAgentRequest` for rows that do not set them.
        filled_at: When its last row was added. None before that.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    digest: str
    rows: int
    defaults: dict[str, JsonValue]
    created_at: AwareDatetime
    state: BatchState = BatchState.STARTED
    filled_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None


class RowPage(BaseModel):
    """Pending rows. `is_last` is true if no other rows follow."""

    model_config = ConfigDict(frozen=True)

    rows: list[BatchRow]
    is_last: bool


class RowAnswer(Usage):
    """A completed row with its answer, which the ledger keeps with the work item.

    Attributes:
        input_tokens, output_tokens, cost_usd: Those of the answer.
        total: Those of all attempts, failed ones included.
    """

    model_config = ConfigDict(frozen=True)

    position: int
    number: int
    row_id: str
    text: str | None
    model: str | None
    finish_reason: str | None
    work_item_id: str
    attempts: int
    ended_at: AwareDatetime | None = None
    total: Usage = Usage()


class UnansweredRow(BaseModel):
    """A row that failed or was canceled, with its request as it was given (without the defaults)."""

    model_config = ConfigDict(frozen=True)

    position: int
    row_id: str
    request: dict[str, JsonValue]
    state: RowState
    failure: RowFailure | None


class BatchStore(ABC):
    """Holds batches and their rows. It is open as long as its ledger is.

    A method that writes may be called again with the same arguments. The second call changes nothing. Lists
    are read page by page. The time of a page does not depend on the number of earlier pages. A page ends
    before it would exceed `most_bytes`, but has at least one row. Any outage raises `LedgerUnavailable`.
    """

    @abstractmethod
    async def create(self, batch: Batch) -> Batch:
        """Create the batch unless its id exists. Return the batch with this id."""

    @abstractmethod
    async def find(self, batch_id: str) -> Batch | None:
        """Return the batch, or None if there is none."""

    @abstractmethod
    async def fill(self, batch_id: str, rows: Sequence[BatchRow]) -> None:
        """Add rows to the batch. Skip rows whose position is taken."""

    @abstractmethod
    async def filled(self, batch_id: str) -> None:
        """Mark the batch as complete: it has all its rows."""

    @abstractmethod
    async def begin(self, batch_id: str) -> BatchCounts:
        """Begin the batch, or begin it again: rows that failed or were canceled become pending.

        The returned tokens and cost are those of the completed rows. What the other rows used is counted when
        they end.
        """

    @abstractmethod
    async def counts(self, batch_id: str) -> BatchCounts:
        """Return the saved states of its rows, and the saved tokens and cost of their tasks."""

    @abstractmethod
    async def retrying(self, batch_id: str) -> int:
        """Return how many of its tasks run a retry or wait for one."""

    @abstractmethod
    async def left_running(self, batch_id: str) -> list[OpenRow]:
        """Return its pending rows whose tasks have an open work item, by position, all marked as `found`."""

    @abstractmethod
    async def pending(self, batch_id: str, *, after: int, limit: int, most_bytes: int) -> RowPage:
        """Return its pending rows after this position, with the defaults, ready to start."""

    @abstractmethod
    async def save(self, batch_id: str, outcomes: Sequence[RowOutcome]) -> dict[int, Usage]:
        """Save the ends of rows. A completed row stays as it is.

        The store adds up the tokens and cost of all attempts of the row's task, also those of earlier runs of
        the batch. The ledger knows attempts that the outcome lacks, such as those of a task that failed.

        Returns:
            Tokens and cost of the tasks, by position.
        """

    @abstractmethod
    async def end(self, batch_id: str, state: BatchState) -> None:
        """End the batch in this state. Rows that are still pending are canceled."""

    @abstractmethod
    async def answers(
        self,
        batch_id: str,
        *,
        order: Literal["position", "number"],
        after: int,
        limit: int,
        most_bytes: int,
    ) -> list[RowAnswer]:
        """Return the completed rows after this position or number, in the order of it."""

    @abstractmethod
    async def unanswered(
        self, batch_id: str, *, after: int, limit: int, most_bytes: int
    ) -> list[UnansweredRow]:
        """Return the failed and canceled rows after this position."""
