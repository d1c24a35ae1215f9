"""The input of an AI agent task: plain JSON for clients in any language."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, Literal, Self, TypedDict

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator
from pydantic_core import to_json

from tasquencer.ai.job import MAXIMUM_CONVERSATION_BYTES, MOST_MESSAGES, AiJob, ChatMessage
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.failure import FailureKind
from tasquencer.core.retry import MOST_RETRIES, RetryOn, RetryRecipe
from tasquencer.core.validation import (
    LARGEST_INTEGER,
    LONGEST_SECONDS,
    FilledText,
    Interval,
    Number,
    RequestModel,
    Seconds,
    Text,
    Whole,
    keepable,
    limit_size,
    validated,
)

__all__ = [
    "MAXIMUM_ATTEMPTS_BYTES",
    "MAXIMUM_EXTRA_BYTES",
    "MAXIMUM_REQUEST_BYTES",
    "MAXIMUM_SCHEMA_BYTES",
    "MOST_FALLBACKS",
    "MOST_LABELS",
    "MOST_REQUEST_VALUES",
    "MOST_STOPS",
    "MOST_TOOLS",
    "MOST_TURNS",
    "AgentOptions",
    "AiAgentRequest",
    "AskOptions",
    "CallOptions",
    "RetryOptions",
    "RetrySettings",
    "limit_attempts",
    "parse_request",
]

MAXIMUM_REQUEST_BYTES = 1_536 * 1024
"""Maximum bytes of a request as JSON. A Temporal payload holds 2 MiB, also with a task's carried state."""

MOST_TOOLS = 128
"""Maximum tools of one request, as in OpenAI's API."""

MOST_TURNS = 100
"""Turns of one task: all its work items travel along when it continues as new."""

MAXIMUM_ATTEMPTS_BYTES = 128 * 1024 * 1024
"""Bytes of a request times its attempts. Each attempt writes the request twice into the ledger and once into
Temporal's history."""

MOST_REQUEST_VALUES = 10_000
"""Names and values in a request, in all its fields together. A request at the limit costs a worker three
times the processor time of the smallest one."""

_WITH_TOOLS = ("tool_choice", "parallel_tool_calls", "max_turns")

MOST_LABELS = 1_000
"""Maximum entries of a request's metadata."""

MAXIMUM_SCHEMA_BYTES = 256 * 1024
"""Bytes of an `output_schema` as JSON."""

MAXIMUM_EXTRA_BYTES = 64 * 1024
"""Bytes of an `extra_body` as JSON."""

MOST_STOPS = 16
"""Texts of `stop`."""

MOST_FALLBACKS = 20
"""Models of `fallback_models`."""

_LARGEST_SEED = 2**63 - 1

_DEEPEST_EXTRA = 20
"""Levels of lists and objects of an `extra_body`."""

_OWN_FIELDS = {
    "input": "messages",
    "instructions": "system",
    "max_completion_tokens": "max_output_tokens",
    "max_output_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "messages",
    "model": "model",
    "reasoning_effort": "reasoning_effort",
    "response_format": "output_schema",
    "seed": "seed",
    "stop": "stop",
    "temperature": "temperature",
    "top_p": "top_p",
}
"""Fields of a request to the provider, and the field of ours that sets them."""

_NEVER_SENT = ("background", "n", "stream", "stream_options")
"""Fields that ask for more answers than one, or for another form of it."""


def _few_labels(value: object) -> object:
    if isinstance(value, dict) and len(value) > MOST_LABELS:  # before each entry is checked
        raise ValueError(f"must have at most {MOST_LABELS:,} entries")
    return value


def _fits(most_bytes: int, most_levels: int | None = None) -> Callable[[JsonValue], JsonValue]:
    def check(value: JsonValue) -> JsonValue:
        keepable(value)
        size = len(to_json(value))
        if size > most_bytes:
            raise ValueError(f"has {size:,} bytes, the limit is {most_bytes:,}")
        if most_levels is not None and _levels(value) > most_levels:
            raise ValueError(f"must not be nested deeper than {most_levels} levels")
        return value

    return check


def _levels(value: JsonValue) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_levels, value.values()), default=0)
    return 1 + max(map(_levels, value), default=0) if isinstance(value, list) else 0


