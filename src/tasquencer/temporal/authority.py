"""Checks the callers of the bookkeeping activities.

Every client that may start work on the task queue can call them, from another worker or without a workflow.
So each checks Temporal's own facts about its caller, which the caller cannot choose.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import LedgerUnavailable
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import WorkItemState
from tasquencer.ledger.contract import Ledger, Settlement
from tasquencer.temporal.failures import as_application_error

__all__ = ["NOT_ALLOWED", "check_record", "only_for", "only_for_started"]

NOT_ALLOWED = "NotAllowed"
"""Type of the error for a caller without permission."""

_PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.2


def check_record(entries: Sequence[LedgerEntry], settlement: Settlement | None) -> None:
    """Raise unless a task's own run asks, from its worker, to write its own work items and settlement.

    A work item that the run creates must belong to this run. Others may belong to an earlier run of the task.
    The ledger refuses entries about a work item of another task.
    """
    info = activity.info()
    if not info.is_local or info.workflow_id is None:
        raise _not_allowed("only a task records its work items, from within its workflow")
    for entry in entries:
        item = entry.work_item
        if item.task_id != info.workflow_id:
            raise _not_allowed(f"task {info.workflow_id!r} records nothing of task {item.task_id!r}")
        if entry.transition.sequence == 0 and item.run_id != info.workflow_run_id:
            raise _not_allowed(f"run {info.workflow_run_id!r} creates no work item of run {item.run_id!r}")
    if settlement is None:
        return
    if (settlement.task_id, settlement.run_id) != (info.workflow_id, info.workflow_run_id):
        raise _not_allowed(f"run {info.workflow_run_id!r} ends nothing of run {settlement.run_id!r}")


def only_for(workflow_type: str, workflow_id: str | None = None) -> None:
    """Raise unless the caller is a workflow of this type, and has this id if one is given."""
    info = activity.info()
    if info.workflow_type != workflow_type or workflow_id not in (None, info.workflow_id):
        wanted = workflow_type if workflow_id is None else f"{workflow_type} {workflow_id!r}"
        raise _not_allowed(f"only {wanted} may call {info.activity_type}")


async def only_for_started(ledger: Ledger) -> None:
    """Raise unless the activity's id is that of a work item of the calling workflow, recorded as started.

    In an outage of the ledger nothing is sent. The attempt then ends like one that no worker has picked up.
    """
    info = activity.info()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            holder = await ledger.holder(info.activity_id)
            break
        except LedgerUnavailable as error:
            if time.monotonic() > deadline:
                problem = f"the ledger could not be read, so nothing was sent: {error}"
                failure = Failure.of(FailureKind.NOT_PICKED_UP, problem)
                raise as_application_error(failure, is_final=True) from None
            await asyncio.sleep(_PAUSE_SECONDS)
    if holder != (info.workflow_id, WorkItemState.STARTED):
        raise _not_allowed(f"{info.activity_id!r} is not a started work item of the calling workflow")


def _not_allowed(problem: str) -> ApplicationError:
    return ApplicationError(
        problem, type=NOT_ALLOWED, non_retryable=True, category=ApplicationErrorCategory.BENIGN
    )
