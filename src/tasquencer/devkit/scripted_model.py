"""A scripted model: a real HTTP server that answers chat completions with what a script says.

For examples and trials that need neither a key nor a model. Each request takes the next reply; the last one
is repeated.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tasquencer.devkit.http_server import Exchange, HttpServer

__all__ = ["Refused", "Reply", "ScriptedModel", "ToolUse", "scripted_model"]


@dataclass(frozen=True)
class ToolUse:
    """A tool call that the model makes.

    Attributes:
        name: Of the tool.
        arguments: By parameter.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """An HTTP error in the place of an answer.

    Attributes:
        status: 429, 503 …
        headers: For example `{"retry-after": "1"}`.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


Reply = str | Sequence[ToolUse] | Refused
"""A text, tool calls, or an error."""


@dataclass
class ScriptedModel:
    """A running scripted model.

    Attributes:
        base_url: For `OPENAI_BASE_URL`.
        requests: The JSON bodies that it got, in order.
    """

    base_url: str
    requests: list[dict[str, Any]] = field(default_factory=list)


@asynccontextmanager
async def scripted_model(replies: Sequence[Reply]) -> AsyncIterator[ScriptedModel]:
    """Serve the replies on a free loopback port while the block runs."""

    async def answer(exchange: Exchange) -> None:
        body = json.loads(exchange.request.body or b"{}")
        reply = replies[min(len(model.requests), len(replies) - 1)]
        model.requests.append(body)
        if isinstance(reply, Refused):
            error = {"error": {"message": f"scripted status {reply.status}", "type": "scripted"}}
            await _send(exchange, reply.status, error, reply.headers)
        else:
            await _send(exchange, 200, _completion(body, reply, len(model.requests)), {})

    server = HttpServer(answer)
    async with server:
        model = ScriptedModel(f"{server.origin}/v1")
        yield model


async def _send(exchange: Exchange, status: int, content: object, headers: Mapping[str, str]) -> None:
    fields = [("content-type", "application/json"), *headers.items()]
    await exchange.respond(status, fields, json.dumps(content).encode())


def _completion(body: Mapping[str, Any], reply: str | Sequence[ToolUse], number: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply if isinstance(reply, str) else None}
    if not isinstance(reply, str):
        message["tool_calls"] = [
            {
                "id": f"call_{number}_{index}",
                "type": "function",
                "function": {"name": use.name, "arguments": json.dumps(dict(use.arguments))},
            }
            for index, use in enumerate(reply)
        ]
    asked = len(json.dumps(body.get("messages", [])))
    said = len(json.dumps(message))
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model", "scripted"),
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": "stop" if isinstance(reply, str) else "tool_calls",
            }
        ],
        # About four characters a token, as real models have it.
        "usage": {
            "prompt_tokens": asked // 4,
            "completion_tokens": said // 4,
            "total_tokens": (asked + said) // 4,
        },
    }
