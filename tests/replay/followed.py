"""A task that another workflow follows: none of the shipped ones does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio import workflow

from tasquencer import FollowUp, TaskEnd
from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.job import AiJob, ChatMessage
from tasquencer.temporal import Task

__all__ = ["FollowedTask", "FollowingTask"]


def _what_follows(end: TaskEnd) -> FollowUp | None:
    return FollowUp("FollowingTask", {"task": end.task_id})


@workflow.defn(sandboxed=False)
class FollowingTask:
    """Follows, and is done."""

    @workflow.run
    async def run(self, told: dict[str, Any]) -> None:
        """Do nothing."""


@workflow.defn(sandboxed=False)
class FollowedTask:
    """One call, then the end that is followed."""

    def __init__(self) -> None:
        self._task = Task(on_ended=_what_follows)

    @workflow.run
    async def run(self, request: dict[str, Any]) -> Any:
        """Attempt until there is an answer."""
        job = AiJob(messages=[ChatMessage(role="user", content=request["prompt"])])
        async for work_item in self._task.attempts(job):
            async with work_item:
                answer = await work_item.execute_activity(
                    "generate", job, start_to_close_timeout=timedelta(minutes=1), result_type=AiAnswer
                )
                work_item.complete(answer)
        return self._task.result()
