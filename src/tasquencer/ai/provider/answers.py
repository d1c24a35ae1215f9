"""Judges an answer with a good status: is it an answer, or a failure in disguise?

A failure keeps what the provider billed (tokens, cost) and how it named the request: it costs the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jsonschema
from jsonschema.validators import validator_for
from pydantic import JsonValue
from referencing import Registry
from referencing.exceptions import Unresolvable

from tasquencer.ai.answer import MAXIMUM_ANSWER_BYTES, AiAnswer
from tasquencer.ai.provider.classify import heed_headers
from tasquencer.ai.provider.prices import Price
from tasquencer.ai.provider.redaction import storable
from tasquencer.ai.provider.reply import (
    MOST_VALUES,
    Clean,
    Reply,
    ReplyEnd,
    as_text,
    excerpt,
    nests_too_deeply,
    one_line,
    provider_error_in,
    request_id,
    token_count,
)
from tasquencer.core.failure import Failure, FailureKind

__all__ = ["Completion", "Schema", "judge", "problem_of_schema"]

Schema = dict[str, JsonValue]
Completion = Mapping[str, Any]


class _NotAnAnswer(Exception):
    def __init__(
        self, kind: FailureKind, message: str, *, outcome_unknown: bool = False, code: str | None = None
    ):
        self.failure = Failure.of(kind, message, outcome_unknown=outcome_unknown, provider_code=code)


def judge(
    reply: Reply, *, asked_model: str, output_schema: Schema | None, price: Price, clean: Clean, now: datetime
) -> AiAnswer | Failure:
    """The answer in a reply with a good status, or the failure it is.

    Args:
        reply: The provider's reply.
        asked_model: Stands in where the reply does not say which model answered.
        output_schema: A JSON Schema that the answer's text must satisfy as JSON.
        price: What the usage costs; an error of it means an unknown cost.
        clean: Makes foreign texts fit to be recorded.
        now: For a Retry-After that is a date; aware.
    """
    facts: dict[str, JsonValue] = {"provider_request_id": request_id(reply, clean)}
    try:
        completion = _completion(reply, clean)
        facts = _facts(reply, completion, asked_model, price, clean)
        if completion.get("error") or completion.get("object") == "error":
            _report(completion, f"the provider answered an error with status {reply.status_code}", clean)
        text = storable(_text(reply, completion, facts["finish_reason"], clean))
        answer = AiAnswer.model_validate({"text": text} | facts)
        size = len(answer.model_dump_json().encode())
        if size > MAXIMUM_ANSWER_BYTES:
            limit = f"the limit is {MAXIMUM_ANSWER_BYTES:,}"
            raise _NotAnAnswer(FailureKind.TOO_LARGE, f"the answer has {size:,} bytes as JSON, {limit}")
        if output_schema is not None:
            _check_output(text, facts["finish_reason"], output_schema, clean)
        return answer
    except _NotAnAnswer as verdict:
        known = {name: value for name, value in facts.items() if value is not None}
        details = {"status_code": reply.status_code} | known | verdict.failure.details
        return heed_headers(verdict.failure.model_copy(update={"details": details}), reply.headers, now)


def problem_of_schema(schema: Schema) -> str | None:
    """Why this is no JSON Schema, or None if it is one."""
    try:
        validator_for(schema, default=jsonschema.Draft202012Validator).check_schema(schema)
    except jsonschema.SchemaError as error:
        return error.message
    except RecursionError:
        return "it is nested too deeply"
    return None


def _completion(reply: Reply, clean: Clean) -> Completion:
    if reply.end is ReplyEnd.OVERSIZED:
        raise _NotAnAnswer(FailureKind.TOO_LARGE, f"the answer has more than {len(reply.body):,} bytes")
    if reply.end is ReplyEnd.INTERRUPTED:
        message = f"the answer broke off after {len(reply.body):,} bytes"
        raise _NotAnAnswer(FailureKind.PROVIDER_ERROR, message, outcome_unknown=True)
    status = f"with status {reply.status_code}"
    if reply.has_too_many_values:
        _provider_error(f"JSON {status} that has more than {MOST_VALUES:,} values")
    if nests_too_deeply(reply.text):
        _provider_error(f"JSON {status} that is nested too deeply")
    try:
        completion = json.loads(reply.text, strict=False)
    except ValueError:
        what = "a web page" if reply.is_html else "malformed JSON" if reply.text.strip() else "an empty body"
        _provider_error(f"{what} {status}: {excerpt(reply.text, clean)}".removesuffix(": "))
    if isinstance(completion, list) and completion and isinstance(completion[0], dict):
        completion = completion[0]  # Google's errors are a list of one
    return completion if isinstance(completion, dict) else {}


def _facts(
    reply: Reply, completion: Completion, asked_model: str, price: Price, clean: Clean
) -> dict[str, JsonValue]:
    usage = completion.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    input_tokens = token_count(tokens.get("prompt_tokens"))
    output_tokens = token_count(tokens.get("completion_tokens"))
    model = as_text(completion.get("model"), clean) or asked_model
    cost = None
    if input_tokens is not None and output_tokens is not None:
        cost = _cost(price, [model, asked_model], input_tokens, output_tokens)
    return {
        "model": model,
        "finish_reason": as_text(_first_choice(completion).get("finish_reason"), clean),
        "provider_request_id": request_id(reply, clean, completion),
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cost_usd": cost,
    }


def _cost(price: Price, models: list[str], input_tokens: int, output_tokens: int) -> float | None:
    for model in models:
        try:
            cost = price(model, input_tokens, output_tokens)
        except Exception:  # noqa: BLE001 - a paid answer is worth more than its price
            cost = None
        if cost is not None and math.isfinite(cost) and cost >= 0:
            return cost
    return None


def _first_choice(completion: Completion) -> Completion:
    choices = completion.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _text(reply: Reply, completion: Completion, finish_reason: JsonValue, clean: Clean) -> str:
    choice = _first_choice(completion)
    if not choice:
        _provider_error(f"an answer without choices: {excerpt(reply.text, clean)}")
    if choice.get("error"):  # OpenRouter: the model behind it broke off
        _report(choice, "the model's provider failed", clean)
    message = choice.get("message")
    if not isinstance(message, dict):
        _provider_error("an answer without a message")
    text, refusal = _content(message.get("content"))
    if isinstance(message.get("refusal"), str):
        refusal = message["refusal"] or refusal
    if refusal:
        raise _NotAnAnswer(FailureKind.REFUSED, f"the model refused: {one_line(refusal, clean)}")
    if finish_reason == "content_filter":
        raise _NotAnAnswer(FailureKind.REFUSED, "the provider's content filter stopped the answer")
    if not text.strip():
        why = f" (finish reason {finish_reason!r})" if finish_reason else ""
        raise _NotAnAnswer(FailureKind.INVALID_OUTPUT, f"the answer's text is empty{why}")
    return text


def _content(content: object) -> tuple[str, str]:
    """Text and refusal of a message's content: a text, or a list of parts."""
    if isinstance(content, str):
        return content, ""
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    text = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    refusal = "".join(part["refusal"] for part in parts if isinstance(part.get("refusal"), str))
    return text, refusal


