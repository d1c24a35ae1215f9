"""What one AI call has to do: the payload of an AI work item."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue

from tasquencer.core.validation import RequestModel, keepable

__all__ = ["MOST_MESSAGES", "AiJob", "ChatMessage", "conversation_text"]

MOST_MESSAGES = 5_000
"""Messages of a conversation."""


def _content(value: JsonValue) -> JsonValue:
    is_parts = isinstance(value, list) and all(isinstance(part, dict) for part in value)
    if not value or not (isinstance(value, str) or is_parts):
        raise ValueError("must be text or a list of content parts (JSON objects), and not empty")
    return keepable(value)


class ChatMessage(RequestModel):
    """One message of a conversation, as the chat completions API takes it.

    Attributes:
        content: Text, or a list of content parts (text, images …) that is passed on as it is.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[JsonValue, AfterValidator(_content)]


class AiJob(RequestModel):
    """What one AI call has to do: the payload of an AI work item.

    Attributes:
        messages: The conversation; the last message is what is to be answered.
        model: None takes the worker's default.
        output_schema: A JSON Schema that the answer must satisfy; the answer's text is then JSON.
        metadata: Kept with the work item, not sent to the provider.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: str | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    output_schema: dict[str, JsonValue] | None = None
    metadata: dict[str, str] = Field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The job as one text: the sole user message, or else the conversation as JSON."""
        return conversation_text([message.model_dump() for message in self.messages])


def conversation_text(messages: list[dict[str, Any]]) -> str:
    """The conversation as one text: the sole user message, or else all messages as JSON."""
    asked = [message for message in messages if message["role"] not in ("system", "developer")]
    if len(asked) == 1 and isinstance(asked[0]["content"], str):
        return asked[0]["content"]
    return json.dumps(messages, ensure_ascii=False)
