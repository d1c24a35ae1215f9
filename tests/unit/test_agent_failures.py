"""Why a model request of an agent failed, as the activity and the workflow see it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import openai
import pytest
from temporalio.exceptions import ApplicationError

from tasquencer.ai.agents import failure_of_agent, step_of
from tasquencer.ai.agents.failures import facts_of_failure
from tasquencer.core.failure import Failure
from tasquencer.temporal.foreign import failure_of_exception

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def read(error: BaseException) -> Failure:
    return failure_of_agent(error, failure_of_exception(error), now=NOW)


def of_openai(code: int, body: object = None, headers: dict[str, str] | None = None) -> openai.APIStatusError:
    request = httpx2.Request("POST", "http://127.0.0.1/v1/chat/completions")
    response = httpx2.Response(code, headers=headers, request=request)
    made = openai.RateLimitError if code == 429 else openai.APIStatusError
    return made("failed", response=response, body=body)


class ModelAPIError(Exception):
    """As in Pydantic AI."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        vars(self).update({"model_name": "gpt", "body": None, "retry_after": None} | facts)


class ModelHTTPError(ModelAPIError):
    """As in Pydantic AI."""


class ModelConnectionError(ModelAPIError):
    """As in Pydantic AI."""


class ModelQuotaExceededError(ModelAPIError):
    """As in Pydantic AI."""


def behind(outer: BaseException, cause: BaseException) -> BaseException:
    outer.__cause__ = cause
    return outer


@pytest.mark.parametrize(
    ("code", "body", "kind"),
    [
        (429, {"message": "Rate limit reached", "code": "rate_limit_exceeded"}, "rate_limited"),
        (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}, "quota_exceeded"),
        (503, None, "provider_error"),
        (504, None, "timed_out"),
        (401, {"message": "Incorrect API key"}, "unauthorized"),
        (400, {"message": "flagged", "code": "content_filter"}, "refused"),
        (422, None, "invalid_request"),
    ],
)
def test_the_status_decides_wherever_it_stands(code: int, body: Any, kind: str) -> None:
    raised = of_openai(code, body, {"retry-after": "7", "x-request-id": "req-1"})
    wrapped = behind(ApplicationError(f"Retryable OpenAI status code: {code}", type="APIStatusError"), raised)
    of_pydantic = ModelHTTPError("failed", status_code=code, body=body, headers={"Retry-After": "7"})
    encoded = {
        "pydantic_ai_model_error": {
            "qualname": "ModelHTTPError",
            "args": [code, "gpt", body],
            "state": {"headers": {"retry-after": "7"}, "retry_after": 7.0},
        }
    }
    told = ApplicationError("failed", encoded, type="ModelHTTPError")
    for error in (raised, wrapped, of_pydantic, told):
        failure = read(error)
        assert (failure.kind, failure.retry_after_seconds) == (kind, 7), error
        assert failure.details["status_code"] == code
    assert read(wrapped).details["provider_request_id"] == "req-1"
    assert read(told).details["model"] == "gpt"


def test_in_a_workflow_type_and_message_are_enough() -> None:
    inner = ApplicationError(
        "Error code: 429 - {'error': {'code': 'insufficient_quota', 'message': 'spent'}}",
        type="RateLimitError",
    )
    outer = behind(
        ApplicationError(
            "Retryable OpenAI status code: 429",
            type="APIStatusError",
            next_retry_delay=timedelta(seconds=3),
        ),
        inner,
    )
    failure = read(outer)
    assert (failure.kind, failure.retry_after_seconds) == ("quota_exceeded", 3)
    message = "status_code: 503, model_name: gpt-5, body: {'message': 'overloaded'}"
    failure = read(ApplicationError(message, type="ModelHTTPError"))
    assert (failure.kind, failure.details["model"]) == ("provider_error", "gpt-5")
    assert "overloaded" in failure.message


@pytest.mark.parametrize("told", ["nan", "-5", "Thu, 01 Jan 2026 00:00:09 GMT"])
def test_a_framework_that_stumbles_over_retry_after_does_not_hide_the_status(told: str) -> None:
    try:
        try:
            raise of_openai(429, None, {"retry-after": told})
        except openai.APIStatusError:
            float("no number")
    except ValueError as stumbled:
        failure = read(stumbled)
    assert failure.kind == "rate_limited"
    assert failure.retry_after_seconds == (9 if "GMT" in told else None)


def test_without_a_status_the_class_decides() -> None:
    request = httpx2.Request("POST", "http://127.0.0.1/")
    refused = behind(openai.APIConnectionError(request=request), httpx2.ConnectError("refused"))
    broken = behind(openai.APIConnectionError(request=request), httpx2.ReadError("reset"))
    late = openai.APITimeoutError(request=request)
    assert [(read(one).kind, read(one).outcome_unknown) for one in (refused, broken, late)] == [
        ("unreachable", False),
        ("unreachable", True),
        ("timed_out", True),
    ]
    assert not read(ModelConnectionError("no way", phase="connect")).outcome_unknown
    assert read(ModelConnectionError("no way", phase="read")).outcome_unknown
    assert read(ModelQuotaExceededError("spent")).kind == "quota_exceeded"
    assert read(ApplicationError("spent", type="ModelQuotaExceededError")).kind == "quota_exceeded"


def test_what_is_no_failure_of_a_model_stays_as_it_is() -> None:
    for error in (ValueError("a bug"), ApplicationError("error code: 503", type="Mine")):
        assert read(error) == failure_of_exception(error)


def test_whether_it_is_retried_stays_the_framework_s_choice() -> None:
    final = behind(ApplicationError("no", type="APIStatusError", non_retryable=True), of_openai(429))
    assert (read(final).kind, read(final).transient) == ("rate_limited", False)
    again = of_openai(401)
    assert (read(again).kind, read(again).transient) == ("unauthorized", True)


def test_no_key_is_kept() -> None:
    said = {"message": "Incorrect API key provided: sk-abcdefghijklmnop"}
    assert "abcdefgh" not in read(of_openai(401, said)).model_dump_json()


def test_tokens_of_a_stream_that_broke_are_counted() -> None:
    step = step_of("agent__a__model_request_stream", {})
    assert step is not None
    streamed = {
        "kind": "response",
        "parts": [{"part_kind": "text", "content": "Sun"}],
        "usage": {"input_tokens": 9, "output_tokens": 2},
        "model_name": "gpt",
    }
    error = ApplicationError("broke", {"pydantic_ai_streamed_before_failing": streamed}, type="ModelAPIError")
    facts = facts_of_failure(error, read(error), step, lambda _url: None)
    assert facts == {"model": "gpt", "input_tokens": 9, "output_tokens": 2}


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert read(first).kind == "ValueError"
