"""The AI agent task: a model answers a prompt, with tools if it may use some; each attempt is a work item."""

from __future__ import annotations

from typing import Any

from temporalio import workflow

from tasquencer.ai.agent import RESULTS_BYTES, TOOL_RULES, agent_record, agent_result
from tasquencer.ai.answer import AiAgentResult
from tasquencer.ai.ladder import climb
from tasquencer.ai.request import parse_request
from tasquencer.temporal import Agent, Task, accept

__all__ = ["AiAgentTask"]


# Outside the sandbox, which costs a third of a task's CPU time. The linter's bans and the replay tests find
# workflows that are not deterministic.
@workflow.defn(name="AiAgentTask", sandboxed=False)
class AiAgentTask:
    """Input: the JSON object that `AiAgentRequest` describes. Result: `AiAgentResult`."""

    def __init__(self) -> None:
        self._task = Task(
            on_work_item_state_changed=climb,
            record=agent_record,
            result_of=agent_result,
            rules=TOOL_RULES,
            results_bytes=RESULTS_BYTES,
        )

    @workflow.run
    async def run(self, raw: Any = None) -> AiAgentResult:
        """Ask the model, call the tools that it asks for, and ask again, until it answers."""
        request = accept(parse_request, raw)
        agent = Agent(self._task, request, self._task.deadline_after(request.deadline_seconds))
        while (turn := agent.next_turn()) is not None:
            async for work_item in turn.attempts:
                async with work_item:
                    work_item.complete(await agent.answer(work_item))
            await agent.use_tools(turn)
        return agent.result()
