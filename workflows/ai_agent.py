"""The AI agent task: one prompt, answered by a model, every attempt a work item of its own."""

from __future__ import annotations

from typing import Any

from temporalio import workflow

from tasquencer.ai.answer import AiAgentResult, parse_answer
from tasquencer.ai.record import ai_job_record
from tasquencer.ai.request import parse_request
from tasquencer.temporal import Task, accept, answer

__all__ = ["AiAgentTask"]


# Outside the sandbox: it costs a third of a task's CPU time, and what it would catch, a workflow that is not
# deterministic, the linter's bans and the replay tests catch here.
@workflow.defn(name="AiAgentTask", sandboxed=False)
class AiAgentTask:
    """Input: the JSON object that `AiAgentRequest` describes. Result: `AiAgentResult`."""

    def __init__(self) -> None:
        self._task = Task(record=ai_job_record, result_of=lambda _, result: parse_answer(result))

    @workflow.run
    async def run(self, raw: Any = None) -> AiAgentResult:
        """Attempt until there is an answer, or the recipe or the deadline forbids another try."""
        request = accept(parse_request, raw)
        deadline = self._task.deadline_after(request.deadline_seconds)
        job = request.job()
        async for work_item in self._task.attempts(job, recipe=request.recipe(), deadline=deadline):
            async with work_item:
                work_item.complete(await answer(work_item, job, request, deadline))
        return AiAgentResult.of(self._task.completed(), self._task.work_items)
