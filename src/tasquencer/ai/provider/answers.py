"""Judges a reply with a good status, which may be an answer or a failure.

A failure keeps the tokens and cost that the provider billed, and its id of the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from pydantic import JsonValue

from tasquencer.ai.answer import MAXIMUM_ANSWER_BYTES, AiAnswer
from tasquencer.ai.job import MOST_TOOL_CALLS
from tasquencer.ai.ladder import kept_output
from tasquencer.ai.provider.errors import error_failure, heed_provider
from tasquencer.ai.provider.finish import Finish, finish_of
from tasquencer.ai.provider.prices import Price
from tasquencer.ai.provider.reply import (
    Clean,
    Reply,
    ReplyEnd,
    as_text,
    excerpt,
    nests_too_deeply,
    one_line,
    request_id,
)
from tasquencer.ai.provider.reported import Report, report_in, says_something
from tasquencer.ai.provider.responses import as_completion, is_response
from tasquencer.ai.provider.schemas import Schema
from tasquencer.ai.provider.stream import Unreadable, completion_in
from tasquencer.ai.provider.usage import usage_in
from tasquencer.ai.tool_calls import ToolCall, answered_calls
from tasquencer.core.entries import cleaned_text
from tasquencer.core.failure import Failure, FailureKind

__all__ = ["Completion", "judge", "unfit"]

Completion = Mapping[str, Any]

_ERROR_FIELDS = ("error", "errors", "message", "msg", "detail", "error_message", "base_resp", "code")
"""Fields that make an object without choices an error."""


class _NotAnAnswer(Exception):
    def __init__(self, kind: FailureKind, message: str, *, outcome_unknown: bool = False) -> None:
        self.failure = Failure.of(kind, message, outcome_unknown=outcome_unknown)


class _Reported(Exception):
    def __init__(self, what: str, report: Report) -> None:
        self.what = what
        self.report = report


def judge(
    reply: Reply,
    *,
    asked_model: str,
    output_schema: Schema | None,
    price: Price,
    clean: Clean,
    now: datetime,
    offers_tools: bool = False,
) -> AiAnswer | Failure:
    """Return the answer in a reply with a good status, or its failure.

    Args:
        reply: The provider's reply.
        asked_model: Used if the reply does not name the model that answered.
        output_schema: True if a JSON Schema was requested. Then an answer that was cut off does not count.
        `tasquencer.ai.provider.schemas` checks whether the answer fits, see `unfit`.
        price: Returns the cost of the usage. If it raises, the cost is unknown.
        clean: Makes foreign texts safe to record.
        now: The current time (aware), for a Retry-After that is a date.
        offers_tools: The model may call tools instead of answering.
    """
    facts: dict[str, JsonValue] = {"provider_request_id": request_id(reply, clean)}
    try:
        completion = _completion(reply, clean)
        facts = _facts(reply, completion, asked_model, price, clean)
        _raise_reported_error(reply, completion, clean)
        calls = _tool_calls(completion) if offers_tools else []
        wants_whole = output_schema is not None or bool(calls)
        text = cleaned_text(
            _text(reply, completion, clean, wants_whole=wants_whole, may_be_empty=bool(calls))
        )
        answer = AiAnswer.model_validate({"text": text, "tool_calls": calls or None} | facts)
        if output_schema is not None and not calls and nests_too_deeply(text):
            return unfit(answer, reply, "it is nested too deeply", clean)
        size = len(answer.model_dump_json().encode())
        if size > MAXIMUM_ANSWER_BYTES:
            limit = f"the limit is {MAXIMUM_ANSWER_BYTES:,}"
            raise _NotAnAnswer(FailureKind.TOO_LARGE, f"the answer has {size:,} bytes as JSON, {limit}")
        return answer
    except _NotAnAnswer as verdict:
        failure = heed_provider(verdict.failure, reply.headers, Report(), now)
    except _Reported as error:
        failure = error_failure(reply.status_code, error.what, error.report, reply.headers, now)
    return _with_facts(failure, reply, facts)


def unfit(answer: AiAnswer, reply: Reply, problem: str, clean: Clean) -> Failure:
    """Return the failure of an answer that does not fit the requested schema."""
    message = f"the output does not fit the schema asked for: {one_line(problem, clean)}"
    facts = answer.model_dump(mode="json", exclude={"text", "latency_seconds"})
    facts["output"] = kept_output(clean(answer.text))
    return _with_facts(Failure.of(FailureKind.INVALID_OUTPUT, message), reply, facts)


def _with_facts(failure: Failure, reply: Reply, facts: Mapping[str, JsonValue]) -> Failure:
    known = {name: value for name, value in facts.items() if value is not None}
    details = {"status_code": reply.status_code} | known | failure.details
    return failure.model_copy(update={"details": details})


def _completion(reply: Reply, clean: Clean) -> Completion:
    if reply.end is ReplyEnd.OVERSIZED:
        raise _NotAnAnswer(FailureKind.TOO_LARGE, f"the answer has more than {len(reply.body):,} bytes")
    if reply.end is ReplyEnd.SHREDDED:
        _provider_error(f"in too many parts to be read: {len(reply.body):,} bytes so far")
    if reply.end is ReplyEnd.ENCODED:
        encoding = one_line(reply.encoding, clean, 100)
        _provider_error(f"with the content encoding {encoding!r}, which was not asked for")
    try:
        completion = completion_in(reply)
    except Unreadable as problem:
        if problem.broke_off and reply.end is ReplyEnd.INTERRUPTED:
            message = f"the answer broke off after {len(reply.body):,} bytes"
            raise _NotAnAnswer(FailureKind.PROVIDER_ERROR, message, outcome_unknown=True) from None
        what = "a web page" if reply.is_html else str(problem)
        message = f"{what} with status {reply.status_code}: {excerpt(reply.text, clean)}".removesuffix(": ")
        _provider_error(message, outcome_unknown=problem.broke_off and "events" in what)
    if isinstance(completion, list) and completion and isinstance(completion[0], dict):
        completion = completion[0]  # Google's errors are a list of one
    if not isinstance(completion, dict):
        return {}
    return as_completion(completion) if is_response(completion) else completion


def _facts(
    reply: Reply, completion: Completion, asked_model: str, price: Price, clean: Clean
) -> dict[str, JsonValue]:
    usage = usage_in(completion, reply.headers)
    model = as_text(completion.get("model"), clean) or asked_model
    return {
        "model": model,
        "finish_reason": as_text(_first_choice(completion).get("finish_reason"), clean),
        "provider_request_id": request_id(reply, clean, completion),
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cost_usd": usage.cost(price, [model, asked_model]),
    }


def _first_choice(completion: Completion) -> Completion:
    choices = completion.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _raise_reported_error(reply: Reply, completion: Completion, clean: Clean) -> None:
    """Raise for an error instead of an answer, or in addition to one. An empty error is ignored."""
    choice = _first_choice(completion)
    what = f"the provider answered an error with status {reply.status_code}"
    if says_something(completion.get("error")):
        raise _Reported(what, report_in(completion["error"], clean))
    if says_something(choice.get("error")):  # OpenRouter: the model behind it broke off
        raise _Reported("the model's provider failed", report_in(choice["error"], clean))
    is_error = completion.get("object") == "error" or completion.get("type") == "error"
    said = {name: value for name, value in completion.items() if name in _ERROR_FIELDS}
    if is_error or (not choice and says_something(said)):
        raise _Reported(
            what, report_in({name: completion[name] for name in completion if name != "object"}, clean)
        )
    feedback = completion.get("promptFeedback") or completion.get("prompt_feedback")
    if (
        not choice
        and isinstance(feedback, dict)
        and feedback.get("blockReason", feedback.get("block_reason"))
    ):
        reason = one_line(str(feedback.get("blockReason", feedback.get("block_reason"))), clean, 100)
        raise _NotAnAnswer(FailureKind.REFUSED, f"the provider blocked the prompt ({reason})")


def _message(completion: Completion) -> object:
    choice = _first_choice(completion)
    message = choice.get("message")
    return message if isinstance(message, dict) else choice.get("delta")


def _tool_calls(completion: Completion) -> list[ToolCall]:
    message = _message(completion)
    called = message.get("tool_calls") if isinstance(message, dict) else None
    if not isinstance(called, list):
        return []
    if len(called) > MOST_TOOL_CALLS:
        many = f"the model calls {len(called):,} tools at once, the limit is {MOST_TOOL_CALLS}"
        raise _NotAnAnswer(FailureKind.INVALID_OUTPUT, many)
    try:
        calls = answered_calls(called)
    except ValueError as problem:
        raise _NotAnAnswer(FailureKind.INVALID_OUTPUT, f"a tool call cannot be read: {problem}") from None
    return [
        ToolCall(
            id=cleaned_text(call.id), name=cleaned_text(call.name), arguments=cleaned_text(call.arguments)
        )
        for call in calls
    ]


def _text(
    reply: Reply, completion: Completion, clean: Clean, *, wants_whole: bool, may_be_empty: bool
) -> str:
    choice = _first_choice(completion)
    if not choice:
        _provider_error(f"an answer without choices: {excerpt(reply.text, clean)}")
    message = _message(completion)
    if not isinstance(message, dict):
        _provider_error("an answer without a message")
    text, refusal = _content(message.get("content"))
    if isinstance(message.get("refusal"), str):
        refusal = message["refusal"] or refusal
    if refusal:
        raise _NotAnAnswer(FailureKind.REFUSED, f"the model refused: {one_line(refusal, clean)}")
    word = as_text(choice.get("finish_reason"), clean)
    finish = finish_of(choice.get("finish_reason"))
    is_empty = not text.strip() and not may_be_empty
    if is_empty and finish in (Finish.GOOD, Finish.UNKNOWN):
        native = finish_of(choice.get("native_finish_reason"))
        finish = native if native in (Finish.BROKEN, Finish.FILTERED) else finish
    why = f" (finish reason {word!r})" if word else ""
    if finish is Finish.FILTERED:
        raise _NotAnAnswer(FailureKind.REFUSED, f"the provider's content filter stopped the answer{why}")
    if finish is Finish.BROKEN:
        raise _NotAnAnswer(FailureKind.PROVIDER_ERROR, f"the provider broke the answer off{why}")
    if is_empty:
        raise _NotAnAnswer(FailureKind.INVALID_OUTPUT, f"the answer's text is empty{why}")
    if finish is Finish.CUT_OFF and wants_whole:
        raise _NotAnAnswer(FailureKind.INVALID_OUTPUT, "the token limit cut the output off")
    return text


def _content(content: object) -> tuple[str, str]:
    """Return text and refusal of a message's content, which is a text or a list of parts. Skips reasoning."""
    if isinstance(content, str):
        return content, ""
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    text = "".join(
        part["text"] for part in parts if isinstance(part.get("text"), str) and not _is_reasoning(part)
    )
    refusal = "".join(part["refusal"] for part in parts if isinstance(part.get("refusal"), str))
    return text, refusal


def _is_reasoning(part: Mapping[str, Any]) -> bool:
    kind = str(part.get("type", "")).lower()
    return part.get("thought") is True or any(
        word in kind for word in ("reason", "think", "thought", "summary")
    )


def _provider_error(message: str, *, outcome_unknown: bool = False) -> NoReturn:
    raise _NotAnAnswer(
        FailureKind.PROVIDER_ERROR, f"the provider answered {message}", outcome_unknown=outcome_unknown
    )
