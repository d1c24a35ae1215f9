"""Activities of the OpenAI Agents SDK on Temporal (`temporalio-openai-agents`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from tasquencer.ai.agents.reading import AgentStep, Answered, Asked, as_list, as_object, as_text, rendered
from tasquencer.ai.provider.usage import ReportedUsage, usage_in

__all__ = ["RUN_HEADER", "answered", "step_of"]

RUN_HEADER = "__openai_span"
"""The header with which the framework sends the trace of an agent's run to an activity."""

_MODEL = ("invoke_model_activity", "invoke_model_activity_streaming")

_MCP = re.compile(
    r"(?:temporalio\.mcp\.)?(?P<server>.+)[.-](?P<operation>call-tool|list-tools|list-prompts|get-prompt"
    r"|list-resources|list-resource-templates|read-resource|server-session)(?:-v2)?"
)

_FINAL_EVENTS = ("response.completed", "response.incomplete", "response.failed")


def step_of(
    activity_type: str, argument: JsonValue, *, agent: str | None = None, is_in_agent_run: bool = False
) -> AgentStep | None:
    """The step, or None if it belongs to no agent.

    Args:
        argument: The activity's first argument.
        agent: The agent's name, where it is known: the activity does not get it.
        is_in_agent_run: An agent's run has started the activity. If it is no model request, it is a tool.
    """
    given = as_object(argument)
    before = f"{agent}: " if agent else ""
    if activity_type in _MODEL:
        asked = Asked(list(_messages(given)), as_text(given.get("model_name")))
        return AgentStep(f"{before}{_turn(given)}", asked, answered)
    found = _MCP.fullmatch(activity_type)
    if found is not None and (is_in_agent_run or activity_type.startswith("temporalio.mcp.")):
        tool = as_text(given.get("tool_name")) or as_text(given.get("name"))
        if found["operation"] == "call-tool" and tool:
            return AgentStep(f"{before}tool {tool}")
        return AgentStep(f"{before}{found['operation'].replace('-', ' ')} of {found['server']}")
    return AgentStep(f"{before}tool {activity_type}") if is_in_agent_run else None


def _turn(given: Mapping[str, Any]) -> str:
    if given.get("previous_response_id") or given.get("conversation_id"):
        return "model turn"  # the provider holds the turns before
    turns, was_model = 0, False
    for item in _items(given):
        is_model = _is_of_model(item)
        turns += is_model and not was_model
        was_model = is_model
    return f"model turn {turns + 1}"


def _items(given: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [as_object(item) for item in as_list(given.get("input"))]


def _is_of_model(item: Mapping[str, Any]) -> bool:
    if (role := item.get("role")) is not None:
        return bool(role == "assistant")
    kind = str(item.get("type") or "")
    return not (kind.endswith(("_output", "_response")) or kind in ("item_reference", "compaction"))


def _messages(given: Mapping[str, Any]) -> Iterator[dict[str, JsonValue]]:
    if (instructions := as_text(given.get("system_instructions"))) is not None:
        yield {"role": "system", "content": instructions}
    if (text := as_text(given.get("input"))) is not None:
        yield {"role": "user", "content": text}
    for item in _items(given):
        kind = item.get("type")
        if kind == "function_call":
            call = {"name": item.get("name"), "arguments": item.get("arguments")}
            yield {"role": "assistant", "tool_call": call}
        elif kind == "function_call_output":
            yield {"role": "tool", "content": item.get("output")}
        elif (role := as_text(item.get("role"))) is not None:
            yield {"role": role, "content": _plain(item.get("content"))}


def _plain(content: JsonValue) -> JsonValue:
    """A content of one text part is that text."""
    parts = as_list(content)
    if len(parts) == 1 and (text := as_text(as_object(parts[0]).get("text"))) is not None:
        return text
    return content


def answered(result: JsonValue) -> Answered | None:
    """The answer in a `ModelResponse`, or in the events of a stream; None if the result is something else."""
    if isinstance(result, list):
        return _streamed(result)
    response = as_object(result)
    if not isinstance(response.get("output"), list):
        return None
    return Answered(
        text=_text(as_list(response["output"])),
        usage=_usage(response),
        provider_request_id=as_text(response.get("request_id")) or as_text(response.get("response_id")),
    )


def _streamed(events: Sequence[JsonValue]) -> Answered | None:
    for event in reversed(events):
        given = as_object(event)
        if given.get("type") in _FINAL_EVENTS:
            response = as_object(given.get("response"))
            reason = as_text(as_object(response.get("incomplete_details")).get("reason"))
            return Answered(
                text=_text(as_list(response.get("output"))),
                usage=_usage(response),
                model=as_text(response.get("model")),
                finish_reason=reason or as_text(response.get("status")),
                provider_request_id=as_text(response.get("id")),
            )
    return None


def _usage(response: Mapping[str, Any]) -> ReportedUsage:
    usage = as_object(response.get("usage"))
    if not any(usage.get(name) for name in ("input_tokens", "output_tokens", "total_tokens")):
        return ReportedUsage()  # zeros stand for a provider that reports nothing
    return usage_in({"usage": dict(usage)}, {})


def _text(output: Sequence[Any]) -> str:
    items = [as_object(item) for item in output]
    parts = [as_object(part) for item in items for part in as_list(item.get("content"))]
    if said := "".join(text for part in parts if (text := as_text(part.get("text"))) is not None):
        return said
    calls = [
        {"tool": item.get("name"), "arguments": item.get("arguments")}
        for item in items
        if item.get("type") == "function_call"
    ]
    return rendered(calls) if calls else ""
