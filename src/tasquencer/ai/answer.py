"""The result of an AI call, and the result of an AI agent task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from pydantic_core import PydanticSerializationError, from_json, to_json

from tasquencer.ai.tool_calls import ToolCall
from tasquencer.ai.usage import Usage, total_usage
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.validation import LARGEST_INTEGER, keepable, problems_of, unknown_fields
from tasquencer.core.work_item import WorkItem, WorkItemState

__all__ = [
    "MAXIMUM_ANSWER_BYTES",
    "AgentResult",
    "AiAgentResult",
    "AiAnswer",
    "ToolCallResult",
    "output_in",
    "parse_answer",
    "returned_answer",
]

MAXIMUM_ANSWER_BYTES = 1_920 * 1024
"""Maximum bytes of an answer as JSON. An answer over Temporal's 2 MiB would leave the task stuck."""


class AiAnswer(Usage):
    """The answer of an AI call: the result of a completed AI work item.

    Attributes:
        model: The model that answered, if the provider names it, else the model that was asked.
        cached_tokens: The part of the input tokens that came from the provider's cache.
        reasoning_tokens: The part of the output tokens that is reasoning.
        latency_seconds: The time from sending the request to the end of the answer.
        tool_calls: The tools that the model calls instead of answering; the text may then be empty.
    """

    model_config = ConfigDict(frozen=True)
    leaves_out_defaults: ClassVar[bool] = True

    text: str
    model: str | None = None
    finish_reason: str | None = None
    provider_request_id: str | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    latency_seconds: float | None = None
    tool_calls: list[ToolCall] | None = None


class ToolCallResult(BaseModel):
    """What became of a tool call.

    Attributes:
        turn: The turn in which the model made it, from 1.
        work_item_id: Its last attempt; of a call that was not approved, the approval.
        state: Of that work item.
        attempts: How many work items it took; 0: it was not approved.
    """

    model_config = ConfigDict(frozen=True)

    turn: int
    tool: str
    work_item_id: str
    state: WorkItemState
    attempts: int


class AiAgentResult(Usage):
    """The result of an AI agent task.

    Attributes:
        work_item_id: The work item with the answer.
        attempts: The number of work items of the task.
        input_tokens, output_tokens, cost_usd: Those of the answer, that is of this work item only.
        total: Those of all attempts, failed ones included. None if a worker of an earlier release made the
        result.
        output: The text's JSON, if the request has an `output_schema`. Otherwise there is no such field.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    model: str | None
    finish_reason: str | None
    work_item_id: str
    attempts: int
    total: Usage | None = None
    output: JsonValue = None

    @model_serializer(mode="wrap")
    def _without_output(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        whole: dict[str, Any] = serialize(self)
        if self.output is None:
            del whole["output"]
        return whole

    @classmethod
    def of(
        cls, work_item: WorkItem, attempts: Sequence[WorkItem], *, reads_output: bool = False
    ) -> AiAgentResult:
        """The result that a completed AI work item gives, with all attempts at AI calls of its task.

        Args:
            work_item: The one with the answer.
            attempts: All of the task.
            reads_output: The answer's text is JSON.
        """
        answer = AiAnswer.model_validate(work_item.result)
        return cls(
            text=answer.text,
            model=answer.model,
            finish_reason=answer.finish_reason,
            work_item_id=work_item.id,
            attempts=len(attempts),
            **answer.usage.model_dump(),
            total=total_usage(attempts),
            output=output_in(answer.text) if reads_output else None,
        )


class AgentResult(AiAgentResult):
    """The result of an AI agent task with tools: its last answer.

    Attributes:
        turns: How many times the model was asked, retries left out.
        tool_calls: Of all turns, in the order in which they were made.
    """

    turns: int
    tool_calls: list[ToolCallResult]


def output_in(text: str) -> JsonValue:
    """The JSON in an answer's text. None if it is none: an operator may have given the answer."""
    try:
        read: JsonValue = from_json(text)
    except ValueError:
        return None
    return read


def parse_answer(raw: JsonValue) -> JsonValue:
    """Read the result of an AI work item that a person gave: `{"text": …}`, and other fields of `AiAnswer`.

    Raises:
        InvalidRequest: names each wrong field.
    """
    text = raw.get("text") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(text, str) or not text:
        raise InvalidRequest(['result: must be an object such as {"text": "…"}'])
    if "\x00" in text:
        raise InvalidRequest(["result.text: must not contain NUL characters"])
    if unknown := sorted(raw.keys() - AiAnswer.model_fields.keys()):
        raise InvalidRequest(unknown_fields(unknown, "result."))
    try:
        answer = AiAnswer.model_validate(raw)
    except ValidationError as error:
        raise InvalidRequest([f"result.{problem}" for problem in problems_of(error)]) from None
    _check_answer(answer, MAXIMUM_ANSWER_BYTES)
    kept: JsonValue = answer.model_dump(mode="json", exclude_defaults=True)
    return kept


_LATENCY_BYTES = 100
"""The latency is not known until the answer has been measured."""


def returned_answer(raw: object) -> AiAnswer:
    """Read the result of the activity `generate`, which may be a user's or that of a newer release.

    Raises:
        InvalidRequest: it is not an answer, or the ledger cannot hold it.
    """
    try:
        answer = AiAnswer.model_validate(raw)
    except ValidationError as error:
        raise InvalidRequest([f"result.{problem}" for problem in problems_of(error)]) from None
    _check_answer(answer, MAXIMUM_ANSWER_BYTES + _LATENCY_BYTES)
    return answer


def _check_answer(answer: AiAnswer, limit: int) -> None:
    try:
        written = to_json(answer)
    except PydanticSerializationError:  # not valid Unicode text
        written = b""
    if not written or rb"\u0000" in written:
        try:
            keepable(answer.model_dump())
        except ValueError as error:
            raise InvalidRequest([f"result: {error}"]) from None
    for name in (*Usage.model_fields, "cached_tokens", "reasoning_tokens", "latency_seconds"):
        value = getattr(answer, name)
        if value is not None and not 0 <= value <= LARGEST_INTEGER:
            raise InvalidRequest([f"result.{name}: must be a number from 0 to {LARGEST_INTEGER}"])
    size = len(written)
    if size > limit:
        raise InvalidRequest([f"result: has {size:,} bytes, the limit is {limit:,}"])
