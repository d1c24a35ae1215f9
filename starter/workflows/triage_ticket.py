"""An example task: a model chooses the team for a ticket, then the ticket is filed with that team."""

from __future__ import annotations

import json
from datetime import timedelta

from temporalio import workflow

from tasquencer import DomainRecord, RetryRecipe, Task, WorkItem
from tasquencer.ai import AiAnswer, AiJob, CallOptions, ChatMessage, ai_job_record
from tasquencer.temporal import answer

TEAMS = ("billing", "shipping", "support")
CHOICE = {"type": "object", "properties": {"team": {"enum": list(TEAMS)}}, "required": ["team"]}


def record_of(work_item: WorkItem, recipe: RetryRecipe) -> DomainRecord | None:
    """The AI call has a row in `ai_jobs`: model, tokens, cost. Filing the ticket has none."""
    return ai_job_record(work_item, recipe) if work_item.lineage == "choose" else None


@workflow.defn
class TriageTicket:
    """Input: the text of a ticket. Result: the team and the number of the filed ticket."""

    def __init__(self) -> None:
        self._task = Task(recipe=RetryRecipe(max_retries=5), record=record_of)

    @workflow.run
    async def run(self, text: str) -> dict[str, str]:
        """Choose, then file. Each attempt at either is a work item."""
        question = f"Which team takes this ticket: {', '.join(TEAMS)}? Answer as JSON.\n\n{text}"
        job = AiJob(messages=[ChatMessage(role="user", content=question)], output_schema=CHOICE)
        async for work_item in self._task.attempts(job, lineage="choose"):
            async with work_item:
                work_item.complete(await answer(work_item, job, CallOptions(), None))
        chosen = AiAnswer.model_validate(self._task.result("choose"))
        ticket = {"team": json.loads(chosen.text)["team"], "text": text}
        async for work_item in self._task.attempts(ticket, lineage="file"):
            async with work_item:
                number = await work_item.execute_activity(
                    "file_ticket", ticket, start_to_close_timeout=timedelta(seconds=30)
                )
                work_item.complete(number)
        return {"team": ticket["team"], "number": str(self._task.result("file"))}
