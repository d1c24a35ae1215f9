"""A provider's answer from the network, with a limited size and tolerant parsing.

OpenAI-compatible servers differ in every part of their answers. All code that reads answers uses this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from pydantic import JsonValue

__all__ = [
    "MOST_VALUES",
    "Clean",
    "Reply",
    "ReplyEnd",
    "as_text",
    "excerpt",
    "has_too_many_values",
    "nests_too_deeply",
    "one_line",
    "request_id",
    "token_count",
]

Clean = Callable[[str], str]
"""Makes a foreign text safe to record. See `tasquencer.ai.provider.redaction.Redactor`."""

_EXCERPT_LENGTH = 200
_MESSAGE_LENGTH = 1_000
_IDENTIFIER_LENGTH = 200
_READ_LENGTH = 20_000
"""Characters of a text that are searched for a message, many times the kept length."""

MOST_VALUES = 100_000
"""Maximum values of an answer's JSON. A chat answer has about twenty. Eight megabytes of empty lists would
take the worker seconds and hundreds of megabytes to read."""

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[,{\[]', re.DOTALL)
"""A character that each value of a JSON text has at least once, outside of strings."""

_DEEPEST = 500
"""Maximum levels of lists and objects in a provider's JSON. Python's JSON parser has a limit too, but it
differs between Python versions."""

_NESTING = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
"""A character that begins or ends a level, outside of strings."""

_MOST_TOKENS = 2**31 - 1
"""The largest number in an INTEGER column. Larger ones are garbage."""


class ReplyEnd(StrEnum):
    """How the body of an answer ended."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    """The connection broke before the body was complete, or its encoding is broken."""
    OVERSIZED = "oversized"
    """The body is longer than the part that we read."""
    SHREDDED = "shredded"
    """The body has more parts than we read."""
    ENCODED = "encoded"
    """The body has a content encoding that we did not request, and is not read."""


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status_code: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    """The decoded body, or a part of it unless `end` is complete."""
    end: ReplyEnd = ReplyEnd.COMPLETE

    @property
    def text(self) -> str:
        """The body as text. Bytes that are not UTF-8 are replaced."""
        return self.body.decode("utf-8-sig", errors="replace")

    @property
    def encoding(self) -> str:
        """The content encoding that the answer names."""
        return self.headers.get("content-encoding", "")

    @property
    def is_html(self) -> bool:
        """True if the body is a web page, by its content type or its beginning."""
        return "html" in self.headers.get("content-type", "").lower() or self.text.lstrip()[:1] == "<"


def has_too_many_values(body: bytes) -> bool:
    """Return whether a JSON text has too many values to read it in reasonable time and memory."""
    if len(body) <= MOST_VALUES:
        return False
    return next(islice(_TOKEN.finditer(body), MOST_VALUES, None), None) is not None


def nests_too_deeply(text: str) -> bool:
    """Return whether the text, if it is JSON, has more levels of lists and objects than allowed."""
    if text.count("[") + text.count("{") <= _DEEPEST:
        return False
    depth = 0
    for token in _NESTING.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > _DEEPEST:
            return True
    return False


def request_id(reply: Reply, clean: Clean, completion: Mapping[str, object] | None = None) -> str | None:
    """Return the provider's id of the request, from its headers, or else the completion's id."""
    return (
        as_text(reply.headers.get("x-request-id"), clean)
        or as_text(reply.headers.get("request-id"), clean)
        or as_text((completion or {}).get("id"), clean)
    )


def as_text(value: object, clean: Clean) -> str | None:
    """Return a short foreign value (an id, a code, a model) as text, or None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    if isinstance(value, int) and abs(value) > _MOST_TOKENS:
        return None
    return one_line(str(value), clean, _IDENTIFIER_LENGTH) or None


def one_line(text: str, clean: Clean, length: int = _MESSAGE_LENGTH) -> str:
    """Return a foreign text as one line. It is cleaned first and then cut, so that no half key remains."""
    line = clean(" ".join(text.split())[:_READ_LENGTH])
    return line if len(line) <= length else line[: length - 1] + "…"


def token_count(value: JsonValue | object) -> int | None:
    """Return a number of tokens, or None if the value cannot be one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= _MOST_TOKENS else None


def excerpt(text: str, clean: Clean) -> str:
    """Return the beginning of any text as one line. For a web page, return its title or its words."""
    start = text.lstrip()
    if start[:1] == "<":
        title = re.search(r"(?i)<title[^<>]*>([^<]*)", start)
        start = title.group(1) if title else re.sub(r"<[^<>]*>", " ", start)
    return one_line(start, clean, _EXCERPT_LENGTH)
