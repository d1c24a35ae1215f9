"""Reads a completion from JSON or from server-sent events, because some gateways always stream."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tasquencer.ai.provider.reply import MOST_VALUES, Reply, has_too_many_values, nests_too_deeply

__all__ = ["Unreadable", "completion_in"]

_DECODER = json.JSONDecoder(strict=False)
_DATA = "data:"
_OTHER_FIELDS = ("event:", "id:", "retry:", ":")
_DONE = re.compile(r"\[?DONE\]?")
_LAST_OF_A_RESPONSE = tuple(f"response.{end}" for end in ("completed", "incomplete", "failed", "cancelled"))
_BLANK = re.compile(r"\s*")


class Unreadable(Exception):
    """The body is not a completion. The message describes it.

    Attributes:
        broke_off: True if it is the beginning of something readable.
    """

    def __init__(self, what: str, *, broke_off: bool = False) -> None:
        super().__init__(what)
        self.broke_off = broke_off


def completion_in(reply: Reply) -> object:
    """Return the JSON value of the body. Server-sent events are put together first.

    Raises:
        Unreadable: the body is neither JSON nor server-sent events.
    """
    text = reply.text.lstrip()
    if text.startswith((_DATA, *_OTHER_FIELDS)):
        return _from_events(text)
    _limit_values(reply.body)
    _limit_levels(text)
    value, end = _decoded(text, 0)
    rest = text[end:].strip().removeprefix(_DATA).strip()
    if rest and not _DONE.fullmatch(rest):
        raise Unreadable("malformed JSON")
    return value


def _limit_values(body: bytes) -> None:
    if has_too_many_values(body):
        raise Unreadable(f"JSON that has more than {MOST_VALUES:,} values")


def _limit_levels(text: str) -> None:
    if nests_too_deeply(text):
        raise Unreadable("JSON that is nested too deeply")


def _decoded(text: str, at: int) -> tuple[object, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except ValueError:
        what = "malformed JSON" if text[at:].strip() else "an empty body"
        raise Unreadable(what, broke_off=True) from None


def _from_events(text: str) -> object:
    """Return a whole completion among the events, or an error, or else the combined chunks."""
    chunks: list[dict[str, Any]] = []
    other: object = None
    is_done = begun = False
    for event in _events(text):
        if event is None:
            is_done = True
        elif _is_chunk(event):
            chunks.append(event)
        elif isinstance(event, dict) and (event.get("choices") or event.get("error")):
            return event
        elif isinstance(event, dict) and isinstance(event.get("response"), dict):
            if event.get("type") in _LAST_OF_A_RESPONSE:
                return event["response"]
            begun = True
        else:
            other = event
    if begun:
        raise Unreadable("server-sent events that break off", broke_off=True)
    if not chunks:
        if other is None:
            raise Unreadable("server-sent events without a completion", broke_off=not is_done)
        return other
    completion = _merged(chunks)
    (choice,) = completion["choices"]
    if not is_done and choice.get("finish_reason") is None and not completion.get("error"):
        raise Unreadable("server-sent events that break off", broke_off=True)
    return completion


def _events(text: str) -> Iterator[Any]:
    """Return the JSON values of the events in order, with None for the end marker of the stream."""
    payload = []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if line.startswith(_OTHER_FIELDS):
            continue
        if len(line) > MOST_VALUES:
            _limit_values(line.encode(errors="replace"))
        payload.append(line.removeprefix(_DATA))
    data = "\n".join(payload)  # a value may span several lines, and a line may hold several values
    _limit_levels(data)
    at = _after_blanks(data, 0)
    while at < len(data):
        if done := _DONE.match(data, at):
            yield None
            at = done.end()
        elif data.startswith(_DATA, at):
            at += len(_DATA)
        elif data[at] in "{[":
            try:
                value, at = _decoded(data, at)
            except Unreadable as problem:
                if problem.broke_off:
                    raise Unreadable("server-sent events that break off", broke_off=True) from None
                raise
            yield value
        else:  # a keep-alive that is not JSON
            end = data.find("\n", at)
            at = len(data) if end < 0 else end
        at = _after_blanks(data, at)


def _after_blanks(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _is_chunk(event: object) -> bool:
    if not isinstance(event, dict) or not isinstance(event.get("choices"), list):
        return False
    choices = event["choices"]
    return not choices or (isinstance(choices[0], dict) and isinstance(choices[0].get("delta"), dict))


def _merged(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the chunks of a stream together to a completion. Only the first choice counts."""
    completion: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    parts: list[object] = []
    refusal = ""
    calls: dict[object, dict[str, Any]] = {}
    for chunk in chunks:
        completion |= {name: chunk[name] for name in _KEPT if chunk.get(name) is not None}
        found = [one for one in chunk["choices"] if isinstance(one, dict) and not one.get("index")]
        for one in found[:1]:
            choice |= {name: value for name, value in one.items() if value is not None}
            delta: Any = one.get("delta")
            if not isinstance(delta, dict):
                continue
            content = delta.get("content")
            if isinstance(content, str):
                parts.append({"type": "text", "text": content})
            elif isinstance(content, list):
                parts += content
            if isinstance(delta.get("refusal"), str):
                refusal += delta["refusal"]
            _add_tool_calls(calls, delta.get("tool_calls"))
    choice["message"] = {"content": parts, "refusal": refusal or None}
    if calls:
        choice["message"]["tool_calls"] = list(calls.values())
    return completion | {"choices": [choice]}


def _add_tool_calls(calls: dict[object, dict[str, Any]], parts: object) -> None:
    """Add a chunk's parts to the tool calls under way: the arguments come in pieces."""
    for part in parts if isinstance(parts, list) else ():
        function = part.get("function") if isinstance(part, dict) else None
        if not isinstance(function, dict):
            continue
        index = part.get("index")
        known = index if isinstance(index, int) else (part.get("id") or len(calls))
        call = calls.setdefault(known, {"function": {"name": "", "arguments": ""}})
        call["id"] = call.get("id") or part.get("id")
        whole = call["function"]
        if isinstance(function.get("name"), str):
            whole["name"] = whole["name"] or function["name"]
        arguments = function.get("arguments")
        if isinstance(arguments, str) and isinstance(whole["arguments"], str):
            whole["arguments"] += arguments
        elif arguments is not None:
            whole["arguments"] = arguments


_KEPT = ("id", "model", "usage", "error")
