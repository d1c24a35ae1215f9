"""The contract of the place where the rows of batches rest: the ledger's database."""

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
    """Where a batch stands, as the ledger has it. One that was terminated still counts as started."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"


class Batch(BaseModel):
    """A batch.

    Attributes:
        digest: Of its rows and defaults: a batch with the same id and another digest is another one.
        rows: How many it has when it is filled.
        defaults: What rows do not say: fields of `AiAgentRequest`.
        filled_at: When its last row was there; None before.
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
    """Pending rows; `is_last` if none comes after them."""

    model_config = ConfigDict(frozen=True)

    rows: list[BatchRow]
    is_last: bool


class RowAnswer(Usage):
    """A completed row with its answer, which the ledger keeps with the work item.

    Attributes:
        input_tokens, output_tokens, cost_usd: Of the answer.
        total: Of all attempts, failed ones included.
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
    """Where batches and their rows rest. Open as long as the ledger beside it is.

    Whatever writes may be called again with the same arguments and then changes nothing more. Lists are read
    page by page, each page in a time that does not depend on how many came before, and cut off where it would
    have more than `most_bytes` (one row comes in any case). Any outage raises `LedgerUnavailable`.
    """

    @abstractmethod
    async def create(self, batch: Batch) -> Batch:
        """Create the batch unless there is one with its id; the one that is there."""

    @abstractmethod
    async def find(self, batch_id: str) -> Batch | None:
        """The batch; None if there is none."""

    @abstractmethod
    async def fill(self, batch_id: str, rows: Sequence[BatchRow]) -> None:
        """Add rows to the batch, as they were given; those whose position is taken are left out."""

    @abstractmethod
    async def filled(self, batch_id: str) -> None:
        """The batch has all its rows."""

    @abstractmethod
    async def begin(self, batch_id: str) -> BatchCounts:
        """The batch begins, or begins once more: rows that failed or were canceled are pending again.

        Tokens and cost are those of the rows that stay completed: what the others used counts when they end.
        """

    @abstractmethod
    async def counts(self, batch_id: str) -> BatchCounts:
        """How its rows stand and what their tasks used, as far as it is saved."""

    @abstractmethod
    async def retrying(self, batch_id: str) -> int:
        """How many of its tasks are at a retry, or wait for one."""

    @abstractmethod
    async def left_running(self, batch_id: str) -> list[OpenRow]:
        """Its pending rows whose tasks have an open work item, by position; all as `found`."""

    @abstractmethod
    async def pending(self, batch_id: str, *, after: int, limit: int, most_bytes: int) -> RowPage:
        """Its pending rows after this position, as their tasks are to be started (with the defaults)."""

    @abstractmethod
    async def save(self, batch_id: str, outcomes: Sequence[RowOutcome]) -> dict[int, Usage]:
        """Save how rows ended. A row that has completed stays as it is.

        The store adds up what the row's task used in all its attempts, also in earlier runs of the batch: the
        ledger knows attempts that the outcome does not, such as those of a task that failed.

        Returns:
            Tokens and cost of the tasks, by position.
        """

    @abstractmethod
    async def end(self, batch_id: str, state: BatchState) -> None:
        """The batch ends so: rows that are still pending are canceled."""

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
        """The completed rows that come after this position or number, in its order."""

    @abstractmethod
    async def unanswered(
        self, batch_id: str, *, after: int, limit: int, most_bytes: int
    ) -> list[UnansweredRow]:
        """The rows that failed or were canceled and come after this position."""
