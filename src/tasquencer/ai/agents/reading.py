"""What both frameworks' readers share: the shape of a step, and careful access to foreign JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from tasquencer.ai.provider.usage import ReportedUsage

__all__ = ["AgentStep", "Answered", "Asked", "as_list", "as_object", "as_text", "rendered"]


@dataclass(frozen=True)
class Asked:
    """What a model request asks.

    Attributes:
        messages: The conversation, as role and content.
        model: None where the request leaves it to the framework's default.
    """

    messages: Sequence[Mapping[str, JsonValue]]
    model: str | None = None

    @property
    def prompt(self) -> str:
        """The conversation as one text: the sole user message, or else all messages as JSON."""
        asked = [one for one in self.messages if one.get("role") not in ("system", "developer")]
        content = asked[0].get("content") if len(asked) == 1 else None
        return content if isinstance(content, str) else rendered(list(self.messages))


@dataclass(frozen=True)
class Answered:
    """What a model answered.

    Attributes:
        text: The text, or the tool calls as JSON.
        provider_url: The provider's base URL, for its prices.
    """

    text: str
    usage: ReportedUsage
    model: str | None = None
    finish_reason: str | None = None
    provider_request_id: str | None = None
    provider_url: str | None = None


@dataclass(frozen=True)
class AgentStep:
    """What one activity of an agent does.

    Attributes:
        name: For people: "assistant: model turn 3", "assistant: tool weather".
        asked: Of a model request what it asks; None: it is something else.
        read: Reads the result of a model request; None: it cannot be read.
    """

    name: str
    asked: Asked | None = None
    read: Callable[[JsonValue], Answered | None] | None = None


def as_object(value: object) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: object) -> Sequence[Any]:
    """The value if it is a JSON list, else an empty one."""
    return value if isinstance(value, list) else ()


def as_text(value: object) -> str | None:
    """The value if it is a text that is not empty."""
    return value if isinstance(value, str) and value else None


def rendered(value: object) -> str:
    """The value as JSON in one line."""
    return json.dumps(value, ensure_ascii=False)
