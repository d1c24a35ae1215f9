"""The work items of an agent: model turns, tool calls and approvals. Their lineages tell which is which.

`main` or `turn-2` is a turn, `turn-2/refund` a tool call, `turn-2/refund/approval` its approval. In a call of
`ask` and in a fan-out a name comes first: `ask-1/turn-2`, `prompt-3/turn-2/refund`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import JsonValue

from tasquencer.ai.answer import parse_answer
from tasquencer.ai.job import MAXIMUM_CONVERSATION_BYTES
from tasquencer.ai.record import ai_job_record
from tasquencer.ai.request import AgentOptions
from tasquencer.ai.review import parse_decision
from tasquencer.ai.tool_calls import is_approval, is_turn
from tasquencer.ai.tools import ToolError, as_result
from tasquencer.core.entries import DomainRecord
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.hooks import LineageRules, retry_by_recipe
from tasquencer.core.lineage import MAIN_LINEAGE
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.work_item import WorkItem

__all__ = [
    "APPROVAL",
    "RESULTS_BYTES",
    "TOOL",
    "TOOL_RULES",
    "agent_record",
    "agent_result",
    "approval_lineage",
    "turn_lineage",
]

RESULTS_BYTES = 3 * MAXIMUM_CONVERSATION_BYTES + 256 * 1024
"""Bytes of results that an agent's task carries along: those of the longest conversation, in any alphabet."""

TOOL: Final = "tool"
"""The kind of such lineages."""


def turn_lineage(request: AgentOptions, name: str | None, number: int) -> str:
    """The lineage of a turn.

    Args:
        request: What is asked. Without tools there is only one turn.
        name: That of the conversation. None: the task has only one.
        number: From 1.
    """
    if request.tools is None:
        return MAIN_LINEAGE if name is None else name
    return f"turn-{number}" if name is None else f"{name}/turn-{number}"


def approval_lineage(tool_call: str) -> str:
    """The lineage of the approval of a tool call, from that of the call."""
    return f"{tool_call}/approval"


def agent_record(work_item: WorkItem, recipe: RetryRecipe) -> DomainRecord | None:
    """The row of `ai_jobs` for a model turn. Tool calls and approvals have none."""
    return ai_job_record(work_item, recipe) if is_turn(work_item) else None


APPROVAL: Final = "approval"
"""The kind of approvals in a call of `ask` and in a fan-out, where they take no place of a call."""

TOOL_RULES: Mapping[str, LineageRules] = {
    TOOL: LineageRules(retry_by_recipe, agent_record),
    APPROVAL: LineageRules(retry_by_recipe, agent_record, takes_place=False),
}
"""Of tool calls whose failure the model reads, and of approvals: the task's policy does not count them."""


def agent_result(work_item: WorkItem, result: JsonValue) -> JsonValue:
    """A result that an operator gives: an answer, what a tool returns, or a decision.

    Raises:
        InvalidRequest: it is not what the work item needs.
    """
    if is_turn(work_item):
        return parse_answer(result)
    if is_approval(work_item):
        return parse_decision(result)
    try:
        return as_result(result)
    except ToolError as error:
        raise InvalidRequest([f"result: {error}"]) from None
