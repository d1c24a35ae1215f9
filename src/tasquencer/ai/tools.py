"""Tools: Python functions of the worker that a model may call.

A tool is a function with type hints and a docstring. Pydantic gives its JSON Schema, the docstring is its
description. Arguments are validated before the function runs.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar, overload

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model
from pydantic_core import PydanticSerializationError, to_jsonable_python

from tasquencer.ai.job import AiJob
from tasquencer.ai.provider.reply import nests_too_deeply
from tasquencer.ai.tool_calls import (
    MAXIMUM_TOOL_RESULT_BYTES,
    OnToolFailure,
    ToolCall,
    ToolOptions,
    as_content,
)
from tasquencer.core.errors import TasquencerError
from tasquencer.core.validation import keepable, problems_of

__all__ = [
    "FunctionTool",
    "ToolContext",
    "ToolError",
    "ToolSource",
    "WrongTool",
    "as_result",
    "by_name",
    "checked",
    "offered",
    "tool",
    "tool_fields",
]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_OPTIONS = "__tasquencer_tool__"
_MOST_ARGUMENTS_BYTES = 256 * 1024

_Tool = TypeVar("_Tool", bound=Callable[..., Any])


class WrongTool(TasquencerError):
    """A function that cannot be a tool."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"tool {name!r}: {problem}")


