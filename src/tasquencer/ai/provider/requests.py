"""The body of a request to a provider: what a job asks for, in the words of the provider's API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tasquencer.ai.job import AiJob, ChatMessage
from tasquencer.ai.strict_schema import strict_form

__all__ = ["chat_body", "responses_body"]

_SCHEMA_NAME = "output"
_NO_TOOLS: Mapping[str, Any] = MappingProxyType({})


def chat_body(
    job: AiJob,
    model: str,
    limit_field: str,
    tools: Mapping[str, Any] = _NO_TOOLS,
    *,
    takes_schemas: bool = True,
) -> dict[str, Any]:
    """The body of a request to `/chat/completions`.

    Args:
        job: What is asked for.
        model: The model's name, as the provider knows it.
        limit_field: The name of the field that caps the output.
        tools: The fields that offer tools.
        takes_schemas: Whether the provider takes a JSON Schema. Else an instruction asks for it.
    """
    messages = [message.as_sent() for message in _instructed(job, takes_schemas=takes_schemas)]
    body: dict[str, Any] = {
        **(job.extra_body or {}),
        "model": model,
        "messages": messages,
        "stream": False,  # some gateways stream unless they are asked not to
    }
    given = {
        "temperature": job.temperature,
        limit_field: job.max_output_tokens,
        "top_p": job.top_p,
        "seed": job.seed,
        "stop": job.stop,
        "reasoning_effort": job.reasoning_effort,
    }
    body |= {name: value for name, value in given.items() if value is not None}
    if job.output_schema is not None and takes_schemas:
        body["response_format"] = {"type": "json_schema", "json_schema": _schema(job)}
    return {**body, **tools}


def responses_body(
    job: AiJob, model: str, tools: Mapping[str, Any] = _NO_TOOLS, *, takes_schemas: bool = True
) -> dict[str, Any]:
    """The body of a request to `/responses`. Nothing is stored at the provider.

    Args:
        job: What is asked for. `seed` and `stop` go along, though not every provider knows them there.
        model: The model's name, as the provider knows it.
        tools: The fields that offer tools, as for chat completions.
        takes_schemas: As for `chat_body`.
    """
    inputs = [item for one in _instructed(job, takes_schemas=takes_schemas) for item in _inputs(one)]
    extra = job.extra_body or {}
    body: dict[str, Any] = {"store": False, **extra, "model": model, "input": inputs, "stream": False}
    given = {
        "temperature": job.temperature,
        "max_output_tokens": job.max_output_tokens,
        "top_p": job.top_p,
        "seed": job.seed,
        "stop": job.stop,
    }
    body |= {name: value for name, value in given.items() if value is not None}
    if job.reasoning_effort is not None:
        reasoning = extra.get("reasoning")
        body["reasoning"] = {
            **(reasoning if isinstance(reasoning, dict) else {}),
            "effort": job.reasoning_effort,
        }
    if job.output_schema is not None and takes_schemas:
        text = extra.get("text")
        text_options = text if isinstance(text, dict) else {}
        body["text"] = {**text_options, "format": {"type": "json_schema", **_schema(job)}}
    return {**body, **_flat_tools(tools)}


def _schema(job: AiJob) -> dict[str, Any]:
    schema = job.output_schema or {}
    strict = strict_form(schema)
    return {
        "name": _SCHEMA_NAME,
        "schema": schema if strict is None else strict,
        "strict": strict is not None,
    }


def _instructed(job: AiJob, *, takes_schemas: bool) -> list[ChatMessage]:
    """The messages, with an instruction for a provider that takes no JSON Schema."""
    if job.output_schema is None or takes_schemas:
        return job.messages
    schema = json.dumps(job.output_schema, ensure_ascii=False)
    said = f"Answer with one JSON value and nothing else. It must satisfy this JSON Schema: {schema}"
    return [ChatMessage(role="system", content=said), *job.messages]


def _inputs(message: ChatMessage) -> list[dict[str, Any]]:
    """The items of the Responses API that a message is."""
    if message.role == "tool":
        content = message.content
        output = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        return [{"type": "function_call_output", "call_id": message.tool_call_id, "output": output}]
    items: list[dict[str, Any]] = []
    if message.content is not None:
        items.append({"role": message.role, "content": _content(message)})
    return items + [
        {
            "type": "function_call",
            "call_id": call.id,
            "name": call.function.name,
            "arguments": call.function.arguments,
        }
        for call in message.tool_calls or []
    ]


def _content(message: ChatMessage) -> Any:
    """Text, or its parts in the names of the Responses API."""
    if not isinstance(message.content, list):
        return message.content
    return [_part(part, is_answer=message.role == "assistant") for part in message.content]


def _part(part: Any, *, is_answer: bool) -> Any:
    if part.get("type") == "text":
        return {**part, "type": "output_text" if is_answer else "input_text"}
    if part.get("type") == "image_url":
        image = part.get("image_url")
        named = image if isinstance(image, dict) else {"url": image}
        detail = {"detail": named["detail"]} if "detail" in named else {}
        return {"type": "input_image", "image_url": named.get("url"), **detail}
    return part


def _flat_tools(tools: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that offer tools: the Responses API has no object `function` inside."""
    flat = dict(tools)
    if isinstance(tools.get("tools"), list):
        flat["tools"] = [{"type": "function", **one["function"]} for one in tools["tools"]]
    choice = tools.get("tool_choice")
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        flat["tool_choice"] = {"type": "function", "name": choice["function"].get("name")}
    return flat
