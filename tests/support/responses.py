"""A scripted provider's chat completions in the form of the Responses API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tasquencer.devkit.http_server import Exchange

__all__ = ["RespondingExchange", "as_response"]

_STATUSES = {
    "length": ("incomplete", "max_output_tokens"),
    "content_filter": ("incomplete", "content_filter"),
}


class RespondingExchange:
    """An exchange that answers a chat completion as the response that says the same."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exchange, name)

    async def respond(self, code: int, headers: Sequence[tuple[str, str]], content: bytes) -> None:
        await self._exchange.respond(code, headers, as_response(content))


def as_response(content: bytes) -> bytes:
    """The same answer as a response; what is no chat completion stays as it is."""
    try:
        completion = json.loads(content)
    except ValueError:
        return content
    if not isinstance(completion, dict) or not isinstance(completion.get("choices"), list):
        return content
    choice = (completion.pop("choices") or [None])[0]
    completion["object"] = "response"
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        completion |= {"output": [], "status": "completed"}
        return json.dumps(completion).encode()
    status, reason = _STATUSES.get(str(choice.get("finish_reason")), ("completed", None))
    completion |= {"status": status, "incomplete_details": reason and {"reason": reason}}
    completion["output"] = [{"type": "reasoning", "summary": []}, *_items(choice["message"])]
    usage = completion.get("usage")
    if isinstance(usage, dict):
        names = {"prompt": "input", "completion": "output"}
        for old, new in names.items():
            for end in ("_tokens", "_tokens_details"):
                if old + end in usage:
                    usage[new + end] = usage.pop(old + end)
    return json.dumps(completion).encode()


def _items(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    parts = [{"type": "output_text", "text": content}] if isinstance(content, str) else content or []
    if message.get("refusal"):
        parts = [*parts, {"type": "refusal", "refusal": message["refusal"]}]
    said = [{"type": "message", "role": "assistant", "content": parts}] if parts else []
    called = message.get("tool_calls") or []
    return said + [{"type": "function_call", "call_id": call["id"], **call["function"]} for call in called]
