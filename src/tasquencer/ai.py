"""The AI domain: what an AI agent task is asked, what it calls, what it answers, what it records.

`AiAgentRequest` and `AiAgentResult` are the task's input and result, plain JSON for clients in any
language. `AiJob` is the payload of each of its work items, `AiAnswer` what the AI call returns.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticSerializationError, to_json

from tasquencer.entries import DomainRecord
from tasquencer.errors import InvalidRequest
from tasquencer.retry import LONGEST_BACKOFF, MOST_RETRIES, RetryOn, RetryRecipe
from tasquencer.work_item import WorkItem, WorkItemState

__all__ = [
    "AI_JOBS",
    "CALL_MARGIN",
    "MAXIMUM_ANSWER_BYTES",
    "MAXIMUM_REQUEST_BYTES",
    "MOST_LABELS",
    "MOST_MESSAGES",
    "AiAgentRequest",
    "AiAgentResult",
    "AiAnswer",
    "AiJob",
    "CallOptions",
    "ChatMessage",
    "FilledText",
    "RequestModel",
    "RetryOptions",
    "Seconds",
    "Whole",
    "ai_job_record",
    "keepable",
    "limit_size",
    "parse_answer",
    "parse_request",
    "problems_of",
    "refuse_far_too_many",
    "returned_answer",
    "validated",
]

AI_JOBS = "ai_jobs"
"""The domain table of AI work items."""

MAXIMUM_REQUEST_BYTES = 1_536 * 1024
"""Bytes of a request as JSON. A Temporal payload holds 2 MiB; the rest is for what a task carries along."""

MAXIMUM_ANSWER_BYTES = 1_920 * 1024
"""Bytes of an answer as JSON. An answer over Temporal's 2 MiB would leave the task stuck."""

CALL_MARGIN = timedelta(seconds=5)
"""The start-to-close timeout of an AI call's activity is the attempt's timeout plus this.

So it is the activity that notices the timeout: it closes the connection and reports `timed_out` with what it
knows. Temporal's own timeout is for an activity that can no longer speak.
"""

MOST_MESSAGES = 5_000
"""Messages of a conversation."""

MOST_LABELS = 1_000
"""Entries of a request's metadata."""

_MOST = 2**31 - 1
"""Of a whole number, or one that is told by hand: what every database's INTEGER holds (NaN and infinity are
beyond it)."""

_DEEPEST = 100
"""Lists and objects within one another. JSON parsers give up at some 200, the ledger's own included."""

_MOST_VALUES = 50_000
"""Values of one piece of foreign JSON. A workflow must not compute for longer than two seconds."""

_MOST_PROBLEMS = 20
_PROBLEM_LENGTH = 300
"""What is said of an input that does not validate: so many problems, of so many characters."""

_Request = TypeVar("_Request", bound=BaseModel)

_LONGEST_SECONDS = LONGEST_BACKOFF.total_seconds()


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain lone surrogates (it is not valid Unicode text)") from None
    return text


