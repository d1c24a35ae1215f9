"""The answers a scripted provider can give: good ones, and every kind of bad one we know.

Each function here makes an `Answer`; `tests.support.provider` serves them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tasquencer.devkit.http_server import Exchange

__all__ = [
    "ANSWERS",
    "Answer",
    "Hold",
    "closed",
    "content_filter",
    "empty_text",
    "error_in_200",
    "html",
    "huge",
    "insufficient_quota",
    "malformed_json",
    "no_choices",
    "ok",
    "rate_limited",
    "raw",
    "refusal",
    "reset",
    "slow",
    "stall",
    "status",
    "stream_without_finish",
    "tool_call",
    "tools",
    "truncated",
]

Body = Mapping[str, Any]
"""The request's JSON body."""


@dataclass(frozen=True)
class Answer:
    """How one request is answered; `name` is for messages only."""

    name: str
    give: Callable[[Exchange, Body], Awaitable[None]]

    def __repr__(self) -> str:
        return f"<Answer {self.name}>"


class Hold:
    """Holds an answer back until the test releases it."""

    def __init__(self) -> None:
        self._released = asyncio.Event()

    def release(self) -> None:
        self._released.set()

    async def wait(self) -> None:
        await self._released.wait()


def raw(
    content: bytes,
    *,
    code: int = 200,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """These bytes as the body."""

    async def give(exchange: Exchange, body: Body) -> None:
        await exchange.respond(code, [("content-type", content_type), *(headers or {}).items()], content)

    return Answer(f"{code} {content_type}", give)


def ok(
    text: str | None = "Hello!",
    *,
    usage: tuple[int, int] | None = (11, 7),
    finish_reason: str | None = "stop",
    model: str | None = None,
    request_id: str | None = "req_scripted",
    refusal: str | None = None,
    headers: Mapping[str, str] | None = None,
    calls: Mapping[str, Any] | None = None,
    details: tuple[int, int] | None = None,
) -> Answer:
    """A chat completion (or, if the request wants a stream, its chunks).

    `usage` is input and output tokens, None sends none; `details` are those from the cache and for reasoning;
    `model` defaults to the requested one; `request_id` is sent as `x-request-id`; `calls` are tools to call,
    with their arguments.
    """
    sent = dict(headers or {}) | ({"x-request-id": request_id} if request_id else {})

    async def give(exchange: Exchange, body: Body) -> None:
        if body.get("stream"):
            await _stream(exchange, body, text or "", finish_reason, usage, model, sent, calls)
            return
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": refusal}
        if calls:
            message["tool_calls"] = _tool_calls(calls)
        choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
        completion = _completion(body, "chat.completion", [choice], usage, model)
        if details is not None:
            completion["usage"] |= {
                "prompt_tokens_details": {"cached_tokens": details[0]},
                "completion_tokens_details": {"reasoning_tokens": details[1]},
            }
        await exchange.respond(
            200, [("content-type", "application/json"), *sent.items()], json.dumps(completion).encode()
        )

    return Answer("ok", give)


def tools(*calls: tuple[str, Any], text: str | None = None, usage: tuple[int, int] = (20, 5)) -> Answer:
    """A completion that calls tools: names and arguments (JSON values, or text that is sent as it is)."""

    async def give(exchange: Exchange, body: Body) -> None:
        as_text = [(name, one if isinstance(one, str) else json.dumps(one)) for name, one in calls]
        called = [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": written,
                },
            }
            for number, (name, written) in enumerate(as_text)
        ]
        message = {"role": "assistant", "content": text, "tool_calls": called}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": None}
        completion = _completion(body, "chat.completion", [choice], usage, None)
        await exchange.respond(200, [("content-type", "application/json")], json.dumps(completion).encode())

    return Answer("tool calls", give)


def tool_call(name: str, arguments: Mapping[str, Any], **more: Any) -> Answer:
    """The model wants a tool to be called; `more` as for `ok`."""
    more = {"finish_reason": "tool_calls"} | more
    return ok(None, calls={name: arguments}, **more)


def status(
    code: int, body: Mapping[str, Any] | str | None = None, *, headers: Mapping[str, str] | None = None
) -> Answer:
    """Any status with a JSON body, an HTML body (a str) or OpenAI's own error shape (None)."""
    if isinstance(body, str):
        return raw(body.encode(), code=code, content_type="text/html", headers=headers)
    error = {"message": f"scripted status {code}", "type": "scripted", "param": None, "code": None}
    return raw(json.dumps({"error": error} if body is None else body).encode(), code=code, headers=headers)


