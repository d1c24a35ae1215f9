"""Filing a ticket. Call your own ticket system here."""

from __future__ import annotations

from temporalio import activity


@activity.defn
async def file_ticket(ticket: dict[str, str]) -> str:
    """File the ticket and return its number.

    After an exception the work item has failed, and the task makes the next attempt. The activity's id is the
    id of the work item. Send it with the request if your ticket system can recognize repeated requests.
    """
    activity.logger.info("a ticket for %s: %s", ticket["team"], ticket["text"])
    return f"{ticket['team']}-{activity.info().activity_id[:8]}"
