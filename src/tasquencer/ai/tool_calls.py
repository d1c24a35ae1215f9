"""Tool calls: what a model asks for, how that is carried out, and what the model reads about it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from tasquencer.ai.job import ChatMessage, FunctionCall, ToolCallMessage
from tasquencer.core.failure import FailureKind
from tasquencer.core.retry import MOST_RETRIES, RetryOn, RetryRecipe
from tasquencer.core.validation import LONGEST_SECONDS, FilledText, Interval, Seconds, Whole
from tasquencer.core.work_item import WorkItem, WorkItemState

__all__ = [
    "MAXIMUM_TOOL_RESULT_BYTES",
    "TOOL_KIND",
    "OnToolFailure",
    "ToolCall",
    "ToolJob",
    "ToolOptions",
    "answered_calls",
    "as_content",
    "assistant_message",
    "is_approval",
    "is_approved",
    "is_tool_call",
    "is_turn",
    "later_choice",
    "not_approved",
    "tool_lineages",
    "tool_message",
]

TOOL_KIND: Final = "tool"
"""The `kind` in the payload of a work item that calls a tool."""

MAXIMUM_TOOL_RESULT_BYTES = 256 * 1024
"""Bytes of what a tool returns, as JSON. The model reads all of it in each turn that follows."""

_NAME_LENGTH = 64

_Name = Annotated[FilledText, Field(max_length=200)]

_TOOL_CALL = re.compile(r"(?:.+/)?turn-\d+/[^/]+", re.DOTALL)


class OnToolFailure(StrEnum):
    """What follows when a tool call has failed for the last time."""

    TELL_MODEL = "tell_model"
    """The model reads why, and decides what to do."""
    FAIL_TASK = "fail_task"
    """The task fails."""


class ToolOptions(BaseModel):
    """How the calls of a tool are carried out. The worker adds it to each call that a model asks for.

    Attributes:
        max_retries: Retries of one call, 0 to 1,000; each is a work item of its own.
        initial_interval_seconds: The first backoff; each one is twice the one before.
        timeout_seconds: How long one attempt may take.
        on_failure: What follows the last failure.
        requires_approval: A person approves or rejects each call before it is made.
        approval_timeout_seconds: How long a call may wait for that; None: any time.
        reminder_seconds: How long it waits before its reminder; None: there is none.
        reminder_activity: The activity that sends the reminder; it gets a `Reminder`. None: it is only shown.
        reminder_task_queue: The task queue of that activity; None: the task's.
    """

    model_config = ConfigDict(frozen=True)
    leaves_out_defaults: ClassVar[bool] = True

    max_retries: Annotated[Whole, Field(ge=0, le=MOST_RETRIES)] = 0
    initial_interval_seconds: Interval = 1.0
    timeout_seconds: Annotated[Seconds, Field(le=LONGEST_SECONDS)] = 60.0
    on_failure: OnToolFailure = OnToolFailure.TELL_MODEL
    requires_approval: bool = False
    approval_timeout_seconds: Seconds | None = 604_800.0
    reminder_seconds: Seconds | None = None
    reminder_activity: _Name | None = None
    reminder_task_queue: _Name | None = None

    @model_validator(mode="after")
    def _reminds_of_something(self) -> Self:
        if self.reminder_activity is not None and self.reminder_seconds is None:
            raise ValueError("reminder_activity: only with a reminder")
        if self.reminder_task_queue is not None and self.reminder_activity is None:
            raise ValueError("reminder_task_queue: only with a reminder_activity")
        return self

    def recipe(self) -> RetryRecipe:
        """How one call is retried."""
        return RetryRecipe(
            max_retries=self.max_retries,
            initial_interval=timedelta(seconds=self.initial_interval_seconds),
            retry_on=RetryOn.TRANSIENT,
        )


class ToolCall(BaseModel):
    """A tool call that a model asks for, with what the worker knows about the tool.

    Attributes:
        id: Names the call in the conversation; unique within an answer.
        name: The tool's, as the model wrote it.
        arguments: JSON, as the model wrote it.
        problem: Why the call cannot be made: no such tool, wrong arguments. The model reads it.
        options: How the call is carried out.
    """

    model_config = ConfigDict(frozen=True)
    leaves_out_defaults: ClassVar[bool] = True

    id: str
    name: str
    arguments: str
    problem: str | None = None
    options: ToolOptions = ToolOptions()


class ToolJob(BaseModel):
    """What one attempt at a tool call has to do: the payload of its work item.

    Attributes:
        kind: `tool`.
        arguments: JSON, as the model wrote it.
        idempotency_key: The same for all attempts at this call. Give it to services that know such keys.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["tool"] = TOOL_KIND
    tool: str
    arguments: str
    call_id: str
    idempotency_key: str


