"""The fan-out: many prompts in one task, each with its own attempts, under one policy."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from temporalio import workflow

from tasquencer.ai.answer import parse_answer
from tasquencer.ai.fan_out import AiFanOutResult, lineage_of, parse_fan_out
from tasquencer.ai.ladder import climb
from tasquencer.ai.record import ai_job_record
from tasquencer.core.errors import InvalidRequest
from tasquencer.temporal import Attempts, Task, accept, answer, job_of

__all__ = ["AiFanOutTask"]


@workflow.defn(name="AiFanOutTask", sandboxed=False)  # see AiAgentTask
class AiFanOutTask:
    """Input: the JSON object that `AiFanOutRequest` describes. Result: `AiFanOutResult`."""

    @workflow.init
    def __init__(self, raw: Any = None, *rest: Any) -> None:
        with contextlib.suppress(InvalidRequest):  # `run` reports it
            request = parse_fan_out(raw)
            self._task = Task(
                recipe=request.recipe(),
                policy=request.policy.decide(),
                on_work_item_state_changed=climb,
                record=ai_job_record,
                result_of=lambda _, result: parse_answer(result),
                concurrency=request.concurrency,
            )

    @workflow.run
    async def run(self, raw: Any = None, *rest: Any) -> AiFanOutResult:
        """Answer all prompts, or as many as the policy requires."""
        request, task = accept(parse_fan_out, [raw, *rest] if rest else raw), self._task
        deadline = task.deadline_after(request.deadline_seconds)

        async def carry_out(attempts: Attempts) -> None:
            async for work_item in attempts:
                async with work_item:
                    work_item.complete(await answer(work_item, job_of(work_item), request, deadline))

        # All of them begin before the first one can end, because the policy counts those that have begun.
        lineages = [
            task.attempts(job, lineage=lineage_of(index), deadline=deadline)
            for index, job in enumerate(request.jobs())
        ]
        await asyncio.gather(*map(carry_out, lineages))
        task.check()
        return AiFanOutResult.of(
            task.work_items, len(request.prompts), reads_output=request.output_schema is not None
        )