class ToolError(Exception):
    """Raise it in a tool: the call has failed, and the model reads the message.

    Args:
        message: What the model reads.
        retry: Whether another attempt may help, within the tool's retries.
    """

    def __init__(self, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.retry = retry


@dataclass(frozen=True)
class ToolContext:
    """What a tool may know about its call: give a parameter this type.

    Attributes:
        task_id: The task that makes the call: a Temporal workflow id.
        work_item_id: The attempt. Each retry has another one.
        attempt: 0 for the first try, k for retry k.
        idempotency_key: The same for all attempts at this call. Give it to services that know such keys.
    """

    task_id: str
    work_item_id: str
    attempt: int
    idempotency_key: str


class ToolSource(Protocol):
    """A tool as the AI call offers it to a model, and as it is called."""

    name: str
    options: ToolOptions

    def schema(self) -> dict[str, JsonValue]:
        """What a provider learns about it: `name`, `description`, `parameters`."""

    def problem_with(self, arguments: str) -> str | None:
        """Why it cannot be called with these arguments; None if it can."""

    def is_transient(self, error: Exception) -> bool:
        """Return whether another attempt may help after this error."""

    async def call(self, arguments: str, context: ToolContext) -> JsonValue:
        """Call it; the result as JSON. Raises what the tool raises."""


@dataclass(frozen=True)
class _Marked:
    options: ToolOptions
    retry_on: tuple[type[Exception], ...]
    name: str | None


@overload
def tool(function: _Tool, /) -> _Tool: ...


@overload
def tool(
    *,
    retries: int = 0,
    retry_on: tuple[type[Exception], ...] = (Exception,),
    initial_interval: timedelta = timedelta(seconds=1),
    timeout: timedelta = timedelta(minutes=1),
    on_failure: OnToolFailure = OnToolFailure.TELL_MODEL,
    requires_approval: bool = False,
    approval_timeout: timedelta | None = timedelta(days=7),
    reminder: timedelta | None = None,
    reminder_activity: str | None = None,
    reminder_task_queue: str | None = None,
    name: str | None = None,
) -> Callable[[_Tool], _Tool]: ...


def tool(
    function: _Tool | None = None,
    /,
    *,
    retries: int = 0,
    retry_on: tuple[type[Exception], ...] = (Exception,),
    initial_interval: timedelta = timedelta(seconds=1),
    timeout: timedelta = timedelta(minutes=1),
    on_failure: OnToolFailure = OnToolFailure.TELL_MODEL,
    requires_approval: bool = False,
    approval_timeout: timedelta | None = timedelta(days=7),
    reminder: timedelta | None = None,
    reminder_activity: str | None = None,
    reminder_task_queue: str | None = None,
    name: str | None = None,
) -> _Tool | Callable[[_Tool], _Tool]:
    """Say how a function is called as a tool. The function itself stays as it is.

    A function without this decorator is a tool with the defaults. A call is tried once unless you allow
    retries, because a tool may have effects.

    Args:
        retries: Retries of one call, 0 to 1,000. Each is a work item of its own.
        retry_on: Exceptions after which another attempt may help. A timeout and the loss of the worker always
            qualify.
        initial_interval: The first backoff; each one is twice the one before.
        timeout: How long one attempt may take. A function that is not async runs on in its thread after it.
        on_failure: After the last failure: `tell_model` lets the model read why, `fail_task` fails the task.
        requires_approval: A person approves or rejects each call before it is made (`tasq review`).
        approval_timeout: How long a call may wait for that; None: any time.
        reminder: How long it waits before its reminder; None: there is none.
        reminder_activity: The activity that sends the reminder; it gets a `Reminder`. None: it is only shown.
        reminder_task_queue: The task queue of that activity; None: the task's.
        name: How the model calls it; None: the function's name.

    Raises:
        WrongTool: an option has a value that it cannot have.
    """
    known = name or str(getattr(function, "__name__", "tool"))
    try:
        options = ToolOptions(
            max_retries=retries,
            initial_interval_seconds=initial_interval.total_seconds(),
            timeout_seconds=timeout.total_seconds(),
            on_failure=OnToolFailure(on_failure),
            requires_approval=requires_approval,
            approval_timeout_seconds=None if approval_timeout is None else approval_timeout.total_seconds(),
            reminder_seconds=None if reminder is None else reminder.total_seconds(),
            reminder_activity=reminder_activity,
            reminder_task_queue=reminder_task_queue,
        )
    except ValidationError as error:
        raise WrongTool(known, "; ".join(problems_of(error))) from None

    def mark(marked: _Tool) -> _Tool:
        setattr(marked, _OPTIONS, _Marked(options, retry_on, name))
        return marked

    return mark if function is None else mark(function)


class FunctionTool:
    """A Python function as a tool.

    Args:
        function: With type hints and a docstring; sync functions run in a thread.

    Raises:
        WrongTool: it has no docstring, a parameter without a type, or one that no JSON Schema describes.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        marked: _Marked = getattr(function, _OPTIONS, _Marked(ToolOptions(), (Exception,), None))
        self.name: str = marked.name or str(getattr(function, "__name__", ""))
        self.options = marked.options
        self._retry_on = marked.retry_on
        self._function = function
        if not _NAME.fullmatch(self.name):
            raise WrongTool(self.name, "its name must be letters, digits, _ and -, at most 64")
        self._description = inspect.getdoc(function)
        if not self._description:
            raise WrongTool(self.name, "it needs a docstring: the model reads it as the tool's description")
        self._context_name: str | None = None
        self._arguments = self._model(function)
        try:
            self._schema = self._arguments.model_json_schema()
        except Exception as error:
            raise WrongTool(self.name, f"its parameters have no JSON Schema: {error}") from error
        self._schema.pop("title", None)

    def _model(self, function: Callable[..., Any]) -> type[BaseModel]:
        try:
            signature = inspect.signature(function, eval_str=True)
        except NameError as error:
            raise WrongTool(self.name, f"a type hint cannot be resolved: {error}") from error
        fields: dict[str, Any] = {}
        for name, parameter in signature.parameters.items():
            if parameter.annotation is ToolContext:
                self._context_name = name
                continue
            if parameter.annotation is parameter.empty:
                raise WrongTool(self.name, f"parameter {name!r} needs a type hint")
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise WrongTool(self.name, f"parameter {name!r} must be one that can be given by name")
            default = ... if parameter.default is parameter.empty else parameter.default
            # The field has a name of its own: a parameter may be called like a method of the model.
            fields[f"p{len(fields)}"] = (parameter.annotation, Field(default, alias=name))
        try:
            return create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)
        except Exception as error:
            raise WrongTool(self.name, f"its parameters cannot be validated: {error}") from error

    def schema(self) -> dict[str, JsonValue]:
        """See `ToolSource`."""
        return {"name": self.name, "description": self._description, "parameters": self._schema}

    def problem_with(self, arguments: str) -> str | None:
        """See `ToolSource`."""
        try:
            self._parsed(arguments)
        except ToolError as error:
            return error.message
        return None

    def is_transient(self, error: Exception) -> bool:
        """See `ToolSource`."""
        return error.retry if isinstance(error, ToolError) else isinstance(error, self._retry_on)

    async def call(self, arguments: str, context: ToolContext) -> JsonValue:
        """See `ToolSource`."""
        values = self._parsed(arguments)
        if self._context_name is not None:
            values[self._context_name] = context
        if inspect.iscoroutinefunction(self._function):
            returned = await self._function(**values)
        else:
            returned = await asyncio.to_thread(self._function, **values)
            if inspect.isawaitable(returned):
                returned = await returned
        return as_result(returned)

    def _parsed(self, arguments: str) -> dict[str, Any]:
        if len(arguments.encode(errors="replace")) > _MOST_ARGUMENTS_BYTES:
            raise ToolError(f"the arguments have more than {_MOST_ARGUMENTS_BYTES:,} bytes")
        if nests_too_deeply(arguments):
            raise ToolError("the arguments are nested too deeply")
        try:
            parsed = self._arguments.model_validate_json(arguments)
        except ValidationError as error:
            raise ToolError("the arguments do not fit: " + "; ".join(problems_of(error))) from None
        return {
            field.alias or name: getattr(parsed, name) for name, field in self._arguments.model_fields.items()
        }


def as_result(returned: object) -> JsonValue:
    """What a tool returned, as JSON. Raises `ToolError` if it cannot be that, or is too large."""
    try:
        result: JsonValue = keepable(to_jsonable_python(returned))
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise ToolError(f"the tool's result cannot be sent: {str(error)[:200]}") from None
    if (size := len(as_content(result).encode())) > MAXIMUM_TOOL_RESULT_BYTES:
        raise ToolError(f"the tool's result has {size:,} bytes, the limit is {MAXIMUM_TOOL_RESULT_BYTES:,}")
    return result


def offered(names: Sequence[str], tools: Mapping[str, ToolSource]) -> list[ToolSource]:
    """The tools with these names. Raises `ValueError` for one that the worker does not have."""
    for name in names:
        if name not in tools:
            known = ", ".join(sorted(tools)) or "none"
            raise ValueError(f"tools: this worker has no tool {name!r}; it has {known}")
    return [tools[name] for name in names]


def checked(calls: Sequence[ToolCall], tools: Sequence[ToolSource]) -> list[ToolCall]:
    """The calls that a model asks for, each with its tool's options and what is wrong with it.

    Args:
        calls: As the model made them.
        tools: Those that were offered to the model.
    """
    known = {one.name: one for one in tools}
    found = []
    for call in calls:
        source = known.get(call.name)
        if source is None:
            problem: str | None = f"there is no tool {call.name[:64]!r}; there are {', '.join(known)}"
            options = ToolOptions()
        else:
            problem, options = source.problem_with(call.arguments), source.options
        found.append(call.model_copy(update={"problem": problem, "options": options}))
    return found


def tool_fields(job: AiJob, tools: Sequence[ToolSource]) -> dict[str, Any]:
    """What the chat completions API takes to offer tools to a model."""
    fields: dict[str, Any] = {"tools": [{"type": "function", "function": one.schema()} for one in tools]}
    if job.tool_choice in ("auto", "none", "required"):
        fields["tool_choice"] = job.tool_choice
    elif job.tool_choice is not None:
        fields["tool_choice"] = {"type": "function", "function": {"name": job.tool_choice}}
    if job.parallel_tool_calls is not None:
        fields["parallel_tool_calls"] = job.parallel_tool_calls
    return fields


def by_name(tools: Iterable[ToolSource | Callable[..., Any]]) -> Mapping[str, ToolSource]:
    """The tools by their names; functions become `FunctionTool`s. Raises `WrongTool` for a name twice."""
    known: dict[str, ToolSource] = {}
    for one in tools:
        source: ToolSource = one if hasattr(one, "problem_with") else FunctionTool(one)  # type: ignore[assignment]
        if source.name in known:
            raise WrongTool(source.name, "two tools have this name")
        known[source.name] = source
    return known
