"""Three questions to a model, side by side. Each attempt at each of them is a work item."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Literal

from pydantic import BaseModel
from temporalio import workflow
from temporalio.worker import Worker

from tasquencer import TasquencerPlugin, ask, connect
from tasquencer.ai import AiCalls
from tasquencer.settings import Settings
from tasquencer.sql import SqlLedger

Language = Literal["English", "German", "other"]


class Label(BaseModel):
    """What to do with a ticket."""

    team: Literal["billing", "shipping", "support"]
    urgent: bool


@workflow.defn
class ReadTicket:
    """Input: the text of a ticket. Result: its label, its language and a summary."""

    @workflow.run
    async def run(self, text: str) -> dict[str, str | bool]:
        """Ask all three, and wait for all three."""
        label, language, summary = await asyncio.gather(
            ask(f"Who takes this ticket, and is it urgent?\n\n{text}", output=Label, max_retries=5),
            ask(f"Which language is this?\n\n{text}", output=Language),
            ask(f"Summarize this in one sentence.\n\n{text}", deadline_seconds=600),
        )
        return {"team": label.team, "urgent": label.urgent, "language": language, "summary": summary}


async def main(text: str) -> None:
    """Run a worker, and one task on it."""
    plugin = TasquencerPlugin(SqlLedger(Settings.from_environment(os.environ).database_url), calls=AiCalls())
    client = await connect(plugins=[plugin])
    async with Worker(client, task_queue="tickets", workflows=[ReadTicket]):
        print(await client.execute_workflow("ReadTicket", text, id="ticket-1", task_queue="tickets"))


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "My invoice is wrong, and I need it today."))
