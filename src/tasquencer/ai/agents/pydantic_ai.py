"""Activities of Pydantic AI's `TemporalAgent` and `TemporalDurability`.

Their types are stable, because running workflows depend on them: `agent__<name>__model_request`,
`agent__<name>__toolset__<id>__call_tool` and so on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import JsonValue

from tasquencer.ai.agents.reading import AgentStep, Answered, Asked, as_list, as_object, as_text, rendered
from tasquencer.ai.provider.reply import token_count
from tasquencer.ai.provider.usage import ReportedUsage

__all__ = ["answered", "step_of"]

_TYPE = re.compile(
    r"agent__(?P<agent>.+?)__(?:(?P<model>model_request(?:_stream)?|model_compact_messages)"
    r"|(?P<other>model_cancel_suspended_response|event_stream_handler)"
    r"|(?:toolset|mcp_server|dynamic_toolset|[a-z]+_toolset)__(?P<toolset>.+)__"
    r"(?P<tool>call_tool|validate_args|get_tools|get_instructions)"
    r"|capability__(?P<capability>.+))"
)

_OTHERS = {
    "model_cancel_suspended_response": "cancel a suspended response",
    "event_stream_handler": "event handler",
}

_ROLES = {"system-prompt": "system", "user-prompt": "user", "tool-return": "tool", "retry-prompt": "user"}


def step_of(activity_type: str, argument: JsonValue) -> AgentStep | None:
    """The step, or None if it is no activity of Pydantic AI.

    Args:
        argument: The activity's first argument.
    """
    found = _TYPE.fullmatch(activity_type)
    if found is None:
        return None
    agent, given = found["agent"], as_object(argument)
    if found["model"]:
        name = (
            "compact messages" if found["model"] == "model_compact_messages" else f"model turn {_turn(given)}"
        )
        asked = Asked(list(_messages(as_list(given.get("messages")))), as_text(given.get("model_id")))
        return AgentStep(f"{agent}: {name}", asked, answered)
    if found["tool"]:
        return AgentStep(f"{agent}: {_tool(found['tool'], found['toolset'], as_text(given.get('name')))}")
    if found["capability"]:
        return AgentStep(f"{agent}: {found['capability'].replace('__', '.')}")
    return AgentStep(f"{agent}: {_OTHERS[found['other']]}")


def _tool(operation: str, toolset: str, tool: str | None) -> str:
    if operation == "get_tools":
        return f"list tools of {toolset}"
    if operation == "get_instructions":
        return f"instructions of {toolset}"
    called = tool or f"of {toolset}"
    return f"tool {called}" if operation == "call_tool" else f"check arguments of tool {called}"


def _turn(given: Mapping[str, Any]) -> int:
    step = token_count(as_object(given.get("serialized_run_context")).get("run_step"))
    if step:
        return step
    kinds = [as_object(one).get("kind") for one in as_list(given.get("messages"))]
    return 1 + kinds.count("response")


def _messages(messages: Any) -> Iterator[dict[str, JsonValue]]:
    is_first = True
    for message in map(as_object, messages):
        if is_first and (instructions := as_text(message.get("instructions"))) is not None:
            yield {"role": "system", "content": instructions}
            is_first = False
        for part in map(as_object, as_list(message.get("parts"))):
            kind = part.get("part_kind")
            if kind == "tool-call":
                call = {"name": part.get("tool_name"), "arguments": part.get("args")}
                yield {"role": "assistant", "tool_call": call}
            elif kind in _ROLES or kind == "text":
                said: dict[str, JsonValue] = {"role": _ROLES.get(str(kind), "assistant")}
                if kind == "tool-return":
                    said["name"] = part.get("tool_name")
                yield said | {"content": part.get("content")}


def answered(result: JsonValue) -> Answered | None:
    """The answer in a `ModelResponse`; None if the result is something else."""
    response = as_object(result)
    if response.get("kind") != "response":
        return None
    usage = as_object(response.get("usage"))
    counts = {name: token_count(usage.get(name)) for name in _COUNTS}
    is_reported = any(counts.values())
    return Answered(
        text=_text(as_list(response.get("parts"))),
        usage=ReportedUsage(
            input_tokens=counts["input_tokens"] if is_reported else None,
            output_tokens=counts["output_tokens"] if is_reported else None,
            cached_tokens=counts["cache_read_tokens"] or None,
            cache_write_tokens=counts["cache_write_tokens"] or None,
            reasoning_tokens=counts["output_reasoning_tokens"] or _reasoning(usage),
            reported_cost=_cost(usage.get("cost")),
        ),
        model=as_text(response.get("model_name")),
        finish_reason=as_text(response.get("finish_reason")),
        provider_request_id=as_text(response.get("provider_response_id")),
        provider_url=as_text(response.get("provider_url")),
    )


_COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_reasoning_tokens",
)


def _reasoning(usage: Mapping[str, Any]) -> int | None:
    return token_count(as_object(usage.get("details")).get("reasoning_tokens")) or None


def _cost(value: object) -> float | None:
    try:
        cost = float(value) if isinstance(value, str | int | float) else None
    except ValueError:
        return None
    return cost if cost is not None and 0 <= cost < 1_000_000 else None


def _text(parts: Any) -> str:
    parts = [as_object(part) for part in parts]
    texts = [part.get("content") for part in parts if part.get("part_kind") == "text"]
    if said := "".join(text for text in texts if isinstance(text, str)):
        return said
    calls = [
        {"tool": part.get("tool_name"), "arguments": part.get("args")}
        for part in parts
        if part.get("part_kind") == "tool-call"
    ]
    return rendered(calls) if calls else ""
