"""The fan-out: many prompts in one task, each with its own attempts and tools, under one policy."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from temporalio import workflow

from tasquencer.ai.agent import TOOL_RULES, agent_record, agent_result
from tasquencer.ai.fan_out import AiFanOutResult, lineage_of, parse_fan_out
from tasquencer.ai.ladder import climb
from tasquencer.core.errors import InvalidRequest
from tasquencer.temporal import Agent, Task, Turn, accept

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
                record=agent_record,
                result_of=agent_result,
                rules=TOOL_RULES,
                concurrency=request.concurrency,
            )

    @workflow.run
    async def run(self, raw: Any = None, *rest: Any) -> AiFanOutResult:
        """Answer all prompts, or as many as the policy requires."""
        request, task = accept(parse_fan_out, [raw, *rest] if rest else raw), self._task
        deadline = task.deadline_after(request.deadline_seconds)

        async def carry_out(agent: Agent, turn: Turn | None) -> None:
            while turn is not None:
                async for work_item in turn.attempts:
                    async with work_item:
                        work_item.complete(await agent.answer(work_item))
                await agent.use_tools(turn)
                turn = agent.next_turn()

        agents = [
            Agent(task, request, deadline, job=job, name=lineage_of(index))
            for index, job in enumerate(request.jobs())
        ]
        # All of them begin before the first one can end, because the policy counts those that have begun.
        first_turns = [agent.next_turn() for agent in agents]
        await asyncio.gather(*map(carry_out, agents, first_turns))
        task.check()
        return AiFanOutResult.of(
            task.work_items,
            len(request.prompts),
            reads_output=request.output_schema is not None,
            groups=task.groups,
        )
