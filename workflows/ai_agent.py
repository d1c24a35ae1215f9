"""The AI agent task: one prompt, answered by a model, every attempt a work item of its own."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from tasquencer.ai import CALL_MARGIN, AiAgentResult, AiAnswer, ai_job_record, parse_answer, parse_request
from tasquencer.temporal import Task, accept

__all__ = ["AiAgentTask"]


# Outside the sandbox: it costs a third of a task's CPU time, and what it would catch, a workflow that is not
# deterministic, the linter's bans and the replay tests catch here.
@workflow.defn(name="AiAgentTask", sandboxed=False)
class AiAgentTask:
    """Input: the JSON object that `AiAgentRequest` describes. Result: `AiAgentResult`."""

    def __init__(self) -> None:
        self._task = Task(record=ai_job_record, result_of=lambda _, result: parse_answer(result))

    @workflow.run
    async def run(self, raw: object = None) -> AiAgentResult:
        """Attempt until there is an answer, or the recipe or the deadline forbids another try."""
        request = accept(parse_request, raw)
        seconds = request.deadline_seconds
        deadline = None if seconds is None else self._task.started_at + timedelta(seconds=seconds)
        job = request.job()
        async for work_item in self._task.attempts(job, recipe=request.recipe(), deadline=deadline):
            async with work_item:
                time_limit = timedelta(seconds=request.attempt_timeout_seconds)
                if deadline is not None:
                    time_limit = min(time_limit, max(deadline - workflow.now(), _SHORTEST_CALL))
                answer = await work_item.execute_activity(
                    "generate",
                    job,
                    start_to_close_timeout=time_limit + CALL_MARGIN,
                    heartbeat_timeout=timedelta(seconds=request.heartbeat_timeout_seconds),
                    result_type=AiAnswer,
                )
                work_item.complete(answer)
        return AiAgentResult.of(self._task.completed(), attempts=len(self._task.work_items))


_SHORTEST_CALL = timedelta(seconds=1)
"""What is left of the deadline is at least this much for a call that may still begin."""