def tool_lineages(turn: str, calls: Sequence[ToolCall]) -> list[str]:
    """The lineages of the calls of one turn, from that of the turn.

    `turn-2/refund`, then `turn-2/refund-2` for a second one.
    """
    names: dict[str, None] = {}
    for call in calls:
        plain = name = re.sub(r"[^A-Za-z0-9_.-]", "_", call.name[:_NAME_LENGTH])
        number = 1
        while name in names:
            number += 1
            name = f"{plain}-{number}"
        names[name] = None
    return [f"{turn}/{name}" for name in names]


def is_tool_call(work_item: WorkItem) -> bool:
    """Return whether it is an attempt at a tool call of an agent."""
    return _TOOL_CALL.fullmatch(work_item.lineage) is not None


def is_approval(work_item: WorkItem) -> bool:
    """Return whether it is the wait for the approval of a tool call."""
    turn, slash, rest = work_item.lineage.rpartition("/")
    return rest == "approval" and bool(slash) and _TOOL_CALL.fullmatch(turn) is not None


def is_turn(work_item: WorkItem) -> bool:
    """Return whether it is an attempt at a model turn."""
    return not is_tool_call(work_item) and not is_approval(work_item)


def later_choice(choice: str | None) -> str | None:
    """Return the tool choice of later turns. A tool that must be called would be called for ever."""
    return choice if choice in (None, "auto", "none") else "auto"


def assistant_message(text: str, calls: Sequence[ToolCall]) -> ChatMessage:
    """The model's own message, as the next turn's conversation holds it."""
    return ChatMessage(
        role="assistant",
        content=text or None,
        tool_calls=[
            ToolCallMessage(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
            for call in calls
        ],
    )


def is_approved(asked: WorkItem) -> bool:
    """Return whether a person has approved the call, from the last work item of its approval."""
    return isinstance(asked.result, dict) and asked.result.get("decision") == "approve"


def not_approved(asked: WorkItem, reason: str | None) -> str:
    """Return why a call was not made, for the model.

    Args:
        asked: The last work item of its approval, which is not an approval.
        reason: The reason of that work item's end.
    """
    if isinstance(asked.result, dict):
        return f"The call was rejected by a person: {asked.result.get('comments')}"
    if asked.failure is not None and asked.failure.kind == FailureKind.TIMED_OUT:
        return "The call was not made: no decision came in time"
    why = reason or asked.state if asked.failure is None else asked.failure.message
    return f"The call was not made: its approval was ended ({why})"


def tool_message(call: ToolCall, ended: WorkItem, not_made: str | None = None) -> ChatMessage:
    """What the model reads about a call that has ended.

    Args:
        call: The call.
        ended: Its last work item.
        not_made: Why the call was not made; None if it was.
    """
    if not_made is not None:
        content = not_made
    elif ended.state is WorkItemState.COMPLETED:
        content = as_content(ended.result)
    elif ended.failure is not None:
        content = f"The call failed: {ended.failure.message}"
    else:
        content = "The call was canceled."
    return ChatMessage(role="tool", tool_call_id=call.id, content=content)


def as_content(result: JsonValue) -> str:
    """What a tool returned, as the text that the model reads."""
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    return text or '""'


def answered_calls(raw: Iterable[Any]) -> list[ToolCall]:
    """The tool calls in a completion's message, as far as they can be read.

    Providers differ: arguments come as text or as an object, ids are missing or not unique.

    Raises:
        ValueError: one of them names no function.
    """
    calls: list[ToolCall] = []
    used: set[str] = set()
    for number, one in enumerate(raw, 1):
        function = one.get("function") if isinstance(one, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise ValueError(f"tool call {number} names no function")
        given = function.get("arguments")
        arguments = given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False)
        known = one.get("id")
        identifier = known if isinstance(known, str) and known and known not in used else f"call-{number}"
        while identifier in used:
            identifier += "-again"
        used.add(identifier)
        try:
            calls.append(ToolCall(id=identifier, name=name, arguments=arguments or "{}"))
        except ValidationError as error:  # a lone surrogate
            raise ValueError(f"tool call {number} is not valid text") from error
    return calls
