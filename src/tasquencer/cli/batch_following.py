"""A batch on Temporal: starts it, follows it to its end, acts on it.

Its progress is read from the ledger. A query makes a worker run a part of the workflow's code, so the batch
itself is queried only while the ledger cannot be read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any

from pydantic import JsonValue
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
)
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.service import RPCError

from tasquencer.batch.rows import BatchPause, BatchProgress
from tasquencer.batch.store import Batch, BatchState, BatchStore
from tasquencer.cli.batch_progress import BatchDisplay
from tasquencer.cli.errors import CommandFailed
from tasquencer.cli.following import (
    LAST_QUERY_TIMEOUT,
    QUERY_TIMEOUT,
    Outcome,
    described,
    outcome_of,
    send_update,
)
from tasquencer.cli.worker_watch import WorkerWatch, has_begun
from tasquencer.core.errors import LedgerUnavailable
from tasquencer.core.wording import counted
from tasquencer.temporal.batch_calls import BATCH_WORKFLOW, PAUSED
from tasquencer.temporal.not_found import is_missing

__all__ = [
    "BatchRun",
    "act_on",
    "begin",
    "find_run",
    "follow",
    "outcome_in",
    "progress_of",
    "progress_under_way",
    "recorded_progress",
]

_POLL_SECONDS = 1.0
_REST = 4
"""The wait after a look, as a multiple of the time that the look took."""

Handle = WorkflowHandle[Any, Any]


@dataclass(frozen=True)
class BatchRun:
    """The workflow of a batch.

    Attributes:
        is_running: False if it has ended.
    """

    handle: Handle
    task_queue: str
    is_running: bool


async def find_run(client: Client, batch_id: str) -> BatchRun | None:
    """Return the batch's workflow, or None if Temporal has none. Raises `CommandFailed` for a task."""
    handle = client.get_workflow_handle(batch_id)
    try:
        found = await handle.describe()
    except RPCError as error:
        if is_missing(error):
            return None
        raise
    if found.workflow_type != BATCH_WORKFLOW:
        raise CommandFailed(
            f"{batch_id!r} is not a batch but a task of type {found.workflow_type}: choose another --id"
        )
    return BatchRun(handle, found.task_queue, found.status is WorkflowExecutionStatus.RUNNING)


async def begin(client: Client, batch: Batch, request: Mapping[str, JsonValue], task_queue: str) -> BatchRun:
    """Start the batch's workflow, unless it is running."""
    handle = await client.start_workflow(
        BATCH_WORKFLOW,
        dict(request),
        id=batch.id,
        task_queue=task_queue,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        static_summary=counted(batch.rows, "prompt"),
    )
    return BatchRun(handle, task_queue, is_running=True)


async def follow(
    client: Client,
    run: BatchRun,
    batch: Batch,
    batches: BatchStore,
    display: BatchDisplay,
    meanwhile: Callable[[], Awaitable[None]],
) -> Outcome:
    """Show the batch's progress until it ends, and return how it ended.

    Args:
        meanwhile: Called after each look.
    """
    workers = WorkerWatch(client, run.task_queue, display.say)
    seen: BatchProgress | None = None

    async def look() -> None:
        nonlocal seen
        found = await described(run.handle)
        progress = None
        if found is not None and has_begun(found):
            progress = await progress_under_way(found, batches, batch)
            display.show(progress, await batches.retrying(batch.id))
        if progress != seen:
            seen = progress
            workers.news()
        elif workers.is_due:
            await workers.look(found)
        await meanwhile()

    async def ask() -> None:
        """Show the progress that the batch itself reports, while the ledger is down."""
        is_answered, progress = await progress_of(run.handle, QUERY_TIMEOUT)
        if is_answered:
            workers.news()
        if progress is not None:
            display.show(progress, 0)

    async def watch() -> None:
        while True:
            began = monotonic()
            try:
                await look()
            except LedgerUnavailable:
                await ask()
            await asyncio.sleep(max(_POLL_SECONDS, _REST * (monotonic() - began)))

    watching = asyncio.create_task(watch())
    ending = asyncio.create_task(outcome_of(run.handle))
    try:
        await asyncio.wait({watching, ending}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        outcome = await ending
    finally:
        for task in (watching, ending):
            task.cancel()
        await asyncio.gather(watching, ending, return_exceptions=True)
    with contextlib.suppress(LedgerUnavailable):
        await look()
    return outcome


async def progress_of(
    handle: Handle, within: timedelta = LAST_QUERY_TIMEOUT
) -> tuple[bool, BatchProgress | None]:
    """Return the batch's own progress. None if it does not answer or has not begun."""
    try:
        told = await handle.query("progress", rpc_timeout=within)
    except (RPCError, WorkflowQueryFailedError, WorkflowQueryRejectedError):
        return False, None
    return True, None if told is None else BatchProgress.model_validate(told)


async def progress_under_way(
    found: WorkflowExecutionDescription, batches: BatchStore, batch: Batch
) -> BatchProgress:
    """Return the batch's progress according to the ledger and to the workflow's memo."""
    progress = await recorded_progress(batches, batch)
    running = len(await batches.left_running(batch.id))
    paused = (await found.memo()).get(PAUSED)
    pause = None if paused is None else BatchPause.model_validate(paused)
    return progress.model_copy(update={"running": running, "paused": pause})


async def recorded_progress(batches: BatchStore, batch: Batch) -> BatchProgress:
    """Return the batch's progress in the ledger, which does not count running rows as ended."""
    counts = await batches.counts(batch.id)
    sums = counts.model_dump(exclude={"pending", "ended"})
    return BatchProgress(rows=batch.rows, running=0, **sums)


async def act_on(client: Client, batch_id: str, update: str, actor: str, reason: str | None) -> None:
    """Pause or resume a batch. Raises `CommandFailed` if that is impossible, or no worker answered."""
    run = await find_run(client, batch_id)
    if run is None or not run.is_running:
        raise CommandFailed(f"batch {batch_id!r} is not running")
    await send_update(run.handle, update, {"actor": actor, "reason": reason})


def outcome_in(batch: Batch) -> Outcome:
    """Return how a batch ended that Temporal no longer has."""
    if batch.state is BatchState.COMPLETED:
        return Outcome()
    kind = {BatchState.FAILED: "TaskFailed", BatchState.CANCELED: "Canceled"}.get(batch.state, "NotRunning")
    return Outcome(error_type=kind, message=f"the batch is {batch.state}, and Temporal no longer has it")
