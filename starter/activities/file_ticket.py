"""Filing a ticket. Call your own ticket system here."""

from __future__ import annotations

from temporalio import activity


@activity.defn
async def file_ticket(ticket: dict[str, str]) -> str:
    """File the ticket and return its number.

    An exception is a failed work item, and the task makes the next attempt. The id of the work item is the
    activity's id: send it along if your ticket system can recognize a repeated request.
    """
    activity.logger.info("a ticket for %s: %s", ticket["team"], ticket["text"])
    return f"{ticket['team']}-{activity.info().activity_id[:8]}"
