"""The activity that writes to the ledger: local, at least once, idempotent."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict
from temporalio import activity
from temporalio.client import WorkflowExecutionStatus
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.service import RPCError

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import LedgerConflict, LedgerUnavailable
from tasquencer.core.work_item import WorkItemState
from tasquencer.ledger.contract import Ledger, Settlement
from tasquencer.temporal.authority import check_record
from tasquencer.temporal.ledger_outage import outage_error
from tasquencer.temporal.not_found import is_missing

__all__ = [
    "LOCAL_RETRY_THRESHOLD",
    "RECORD",
    "RECORD_RETRY",
    "RECORD_TIMEOUT",
    "REFUSED",
    "Bookkeeping",
    "Look",
    "already_ended",
    "refused_work_item",
]

RECORD = "tasquencer.record"
"""Name of the activity that writes entries."""

REFUSED = "LedgerConflict"
"""Type of the error with which the ledger refuses a write for good."""

_ALREADY_ENDED = "AlreadyEnded"
"""Type of an error in histories of earlier releases, with the end of a work item that the task canceled."""

_RUN_ENDED = "RunEnded"
"""Type of the error if nothing was written because the run has ended."""

RECORD_TIMEOUT = timedelta(seconds=10)
RECORD_RETRY = RetryPolicy(
    initial_interval=timedelta(milliseconds=100),
    backoff_coefficient=2,
    maximum_interval=timedelta(minutes=1),
    maximum_attempts=0,
    non_retryable_error_types=[REFUSED],
)
"""An outage of the ledger pauses the task, and uses up no attempt.

Each try beyond `LOCAL_RETRY_THRESHOLD` adds six events to the history, which Temporal limits to 51,200. With
a try per minute, a task survives an outage of five days.
"""

LOCAL_RETRY_THRESHOLD = timedelta(seconds=2)
"""A longer wait becomes a timer on the server, so that an outage does not block the workflow task."""

_PATIENCE = RECORD_TIMEOUT / 2
"""How long a write may take before it counts as an outage. Temporal's own timeout is much longer."""

_SLOW_SECONDS = 0.5
"""After a longer write, the task checks for new events from the server, such as its cancellation."""

_OLD = timedelta(seconds=5)
"""A decision of at least this age is written only if the run is still open. Most writes are immediate."""

_DESCRIBE_TIMEOUT = timedelta(seconds=2)

_log = logging.getLogger(__name__)


class Look(BaseModel):
    """The result of a write with a settlement that only looks.

    Attributes:
        slow: As without a look.
        left: Whether the run has left work items open that the settlement covers.
    """

    model_config = ConfigDict(frozen=True)

    slow: bool
    left: bool


class Bookkeeping:
    """Writes the decisions of tasks. One per worker.

    Args:
        ledger: An open ledger.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._down = False

    @activity.defn(name=RECORD)
    async def record(
        self, entries: Sequence[LedgerEntry], settlement: Settlement | None = None
    ) -> bool | Look:
        """Write the entries, then settle or look. Return whether that was slow, including earlier tries.

        A refusal is final. Outages and bugs are retried. Nothing is written for a run that has ended: a
        worker replays such a run for a query, and then executes what its last workflow task did not reach.
        """
        check_record(entries, settlement)
        begin = time.monotonic()
        if _is_old(entries, settlement) and await _run_has_ended():
            raise ApplicationError(
                "the run has ended without it",
                type=_RUN_ENDED,
                non_retryable=True,
                category=ApplicationErrorCategory.BENIGN,
            )
        try:
            async with asyncio.timeout(_PATIENCE.total_seconds()):
                left = await self._write(entries, settlement)
        except LedgerConflict as conflict:
            raise ApplicationError(
                str(conflict), conflict.work_item_id, type=REFUSED, non_retryable=True
            ) from conflict
        except (LedgerUnavailable, TimeoutError) as error:
            problem = str(error) or f"no answer within {_PATIENCE.total_seconds():g} s"
            if not self._down:
                _log.error("the ledger cannot be written, tasks wait for it: %s", problem)
            self._down = True
            raise outage_error(problem) from None
        if self._down:
            self._down = False
            _log.warning("the ledger can be written again")
        slow = activity.info().attempt > 1 or time.monotonic() - begin > _SLOW_SECONDS
        return slow if left is None else Look(slow=slow, left=left)

    async def _write(self, entries: Sequence[LedgerEntry], settlement: Settlement | None) -> bool | None:
        """Return whether a look has found something that the settlement covers. None: there was no look."""
        entries = [_with_worker(entry) for entry in entries]
        if settlement is not None and settlement.only_looks:
            found = await self._ledger.record_and_find_open(entries, settlement.task_id, settlement.run_id)
            return any(settlement.covers(known) for known in found)
        await self._ledger.record(entries)
        if settlement is not None:
            await self._ledger.settle(settlement)
        return None


def already_ended(error: BaseException | None) -> LedgerEntry | None:
    """Return the end of a work item in the ledger, if this error of an earlier release contains one."""
    if not isinstance(error, ApplicationError) or error.type != _ALREADY_ENDED:
        return None
    told = error.details[0]  # an object in earlier releases
    return (
        LedgerEntry.model_validate_json(told) if isinstance(told, str) else LedgerEntry.model_validate(told)
    )


def refused_work_item(error: BaseException | None) -> str | None:
    """Return the work item whose entry the ledger refused, if this error of `record` names one."""
    if not isinstance(error, ApplicationError) or error.type != REFUSED or not error.details:
        return None
    return str(error.details[0])


def _is_old(entries: Sequence[LedgerEntry], settlement: Settlement | None) -> bool:
    decided = [entry.transition.at for entry in entries] + ([] if settlement is None else [settlement.at])
    return datetime.now(UTC) - max(decided) > _OLD


async def _run_has_ended() -> bool:
    """Return whether Temporal says so. False if it does not answer."""
    info = activity.info()
    run = activity.client().get_workflow_handle(info.workflow_id or "", run_id=info.workflow_run_id)
    try:
        described = await run.describe(rpc_timeout=_DESCRIBE_TIMEOUT)
    except RPCError as error:
        return is_missing(error)
    return described.status is not WorkflowExecutionStatus.RUNNING


def _with_worker(entry: LedgerEntry) -> LedgerEntry:
    # With eager execution the worker that records the start also makes the call.
    if entry.transition.next_state is not WorkItemState.STARTED or entry.work_item.worker is not None:
        return entry
    item = entry.work_item.model_copy(update={"worker": activity.client().identity})
    return entry.model_copy(update={"work_item": item})
