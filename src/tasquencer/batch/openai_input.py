"""The input lines of OpenAI's Batch API as rows.

The format is that of https://platform.openai.com/docs/guides/batch. A task can only give a text answer to a
chat conversation. Everything else is refused, because an answer that ignored a part of the request would
look right and be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from tasquencer.core.errors import InvalidRequest
from tasquencer.core.validation import unknown_fields
from tasquencer.core.wording import one_line

__all__ = ["is_openai_line", "request_in"]

_OF_THE_LINE = frozenset({"custom_id", "method", "url", "body", "failure"})

_MOST_PROBLEMS = 20

_CHAT = ("/v1/chat/completions", "/chat/completions", "/openai/v1/chat/completions")

_CARRIED_OUT = frozenset(
    {"model", "messages", "temperature", "metadata", "top_p", "seed", "stop", "reasoning_effort"}
)
_LIMITS = ("max_completion_tokens", "max_tokens")

_WITHOUT_EFFECT: dict[str, tuple[JsonValue, ...]] = {
    "n": (1,),
    "stream": (False,),
    "store": (False,),
    "logprobs": (False,),
    "top_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "stop": ([],),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
}
"""Fields that a task does not support, with the provider's default values, which are accepted."""


def is_openai_line(line: Mapping[str, JsonValue]) -> bool:
    """Return whether a line has the format of the Batch API."""
    return "body" in line or "custom_id" in line


def request_in(line: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the line's request as fields of `AiAgentRequest`. `InvalidRequest` names each wrong field."""
    body = line.get("body")
    problems = unknown_fields([name for name in line if name not in _OF_THE_LINE])
    if line.get("method") not in (None, "POST"):
        problems.append(f"method: must be POST, not {_shown(line['method'])}")
    if line.get("url") not in (None, *_CHAT):
        problems.append(f"url: must be /v1/chat/completions, not {_shown(line['url'])}")
    if not isinstance(body, dict):
        raise InvalidRequest([*problems, "body: must be a JSON object"])
    request, more = _request_in({name: value for name, value in body.items() if value is not None})
    if problems := [*problems, *more]:
        raise InvalidRequest(problems[:_MOST_PROBLEMS])
    return request


def _shown(value: JsonValue) -> str:
    return one_line(repr(value), 100)


def _request_in(body: Mapping[str, JsonValue]) -> tuple[dict[str, JsonValue], list[str]]:
    problems = []
    request: dict[str, JsonValue] = {}
    for name, value in body.items():
        if value in _WITHOUT_EFFECT.get(name, ()):
            continue
        if name == "response_format" and (schema := _schema_in(value)) is not None:
            request["output_schema"] = schema
        elif name in _CARRIED_OUT:
            request[name] = _without_nulls(value) if name == "messages" else value
        elif name not in _LIMITS:
            problems.append(f"body.{one_line(name, 100)}: cannot be carried out")
    limits = [body[name] for name in _LIMITS if name in body]
    if len(limits) == 2 and limits[0] != limits[1]:
        problems.append(f"body.{_LIMITS[0]}, body.{_LIMITS[1]}: give one of them, not both")
    if limits:
        request["max_output_tokens"] = limits[0]
    return request, problems


def _schema_in(response_format: JsonValue) -> JsonValue:
    """Return the JSON Schema that a `response_format` asks for; None if it asks for something else."""
    if not isinstance(response_format, dict) or response_format.get("type") != "json_schema":
        return None
    asked = response_format.get("json_schema")
    return asked.get("schema") if isinstance(asked, dict) else None


def _without_nulls(messages: JsonValue) -> JsonValue:
    if not isinstance(messages, list):
        return messages
    return [
        {name: value for name, value in message.items() if value is not None}
        if isinstance(message, dict)
        else message
        for message in messages
    ]