def _no_field_of_ours(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for name in value:
        if name in _OWN_FIELDS:
            raise ValueError(f"must not set {name!r}: use the field {_OWN_FIELDS[name]!r}")
        if name in _NEVER_SENT:
            raise ValueError(f"must not set {name!r}: one answer, not streamed, is read")
    return value


class RetryOptions(RequestModel):
    """The `retry` object of a request. See `tasquencer.RetryRecipe` for the formula."""

    initial_interval_seconds: Interval = 1.0
    backoff_coefficient: Annotated[Number, Field(ge=1, le=1000)] = 2.0
    maximum_interval_seconds: Interval | None = None
    jitter: Annotated[Number, Field(ge=0, le=10)] = 0.0
    retry_on: RetryOn = RetryOn.TRANSIENT

    @model_validator(mode="after")
    def _maximum_is_no_less_than_initial(self) -> Self:
        if (
            self.maximum_interval_seconds is not None
            and self.maximum_interval_seconds < self.initial_interval_seconds
        ):
            raise ValueError("maximum_interval_seconds must not be less than initial_interval_seconds")
        return self


class CallOptions(RequestModel):
    """The fields of a request about its AI calls, for all kinds of requests."""

    system: FilledText | None = None
    model: FilledText | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    max_output_tokens: Annotated[Whole, Field(ge=1, le=LARGEST_INTEGER)] | None = None
    output_schema: Annotated[dict[str, JsonValue], AfterValidator(_fits(MAXIMUM_SCHEMA_BYTES))] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed: Annotated[Whole, Field(ge=-_LARGEST_SEED, le=_LARGEST_SEED)] | None = None
    stop: FilledText | Annotated[list[FilledText], Field(min_length=1, max_length=MOST_STOPS)] | None = None
    reasoning_effort: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,50}$")] | None = None
    extra_body: (
        Annotated[
            dict[str, JsonValue],
            AfterValidator(_fits(MAXIMUM_EXTRA_BYTES, _DEEPEST_EXTRA)),
            AfterValidator(_no_field_of_ours),
        ]
        | None
    ) = None
    fallback_models: Annotated[list[FilledText], Field(min_length=1, max_length=MOST_FALLBACKS)] | None = None
    fallback_on: list[FailureKind] | None = None
    feedback: bool = True
    max_retries: Annotated[Whole, Field(ge=0, le=MOST_RETRIES)] = 3
    retry: RetryOptions = RetryOptions()
    attempt_timeout_seconds: Seconds = 300.0
    heartbeat_timeout_seconds: Annotated[Number, Field(ge=1, le=LONGEST_SECONDS)] = 30.0
    queue_timeout_seconds: Seconds | None = None
    deadline_seconds: Seconds | None = None
    metadata: Annotated[dict[Text, Text], BeforeValidator(_few_labels)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _falls_back_on_something(self) -> Self:
        if self.fallback_on is not None and self.fallback_models is None:
            raise ValueError("fallback_on: only with fallback_models")
        return self

    def job_of(self, messages: list[ChatMessage]) -> AiJob:
        """Return the payload of a work item that continues this conversation."""
        if self.system is not None:
            messages = [ChatMessage(role="system", content=self.system), *messages]
        return AiJob(
            messages=messages,
            model=self.model,
            temperature=self.temperature,
            max_output_tokens=self.max_output_tokens,
            output_schema=self.output_schema,
            top_p=self.top_p,
            seed=self.seed,
            stop=self.stop,
            reasoning_effort=self.reasoning_effort,
            extra_body=self.extra_body,
            fallback_models=self.fallback_models,
            fallback_on=None if self.fallback_on is None else [kind.value for kind in self.fallback_on],
            feedback=self.feedback,
            metadata=self.metadata,
        )

    def recipe(self) -> RetryRecipe:
        """The recipe of each lineage of the task."""
        most = self.retry.maximum_interval_seconds
        return RetryRecipe(
            max_retries=self.max_retries,
            initial_interval=timedelta(seconds=self.retry.initial_interval_seconds),
            backoff_coefficient=self.retry.backoff_coefficient,
            maximum_interval=None if most is None else timedelta(seconds=most),
            jitter=self.retry.jitter,
            retry_on=self.retry.retry_on,
        )


class AgentOptions(CallOptions):
    """The fields of a request about its AI calls and about the tools that the model may call."""

    tools: Annotated[list[FilledText], Field(min_length=1, max_length=MOST_TOOLS)] | None = None
    tool_choice: FilledText | None = None
    parallel_tool_calls: bool | None = None
    max_turns: Annotated[Whole, Field(ge=1, le=MOST_TURNS)] = 20

    @model_validator(mode="after")
    def _options_fit_its_tools(self) -> Self:
        if self.tools is None:
            fields = type(self).model_fields
            given = [name for name in _WITH_TOOLS if getattr(self, name) != fields[name].default]
            if given:
                raise ValueError(f"{', '.join(given)}: only with tools")
        elif len(set(self.tools)) < len(self.tools):
            raise ValueError("tools: names one of them twice")
        elif self.tool_choice not in (None, "auto", "none", "required", *self.tools):
            raise ValueError("tool_choice: must be auto, none, required or one of the tools")
        return self

    def job_of(self, messages: list[ChatMessage]) -> AiJob:
        """Return the payload of a work item that continues this conversation."""
        job = super().job_of(messages)
        if self.tools is None:
            return job
        with_tools = {name: getattr(self, name) for name in ("tools", "tool_choice", "parallel_tool_calls")}
        return job.model_copy(update=with_tools)


class RetrySettings(TypedDict, total=False):
    """The fields of `RetryOptions` as keywords."""

    initial_interval_seconds: float
    backoff_coefficient: float
    maximum_interval_seconds: float | None
    jitter: float
    retry_on: RetryOn | Literal["transient", "any"]


class AskOptions(TypedDict, total=False):
    """The fields of `AiAgentRequest` as keywords of `tasquencer.ask`, without `prompt` and `messages`."""

    system: str | None
    model: str | None
    temperature: float | None
    max_output_tokens: int | None
    output_schema: Mapping[str, Any] | None
    top_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    reasoning_effort: str | None
    extra_body: Mapping[str, Any] | None
    fallback_models: Sequence[str] | None
    fallback_on: Sequence[FailureKind | str] | None
    feedback: bool
    max_retries: int
    retry: RetryOptions | RetrySettings
    attempt_timeout_seconds: float
    heartbeat_timeout_seconds: float
    queue_timeout_seconds: float | None
    deadline_seconds: float | None
    metadata: Mapping[str, str]
    tools: Sequence[str] | None
    tool_choice: str | None
    parallel_tool_calls: bool | None
    max_turns: int


class AiAgentRequest(AgentOptions):
    """The input of an AI agent task.

    Attributes:
        prompt: The prompt to answer. Give either this or `messages`, a whole conversation.
        system: A system prompt, put before everything else.
        model: None means the worker's default model.
        temperature: 0 to 2. None leaves it to the provider.
        max_output_tokens: Upper bound of the answer. None leaves it to the provider.
        output_schema: A JSON Schema of the answer, which is then JSON.
        top_p, seed, stop, reasoning_effort: Passed on to the provider; None leaves them out.
        extra_body: Further fields of the request to the provider, passed on as they are.
        fallback_models: Models that later attempts ask, one after the other; `provider:model` for one of
            another provider.
        fallback_on: The kinds of failure after which the next model is asked; None: `FALLBACK_ON`.
        feedback: Whether the attempt after an `invalid_output` tells the model what was wrong.
        max_retries: Retries after the first try, 0 to 1000.
        retry: Delays, and the failures that qualify.
        attempt_timeout_seconds: How long one AI call may take.
        heartbeat_timeout_seconds: How long a silent worker counts as alive.
        queue_timeout_seconds: How long a call may wait for a worker to pick it up. None: no limit.
        deadline_seconds: Counted from the task's start. No attempt starts after it, and a running one
        is cut off at it.
        metadata: Your own labels, stored with each work item.
        tools: Names of the worker's tools that the model may call, at most 128.
        tool_choice: `auto`, `none`, `required`, or the name of the tool that the first turn calls.
        parallel_tool_calls: Whether one answer may call several tools; None leaves it to the provider.
        max_turns: How many times the model may be asked, 1 to 100. Each turn has `max_retries`.
    """

    prompt: FilledText | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)] | None = None

    @model_validator(mode="after")
    def _has_something_to_answer(self) -> Self:
        if self.prompt is None and self.messages is None:
            raise ValueError("prompt: required (or messages)")
        if self.prompt is not None and self.messages is not None:
            raise ValueError("prompt, messages: give one of them, not both")
        return self

    def job(self) -> AiJob:
        """What each work item of the task has to do; with tools, each one of its first turn."""
        return self.job_of(self.messages or [ChatMessage(role="user", content=self.prompt or "")])


def limit_attempts(request: CallOptions, drafts: int = 1) -> None:
    """Raise `InvalidRequest` for a request that all its attempts together would write too often.

    Args:
        request: What each attempt writes again.
        drafts: How often the request may be carried out, each time with all its retries.
    """
    size = len(request.model_dump_json(exclude_defaults=True).encode())
    attempts = (request.max_retries + 1) * drafts
    if size * attempts > MAXIMUM_ATTEMPTS_BYTES:
        most = MAXIMUM_ATTEMPTS_BYTES // size
        said = f"{attempts:,} attempts at a request of {size:,} bytes, the limit for its size is {most:,}"
        raise InvalidRequest([f"max_retries: {said}"])


def parse_request(raw: object) -> AiAgentRequest:
    """Read the request from a task's raw input.

    Raises:
        InvalidRequest: names each wrong field, and the size and its limit if it is too large.
    """
    request = validated(AiAgentRequest, raw, '{"prompt": "…"}', MOST_REQUEST_VALUES)
    limit = MAXIMUM_REQUEST_BYTES if request.tools is None else MAXIMUM_CONVERSATION_BYTES
    limit_size(request, "messages" if request.prompt is None else "prompt", limit)
    limit_attempts(request)
    return request
