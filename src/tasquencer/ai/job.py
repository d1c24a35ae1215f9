"""The input of one AI call: the payload of an AI work item."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, ValidationInfo, model_validator

from tasquencer.core.validation import FilledText, RequestModel, Text, keepable

__all__ = [
    "MAXIMUM_CONVERSATION_BYTES",
    "MOST_MESSAGES",
    "MOST_TOOL_CALLS",
    "AiJob",
    "ChatMessage",
    "FunctionCall",
    "ToolCallMessage",
    "conversation_text",
]

MOST_MESSAGES = 2_000
"""Maximum messages of a conversation."""

MAXIMUM_CONVERSATION_BYTES = 768 * 1024
"""Maximum bytes of a growing conversation as JSON. The state that a task carries along when it continues as
new needs the rest of a Temporal payload."""

MOST_TOOL_CALLS = 32
"""Tools that one answer of a model may call."""


def _content(value: JsonValue, info: ValidationInfo) -> JsonValue:
    if value is None and info.data.get("tool_calls"):
        return value
    is_parts = isinstance(value, list) and all(isinstance(part, dict) for part in value)
    if not value or not (isinstance(value, str) or is_parts):
        raise ValueError("must be text or a list of content parts (JSON objects), and not empty")
    return keepable(value)


class FunctionCall(RequestModel):
    """Which tool a model calls, and with what.

    Attributes:
        arguments: JSON, as the model wrote it.
    """

    name: FilledText
    arguments: Text


class ToolCallMessage(RequestModel):
    """One tool call in an assistant's message, as the chat completions API takes it."""

    id: FilledText
    type: Literal["function"] = "function"
    function: FunctionCall


_ToolCalls = Annotated[list[ToolCallMessage], Field(min_length=1, max_length=MOST_TOOL_CALLS)]


class ChatMessage(RequestModel):
    """One message of a conversation, in the format of the chat completions API.

    Attributes:
        content: Text, or a list of content parts (text, images …) that is passed on unchanged. None: an
            assistant's message that only calls tools.
        tool_calls: The tools that an assistant's message calls.
        tool_call_id: Which call a tool's message answers.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Annotated[list[ToolCallMessage], Field(min_length=1, max_length=MOST_TOOL_CALLS)] | None = (
        None
    )
    tool_call_id: FilledText | None = None
    content: Annotated[JsonValue, AfterValidator(_content), Field(validate_default=True)] = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("tool_calls: only in a message with role assistant")
        if (self.tool_call_id is None) == (self.role == "tool"):
            wanted = "required" if self.role == "tool" else "only"
            raise ValueError(f"tool_call_id: {wanted} in a message with role tool")
        return self

    def as_sent(self) -> dict[str, JsonValue]:
        """The message as a provider takes it."""
        message: dict[str, JsonValue] = {"role": self.role, "content": self.content}
        if self.tool_calls is not None:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class AiJob(RequestModel):
    """What one AI call has to do: the payload of an AI work item.

    Attributes:
        messages: The conversation; the last message is what is to be answered.
        model: None takes the worker's default.
        output_schema: A JSON Schema that the answer must satisfy; the answer's text is then JSON.
        tools: Names of the worker's tools that the model may call.
        tool_choice: `auto`, `none`, `required`, or the name of the tool to call; None: as the provider does.
        parallel_tool_calls: Whether one answer may call several tools; None: as the provider does.
        top_p, seed, stop, reasoning_effort: As the provider understands them.
        extra_body: Further fields of the request to the provider.
        fallback_models: The models that later attempts ask, in this order; see `tasquencer.ai.ladder`.
        fallback_on: The kinds of failure after which they do; None: `FALLBACK_ON`.
        feedback: Whether a later attempt tells the model what was wrong with an invalid output.
        feedback_messages: How many messages, at the end, tell it about the attempt before.
        metadata: Kept with the work item, not sent to the provider.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: str | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    output_schema: dict[str, JsonValue] | None = None
    tools: list[str] | None = None
    tool_choice: str | None = None
    parallel_tool_calls: bool | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    reasoning_effort: str | None = None
    extra_body: dict[str, JsonValue] | None = None
    fallback_models: list[str] | None = None
    fallback_on: list[str] | None = None
    feedback: bool = True
    feedback_messages: int = 0
    metadata: dict[str, str] = Field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The job as one text: the only user message, or else the conversation as JSON."""
        return conversation_text([message.as_sent() for message in self.messages])


def conversation_text(messages: list[dict[str, Any]]) -> str:
    """Return the conversation as one text: the only user message, or else all messages as JSON."""
    asked = [message for message in messages if message["role"] not in ("system", "developer")]
    if len(asked) == 1 and isinstance(text := asked[0].get("content"), str):
        return text
    return json.dumps(messages, ensure_ascii=False)