def rate_limited(retry_after: str | None = None, *, headers: Mapping[str, str] | None = None) -> Answer:
    """429; `retry_after` is sent word for word as Retry-After."""
    error = {
        "message": "Rate limit reached",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    sent = dict(headers or {}) | ({"retry-after": retry_after} if retry_after is not None else {})
    return status(429, {"error": error}, headers=sent)


def insufficient_quota() -> Answer:
    """429 because the money is spent, as OpenAI says it."""
    message = "You exceeded your current quota, please check your plan and billing details."
    error = {"message": message, "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}
    return status(429, {"error": error})


def error_in_200(message: str = "Provider returned error", code: int | str = 502) -> Answer:
    """Status 200 with an error for a body, as some gateways do."""
    return status(200, {"error": {"message": message, "code": code}})


def html(code: int = 200) -> Answer:
    """A web page where JSON should be."""
    return status(code, "<!DOCTYPE html><html><body><h1>Bad gateway</h1></body></html>")


def malformed_json() -> Answer:
    """Status 200, content type JSON, and a body that stops being JSON half way."""
    return raw(b'{"id": "chatcmpl-1", "object": "chat.completion", "choices": [{"index": 0, "mess')


def no_choices() -> Answer:
    """A completion without a choice."""
    return _built(lambda body: _completion(body, "chat.completion", [], (11, 0), None), "no choices")


def empty_text(text: str | None = "") -> Answer:
    """A completion that says nothing: an empty text, blanks, or null."""
    return ok(text)


def refusal(text: str = "I cannot help with that.") -> Answer:
    """The model refuses, in the field made for it."""
    return ok(None, refusal=text)


def content_filter() -> Answer:
    """The provider's filter stopped the answer."""
    return ok("", finish_reason="content_filter")


def truncated(promised_bytes: int = 1000) -> Answer:
    """A content-length that the body does not reach before the connection closes."""

    async def give(exchange: Exchange, body: Body) -> None:
        await exchange.start(
            200, [("content-type", "application/json"), ("content-length", str(promised_bytes))]
        )
        await exchange.send(b'{"id": "chatcmpl-1"')
        exchange.close()

    return Answer("truncated", give)


def reset() -> Answer:
    """The connection is reset (RST) after the request, before any answer."""

    async def give(exchange: Exchange, body: Body) -> None:
        exchange.reset()

    return Answer("reset", give)


def closed() -> Answer:
    """The connection is closed (FIN) after the request, before any answer."""

    async def give(exchange: Exchange, body: Body) -> None:
        exchange.close()

    return Answer("closed", give)


def stall(hold: Hold | None = None, then: Answer | None = None) -> Answer:
    """Say nothing until `hold` is released or the client leaves, then answer `then` (default `ok()`)."""
    held = hold or Hold()
    after = then or ok()

    async def give(exchange: Exchange, body: Body) -> None:
        await held.wait()
        await after.give(exchange, body)

    return Answer("stall", give)


def slow(text: str = "Hello!", *, pause_seconds: float = 0.05, pieces: int = 10) -> Answer:
    """A good answer that drips: headers at once, then `pieces` parts with a pause before each."""

    async def give(exchange: Exchange, body: Body) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        content = json.dumps(_completion(body, "chat.completion", [choice], (11, 7), None)).encode()
        await exchange.start(
            200, [("content-type", "application/json"), ("content-length", str(len(content)))]
        )
        size = -(-len(content) // pieces)
        for start in range(0, len(content), size):
            await asyncio.sleep(pause_seconds)
            await exchange.send(content[start : start + size])
        await exchange.finish()

    return Answer("slow", give)


def huge(size_bytes: int = 5_000_000) -> Answer:
    """A good answer whose text has this many bytes."""
    return ok("x" * size_bytes)


def stream_without_finish(text: str = "Hel") -> Answer:
    """A stream that ends in good order but without a finish reason."""
    return ok(text, finish_reason=None)


ANSWERS: Mapping[str, Callable[..., Answer]] = {
    maker.__name__: maker
    for maker in (
        closed,
        content_filter,
        empty_text,
        error_in_200,
        html,
        huge,
        insufficient_quota,
        malformed_json,
        no_choices,
        ok,
        rate_limited,
        refusal,
        reset,
        slow,
        stall,
        status,
        stream_without_finish,
        truncated,
    )
}
"""By name, for scripts in JSON."""


def _built(build: Callable[[Body], Mapping[str, Any]], name: str) -> Answer:
    async def give(exchange: Exchange, body: Body) -> None:
        await exchange.respond(200, [("content-type", "application/json")], json.dumps(build(body)).encode())

    return Answer(name, give)


def _completion(
    body: Body, kind: str, choices: list[dict[str, Any]], usage: tuple[int, int] | None, model: str | None
) -> dict[str, Any]:
    completion: dict[str, Any] = {
        "id": "chatcmpl-scripted",
        "object": kind,
        "created": 1_700_000_000,
        "model": model or body.get("model"),
        "choices": choices,
    }
    if usage is not None:
        completion["usage"] = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": sum(usage),
        }
    return completion


def _tool_calls(calls: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
        for name, given in calls.items()
    ]


async def _stream(
    exchange: Exchange,
    body: Body,
    text: str,
    finish_reason: str | None,
    usage: tuple[int, int] | None,
    model: str | None,
    headers: Mapping[str, str],
    calls: Mapping[str, Any] | None = None,
) -> None:
    await exchange.start(200, [("content-type", "text/event-stream"), *headers.items()])

    async def event(choices: list[dict[str, Any]], tokens: tuple[int, int] | None = None) -> None:
        chunk = _completion(body, "chat.completion.chunk", choices, tokens, model)
        await exchange.send(f"data: {json.dumps(chunk)}\n\n".encode())

    for piece in re.findall(r"\S*\s*", text):
        delta = {"role": "assistant", "content": piece}
        await event([{"index": 0, "delta": delta, "finish_reason": None}])
    if calls:
        said = [{"index": number} | call for number, call in enumerate(_tool_calls(calls))]
        delta = {"role": "assistant", "tool_calls": said}
        await event([{"index": 0, "delta": delta, "finish_reason": None}])
    if finish_reason is not None:
        await event([{"index": 0, "delta": {}, "finish_reason": finish_reason}])
    if usage is not None and (body.get("stream_options") or {}).get("include_usage"):
        await event([], usage)
    await exchange.send(b"data: [DONE]\n\n")
    await exchange.finish()