def _check_output(text: str, finish_reason: JsonValue, schema: Schema, clean: Clean) -> None:
    if finish_reason == "length":
        raise _NotAnAnswer(FailureKind.INVALID_OUTPUT, "the token limit cut the output off")
    try:
        if nests_too_deeply(text):
            raise RecursionError
        output = json.loads(text, parse_constant=_reject_constant)
        # The registry is empty on purpose: a schema must not make the worker fetch what it refers to.
        validator_class = validator_for(schema, default=jsonschema.Draft202012Validator)
        validator = validator_class(schema, registry=Registry())
        mismatch = jsonschema.exceptions.best_match(validator.iter_errors(output))
    except RecursionError:
        problem = "it is nested too deeply"
    except Unresolvable as error:
        problem = f"the schema refers to something unknown: {error.ref}"
    except ValueError as error:
        problem = f"it is not JSON: {error}"
    else:
        if mismatch is None:
            return
        problem = f"at {mismatch.json_path}: {mismatch.message}"
    raise _NotAnAnswer(
        FailureKind.INVALID_OUTPUT,
        f"the output does not fit the schema asked for: {one_line(problem, clean)}",
    )


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _report(holder: Completion, what: str, clean: Clean) -> NoReturn:
    said = provider_error_in(holder, clean)
    message = f"{what}: {said.message}" if said.message else what
    raise _NotAnAnswer(FailureKind.PROVIDER_ERROR, message, code=said.code or said.type)


def _provider_error(message: str) -> NoReturn:
    raise _NotAnAnswer(FailureKind.PROVIDER_ERROR, f"the provider answered {message}")
