"""Reads an answer of the Responses API (`/responses`) as a chat completion: one judgement serves both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["as_completion", "is_response"]

_FINISHES = {"completed": "stop", "failed": "error", "cancelled": "cancelled", "incomplete": "incomplete"}
"""By status of a response, the finish reason that means the same."""

_INCOMPLETE = {"max_output_tokens": "length", "max_tokens": "length", "content_filter": "content_filter"}
"""By the reason why a response is incomplete."""


def is_response(answer: Mapping[str, Any]) -> bool:
    """Return whether an answer's JSON is that of the Responses API."""
    return answer.get("object") == "response" or isinstance(answer.get("output"), list)


def as_completion(response: Mapping[str, Any]) -> dict[str, Any]:
    """The chat completion that says the same: id, model, usage, error, and one choice if there is output."""
    kept = ("id", "model", "usage", "error", "metadata", "message", "code", "detail")
    completion = {name: response[name] for name in kept if response.get(name) is not None}
    status = response.get("status")
    items = response.get("output")
    if not isinstance(items, list) or (completion.get("error") and not items):
        return completion
    parts: list[Any] = []
    calls = []
    for item in items:
        if not isinstance(item, dict):
            continue
        if item.get("type", "message") == "message":
            content = item.get("content")
            parts += content if isinstance(content, list) else [{"type": "output_text", "text": content}]
        elif item.get("type") == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            identity = item.get("call_id") or item.get("id")
            calls.append({"id": identity, "type": "function", "function": function})
    if not items and status in ("completed", None):
        return completion  # no output at all: as a completion without choices
    message = {"role": "assistant", "content": parts, **({"tool_calls": calls} if calls else {})}
    finish = _finish(response, status)
    completion["choices"] = [{"index": 0, "message": message, "finish_reason": finish}]
    return completion


def _finish(response: Mapping[str, Any], status: object) -> str | None:
    if status == "incomplete":
        details = response.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        return _INCOMPLETE.get(str(reason), str(reason) if reason else "incomplete")
    if status in ("in_progress", "queued"):
        return "interrupted"
    return _FINISHES.get(str(status)) if status is not None else None