def _filled(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def keepable(value: JsonValue) -> JsonValue:
    """The value, if every part of the way can carry it: Temporal, the ledger's databases, JSON parsers.

    Raises:
        ValueError: it has text that no database takes, NaN or infinity, is nested too deeply or has too many
            values.
    """
    waiting: list[tuple[JsonValue, int]] = [(value, 0)]
    seen = 0
    while waiting:
        part, depth = waiting.pop()
        seen += 1
        if isinstance(part, str):
            _storable(part)
        elif isinstance(part, float) and not math.isfinite(part):
            raise ValueError("must not contain NaN or infinity (it is not valid JSON)")
        elif isinstance(part, dict | list):
            if depth == _DEEPEST:
                raise ValueError(f"must not be nested deeper than {_DEEPEST} levels")
            if seen + len(waiting) + len(part) > _MOST_VALUES:
                raise ValueError(f"must not have more than {_MOST_VALUES:,} values")
            inner = [*part, *part.values()] if isinstance(part, dict) else part
            waiting += [(one, depth + 1) for one in inner]
    return value


def _content(value: JsonValue) -> JsonValue:
    is_parts = isinstance(value, list) and all(isinstance(part, dict) for part in value)
    if not value or not (isinstance(value, str) or is_parts):
        raise ValueError("must be text or a list of content parts (JSON objects), and not empty")
    return keepable(value)


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _few_labels(value: object) -> object:
    if isinstance(value, dict) and len(value) > MOST_LABELS:  # before each of them is looked at
        raise ValueError(f"must have at most {MOST_LABELS:,} entries")
    return value


_Text = Annotated[str, AfterValidator(_storable)]
FilledText = Annotated[_Text, AfterValidator(_filled)]
Whole = Annotated[int, BeforeValidator(_no_truth)]
_Number = Annotated[float, BeforeValidator(_no_truth), Field(allow_inf_nan=False)]
Seconds = Annotated[_Number, Field(gt=0, le=_LONGEST_SECONDS)]
_Interval = Annotated[_Number, Field(ge=0, le=_LONGEST_SECONDS)]


class RequestModel(BaseModel):
    """Part of a task's input: what it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
        return _as_text([message.model_dump() for message in self.messages])


def _as_text(messages: list[dict[str, Any]]) -> str:
    asked = [message for message in messages if message["role"] not in ("system", "developer")]
    if len(asked) == 1 and isinstance(asked[0]["content"], str):
        return asked[0]["content"]
    return json.dumps(messages, ensure_ascii=False)


class RetryOptions(RequestModel):
    """The `retry` object of a request; see `tasquencer.retry.RetryRecipe` for the formula."""

    initial_interval_seconds: _Interval = 1.0
    backoff_coefficient: Annotated[_Number, Field(ge=1, le=1000)] = 2.0
    maximum_interval_seconds: _Interval | None = None
    jitter: Annotated[_Number, Field(ge=0, le=10)] = 0.0
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
    """What a request says about its AI calls, whatever it asks."""

    system: FilledText | None = None
    model: FilledText | None = None
    temperature: Annotated[_Number, Field(ge=0, le=2)] | None = None
    max_output_tokens: Annotated[Whole, Field(ge=1, le=_MOST)] | None = None
    max_retries: Annotated[Whole, Field(ge=0, le=MOST_RETRIES)] = 3
    retry: RetryOptions = RetryOptions()
    attempt_timeout_seconds: Seconds = 300.0
    heartbeat_timeout_seconds: Annotated[_Number, Field(ge=1, le=_LONGEST_SECONDS)] = 30.0
    queue_timeout_seconds: Seconds | None = None
    deadline_seconds: Seconds | None = None
    metadata: Annotated[dict[_Text, _Text], BeforeValidator(_few_labels)] = Field(default_factory=dict)

    def job_of(self, messages: list[ChatMessage]) -> AiJob:
        """What a work item that carries on this conversation has to do."""
        if self.system is not None:
            messages = [ChatMessage(role="system", content=self.system), *messages]
        return AiJob(
            messages=messages,
            model=self.model,
            temperature=self.temperature,
            max_output_tokens=self.max_output_tokens,
            metadata=self.metadata,
        )

    def recipe(self) -> RetryRecipe:
        """How each lineage of the task retries."""
        most = self.retry.maximum_interval_seconds
        return RetryRecipe(
            max_retries=self.max_retries,
            initial_interval=timedelta(seconds=self.retry.initial_interval_seconds),
            backoff_coefficient=self.retry.backoff_coefficient,
            maximum_interval=None if most is None else timedelta(seconds=most),
            jitter=self.retry.jitter,
            retry_on=self.retry.retry_on,
        )


class AiAgentRequest(CallOptions):
    """The input of an AI agent task.

    Attributes:
        prompt: What to answer; or `messages`, a whole conversation. Exactly one of the two.
        system: A system prompt, put before everything else.
        model: None takes the worker's default model.
        temperature: None leaves it to the provider; 0 to 2.
        max_output_tokens: Upper bound of the answer; None leaves it to the provider.
        max_retries: Retries after the first try, 0 to 1000.
        retry: Delays, and which failures qualify.
        attempt_timeout_seconds: How long one AI call may take.
        heartbeat_timeout_seconds: How long a silent worker counts as alive.
        queue_timeout_seconds: How long a call may wait for a worker to pick it up; None: any time.
        deadline_seconds: Counted from the task's start: no attempt starts after it, and one under
            way is cut off at it.
        metadata: Labels of your own; kept with each work item.
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
        """What each work item of the task has to do."""
        return self.job_of(self.messages or [ChatMessage(role="user", content=self.prompt or "")])


class AiAnswer(BaseModel):
    """What an AI call returned: the result of a completed AI work item.

    Attributes:
        model: The model that answered, by the provider's word; else the one that was asked.
        cost_usd: None where the price of the model or the usage is unknown.
        latency_seconds: From sending the request to having the whole answer.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    model: str | None = None
    finish_reason: str | None = None
    provider_request_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    latency_seconds: float | None = None


class AiAgentResult(BaseModel):
    """The result of an AI agent task.

    Attributes:
        work_item_id: The work item that gave the answer.
        attempts: How many work items the task took.
        input_tokens, output_tokens, cost_usd: Of that work item; the ledger has those of all.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    model: str | None
    finish_reason: str | None
    work_item_id: str
    attempts: int
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None

    @classmethod
    def of(cls, work_item: WorkItem, attempts: int) -> AiAgentResult:
        """The result that a completed AI work item gives."""
        answer = AiAnswer.model_validate(work_item.result)
        return cls(
            text=answer.text,
            model=answer.model,
            finish_reason=answer.finish_reason,
            work_item_id=work_item.id,
            attempts=attempts,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            cost_usd=answer.cost_usd,
        )


def ai_job_record(work_item: WorkItem, recipe: RetryRecipe) -> DomainRecord:
    """The row of `ai_jobs` for an AI work item in its present state.

    `status` is `pending` while the work item is initialized, then the work item's state.
    """
    job = cast("dict[str, Any]", work_item.payload)
    if work_item.state is WorkItemState.INITIALIZED:  # a hook may have made it; from then on it stays
        AiJob.model_validate(job)
    facts: dict[str, JsonValue] = {}
    if isinstance(work_item.result, dict):
        facts = work_item.result
    elif work_item.failure is not None:
        facts = work_item.failure.details
    return DomainRecord(
        table=AI_JOBS,
        values={
            "prompt": _as_text(job["messages"]),
            "model": facts.get("model") or job.get("model"),
            "max_retries": recipe.max_retries,
            "attempt": work_item.attempt,
            "status": "pending" if work_item.state is WorkItemState.INITIALIZED else work_item.state.value,
            "result": facts.get("text") if work_item.failure is None else None,
            "last_error": str(work_item.failure) if work_item.failure else None,
            "finish_reason": facts.get("finish_reason"),
            "provider_request_id": facts.get("provider_request_id"),
            "input_tokens": facts.get("input_tokens"),
            "output_tokens": facts.get("output_tokens"),
            "cost_usd": facts.get("cost_usd"),
            "latency_seconds": facts.get("latency_seconds"),
        },
    )


def parse_answer(raw: JsonValue) -> JsonValue:
    """The result of an AI work item, given by hand: `{"text": …}`, and other facts of `AiAnswer`.

    Raises:
        InvalidRequest: names each wrong field.
    """
    text = raw.get("text") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(text, str) or not text:
        raise InvalidRequest(['result: must be an object such as {"text": "…"}'])
    if "\x00" in text:
        raise InvalidRequest(["result.text: must not contain NUL characters"])
    if unknown := sorted(raw.keys() - AiAnswer.model_fields.keys()):
        problems = [f"result.{_shown(name)}: unknown field" for name in unknown[:_MOST_PROBLEMS]]
        raise InvalidRequest([*problems, *_rest(len(unknown))])
    try:
        answer = AiAnswer.model_validate(raw)
    except ValidationError as error:
        raise InvalidRequest([f"result.{problem}" for problem in problems_of(error)]) from None
    _check_answer(answer, MAXIMUM_ANSWER_BYTES)
    kept: JsonValue = answer.model_dump(mode="json", exclude_defaults=True)
    return kept


_LATENCY_BYTES = 100
"""The call learns how long it took when it has measured its answer."""


def returned_answer(raw: object) -> AiAnswer:
    """What the activity `generate` returned, which may be another one than ours, or of a newer release.

    Raises:
        InvalidRequest: it is no answer, or one that the ledger cannot hold.
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
    except PydanticSerializationError:  # it is no valid Unicode text
        written = b""
    if not written or rb"\u0000" in written:
        try:
            keepable(answer.model_dump())
        except ValueError as error:
            raise InvalidRequest([f"result: {error}"]) from None
    for name in ("input_tokens", "output_tokens", "cost_usd", "latency_seconds"):
        value = getattr(answer, name)
        if value is not None and not 0 <= value <= _MOST:
            raise InvalidRequest([f"result.{name}: must be a number from 0 to {_MOST}"])
    size = len(written)
    if size > limit:
        raise InvalidRequest([f"result: has {size:,} bytes, the limit is {limit:,}"])


def parse_request(raw: object) -> AiAgentRequest:
    """The request in a task's raw input.

    Raises:
        InvalidRequest: names each wrong field, and the size and its limit where it is too large.
    """
    request = validated(AiAgentRequest, raw, example='{"prompt": "…"}')
    limit_size(request, "messages" if request.prompt is None else "prompt", MAXIMUM_REQUEST_BYTES)
    return request


def validated(model: type[_Request], raw: object, example: str) -> _Request:
    """The raw input of a task as its request. Raises `InvalidRequest`."""
    if isinstance(raw, model):
        return raw
    if not isinstance(raw, dict):
        raise InvalidRequest([f"the input must be one JSON object such as {example}, not {_named(raw)}"])
    refuse_far_too_many(raw, model)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise InvalidRequest(problems_of(error, model)) from None


def refuse_far_too_many(raw: Mapping[str, object], model: type[BaseModel]) -> None:
    """Raise `InvalidRequest` for so many unknown fields that Pydantic would take seconds to tell them."""
    if len(raw) > len(model.model_fields) + _MOST_PROBLEMS:
        unknown = [name for name in raw if name not in model.model_fields]
        problems = [f"{_shown(name)}: unknown field" for name in unknown[:_MOST_PROBLEMS]]
        raise InvalidRequest([*problems, *_rest(len(unknown))])


def problems_of(error: ValidationError, model: type[BaseModel] | None = None) -> list[str]:
    """What does not validate, a line for each field: few enough, and short enough, for an error's message.

    Args:
        error: What Pydantic found.
        model: Where an unknown field may be a known one, misspelt.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [*(_problem(details, model) for details in found[:_MOST_PROBLEMS]), *_rest(len(found))]


def _rest(count: int) -> list[str]:
    return [f"and {count - _MOST_PROBLEMS:,} more"] if count > _MOST_PROBLEMS else []


def limit_size(request: BaseModel, field: str, limit: int) -> None:
    """Raise `InvalidRequest`, naming the field, for a request that has more bytes as JSON than allowed."""
    size = len(request.model_dump_json(exclude_defaults=True).encode())
    if size > limit:
        raise InvalidRequest([f"{field}: the request has {size:,} bytes, the limit is {limit:,}"])


def _named(raw: object) -> str:
    names = {
        "NoneType": "nothing",
        "str": "a string",
        "list": "a list",
        "int": "a number",
        "float": "a number",
    }
    return names.get(type(raw).__name__, type(raw).__name__)


def _problem(details: ErrorDetails, model: type[BaseModel] | None = None) -> str:
    place = _shown(".".join(_shown(str(part)) for part in details["loc"]))
    if details["type"] == "extra_forbidden":
        alike: list[str] = []
        if model is not None:
            parts: dict[str, type[BaseModel]] = {"retry": RetryOptions, "messages": ChatMessage}
            known = parts.get(str(details["loc"][0]) if len(details["loc"]) > 1 else "", model).model_fields
            alike = difflib.get_close_matches(place.rpartition(".")[2], known, n=1)
        return f"{place}: unknown field" + (f" (did you mean {alike[0]!r}?)" if alike else "")
    message = details["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _shown(name: str) -> str:
    """A foreign name as it may stand in an error's message: not too long, and valid text."""
    name = name if len(name) <= _PROBLEM_LENGTH else name[: _PROBLEM_LENGTH - 1] + "…"
    return name.encode(errors="replace").decode()
