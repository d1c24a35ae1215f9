"""The wait for a person's decision: it is shown in the Web UI, and sends one reminder."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import JsonValue
from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

from tasquencer.ai.review import Reminder, Review, first_line
from tasquencer.core.display_text import markdown_line
from tasquencer.core.wording import moment
from tasquencer.temporal.attempts import ActiveWorkItem
from tasquencer.temporal.run_books import note

__all__ = ["decided"]

_ONE_TRY = timedelta(minutes=1)
"""How long one try to send the reminder may take. Temporal retries until the review ends."""


async def decided(
    work_item: ActiveWorkItem,
    lineage: str,
    review: Review,
    activity: str | None = None,
    task_queue: str | None = None,
    waits: str | None = None,
) -> JsonValue:
    """Wait for a person's decision about the review, and remind once meanwhile.

    Args:
        work_item: The work item of the review. Call this in its `async with` block.
        lineage: The lineage of the review.
        review: What is to be decided, and within which time.
        activity: The activity that sends the reminder. None: the reminder is only shown.
        task_queue: The task queue of that activity. None means the task's.
        waits: Says in the Web UI who waits for what. None: the lineage waits for a decision.
    """
    waits = waits or f"{lineage} waits for a decision"
    reminding = asyncio.create_task(_remind(work_item.id, waits, review, activity, task_queue))
    limit = review.timeout_seconds
    try:
        return await work_item.outcome(None if limit is None else timedelta(seconds=limit), summary=waits)
    finally:
        reminding.cancel()


async def _remind(
    work_item_id: str,
    waits: str,
    review: Review,
    activity: str | None,
    task_queue: str | None,
) -> None:
    """Show that the review is waiting, and send one reminder. A failure of it is shown and logged."""
    since = workflow.now()
    due_at = review.due_at(since)
    shown = markdown_line(waits) + (f" until {moment(due_at)}" if due_at else "")
    note(work_item_id, f"{shown}: `tasq review`")
    if review.reminder_seconds is None:
        return
    await workflow.sleep(review.reminder_seconds, summary=f"{waits}: reminder")
    reminded = f"{shown}, reminded at {moment(workflow.now())}"
    note(work_item_id, f"{reminded}: `tasq review`")
    if activity is None:
        return
    reminder = Reminder(
        task_id=workflow.info().workflow_id,
        work_item_id=work_item_id,
        number=review.number or 1,
        first_line=first_line(review.draft),
        since=since,
        due_at=due_at,
    )
    try:
        await workflow.execute_activity(
            activity,
            reminder,
            task_queue=task_queue,
            start_to_close_timeout=_ONE_TRY,
            summary=f"{waits}: reminder",
        )
    except ActivityError as error:
        if not is_cancelled_exception(error):
            workflow.logger.warning("%s: the reminder failed: %s", waits, error.cause)
            note(work_item_id, f"{reminded}, in vain: `tasq review`")
