"""What providers and gateways say when something is wrong, and what it means: one row for each form of it."""

# ruff: noqa: E501 - a row of a table has a line

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from tasquencer.core.failure import TRANSIENT_KINDS, FailureKind
from tests.activities.calling import failure_of
from tests.support import answers
from tests.support.provider import ScriptedProvider

K = FailureKind


@dataclass(frozen=True)
class Said:
    """What a provider says, and what is made of it."""

    name: str
    status: int
    body: Any
    kind: FailureKind
    wait: float | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = ""
    """A part of the failure's message."""
    transient: bool | None = None
    """None: as the kind is."""


def error(message: str = "no", code: Any = None, kind: Any = None, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code} | more}


def google(code: int, status: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def delay(seconds: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": seconds}


def router(code: int, raw: Any, **more: Any) -> dict[str, Any]:
    return error("Provider returned error", code, metadata={"raw": raw, "provider_name": "x"} | more)


FREE_TIER = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this "
    "error, head to the docs. * Quota exceeded for metric: generate_content_free_tier_requests, limit: 10\n"
    "Please retry in 34.074824224s."
)
PLEASE_WAIT = (
    "Rate limit reached for tiny-1 in organization org-1 on tokens per min (TPM): Limit 30000, Used 29000."
)

IN_A_200 = [
    Said("401 as a number", 200, error(code=401), K.UNAUTHORIZED),
    Said("401 as text", 200, error(code="401"), K.UNAUTHORIZED),
    Said("402", 200, error("This request requires more credits", 402), K.QUOTA_EXCEEDED),
    Said("403", 200, error(code=403), K.UNAUTHORIZED),
    Said("404", 200, error("No endpoints found", 404), K.INVALID_REQUEST),
    Said("408", 200, error(code=408), K.TIMED_OUT),
    Said("429", 200, error("slow down", 429), K.RATE_LIMITED),
    Said("429 as a decimal", 200, error("slow down", 429.0), K.RATE_LIMITED),
    Said("in an error in an error", 200, {"error": error(code=402)}, K.QUOTA_EXCEEDED),
    Said("in a detail", 200, {"detail": error(code="insufficient_quota")}, K.QUOTA_EXCEEDED),
    Said("DashScope", 200, {"code": "InvalidApiKey", "message": "x"}, K.UNAUTHORIZED),
    Said("a status", 200, {"status": 429, "message": "x"}, K.RATE_LIMITED),
    Said("429 as text", 200, error("slow down", "429"), K.RATE_LIMITED),
    Said("502", 200, error(code=502), K.PROVIDER_ERROR),
    Said("504", 200, error(code=504), K.TIMED_OUT),
    Said("context", 200, error(code="context_length_exceeded"), K.INVALID_REQUEST),
    Said("filter", 200, error(code="content_filter"), K.REFUSED),
    Said("quota", 200, error(code="insufficient_quota"), K.QUOTA_EXCEEDED),
    Said("rate limit", 200, error(code="rate_limit_exceeded"), K.RATE_LIMITED),
    Said("a wrong request", 200, error(kind="invalid_request_error"), K.INVALID_REQUEST),
    Said("a broken server", 200, error(kind="server_error"), K.PROVIDER_ERROR),
    Said("overloaded", 200, error("Overloaded", kind="overloaded_error"), K.PROVIDER_ERROR),
    Said("no such model", 200, error(code="model_not_found"), K.INVALID_REQUEST),
    Said("a wrong key", 200, error(code="invalid_api_key"), K.UNAUTHORIZED),
    Said(
        "vLLM",
        200,
        {"object": "error", "message": "bad", "type": "BadRequestError", "code": 400},
        K.INVALID_REQUEST,
    ),
    Said(
        "Anthropic",
        200,
        {"type": "error", "error": {"type": "rate_limit_error", "message": "x"}},
        K.RATE_LIMITED,
    ),
    Said("only text", 200, {"error": "too many requests"}, K.RATE_LIMITED),
    Said("only a detail", 200, {"detail": "Unauthorized", "code": 401}, K.UNAUTHORIZED),
    Said("a list of one", 200, [google(429, "RESOURCE_EXHAUSTED", "x")], K.RATE_LIMITED),
    Said(
        "MiniMax: money",
        200,
        {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}, "choices": None},
        K.QUOTA_EXCEEDED,
    ),
    Said(
        "MiniMax: limit",
        200,
        {"base_resp": {"status_code": 1002, "status_msg": "rate limit exceeded(RPM)"}, "choices": None},
        K.RATE_LIMITED,
    ),
    Said("asks to wait", 200, error("busy", 503, retry_after=7), K.PROVIDER_ERROR, 7),
    Said("a blocked prompt", 200, {"choices": [], "promptFeedback": {"blockReason": "SAFETY"}}, K.REFUSED),
]

SPENT = [
    Said("OpenAI", 429, error(code="insufficient_quota", kind="insufficient_quota"), K.QUOTA_EXCEEDED),
    Said(
        "OpenAI, prepaid", 429, error("x", "credit_balance_exhausted", "insufficient_quota"), K.QUOTA_EXCEEDED
    ),
    Said("OpenAI, hard limit", 400, error(code="billing_hard_limit_reached"), K.QUOTA_EXCEEDED),
    Said("OpenAI, inactive", 429, error(code="billing_not_active"), K.QUOTA_EXCEEDED),
    Said(
        "only its words",
        429,
        error("You exceeded your current quota, please check your plan and billing details."),
        K.QUOTA_EXCEEDED,
    ),
    Said("Moonshot", 429, error("suspended", kind="exceeded_current_quota_error"), K.QUOTA_EXCEEDED),
    Said(
        "Anthropic",
        400,
        error("Your credit balance is too low to access the Anthropic API.", kind="invalid_request_error"),
        K.QUOTA_EXCEEDED,
    ),
    Said(
        "Anthropic, limit", 400, error("You have reached your specified API usage limits."), K.QUOTA_EXCEEDED
    ),
    Said(
        "DeepSeek",
        402,
        error("Insufficient Balance", "invalid_request_error", "unknown_error"),
        K.QUOTA_EXCEEDED,
    ),
    Said(
        "new-api",
        403,
        error("user quota is not enough", "insufficient_user_quota", "new_api_error"),
        K.QUOTA_EXCEEDED,
    ),
    Said("one-api", 403, error("x", "pre_consume_token_quota_failed", "one_api_error"), K.QUOTA_EXCEEDED),
    Said("one-api, in Chinese", 403, error("该令牌额度已用尽"), K.QUOTA_EXCEEDED),
    Said("a code for it in a 403", 403, error(code="quota_exceeded"), K.QUOTA_EXCEEDED),
    Said(
        "a code for it in a 401",
        401,
        {"type": "CreditsError", "message": "Insufficient balance"},
        K.QUOTA_EXCEEDED,
    ),
    Said("Perplexity", 401, error("You exceeded", 401, "insufficient_quota"), K.QUOTA_EXCEEDED),
    Said("OpenRouter, key", 403, error("Key limit exceeded (total limit).", 403), K.QUOTA_EXCEEDED),
    Said("OpenRouter", 402, error("Insufficient credits", 402), K.QUOTA_EXCEEDED),
    Said(
        "xAI",
        429,
        {
            "code": "Some resource has been exhausted",
            "error": "used all available credits or reached its limit",
        },
        K.QUOTA_EXCEEDED,
    ),
    Said(
        "LiteLLM",
        400,
        error("Budget has been exceeded! Current cost: 10", "400", "budget_exceeded"),
        K.QUOTA_EXCEEDED,
    ),
    Said(
        "Fireworks",
        412,
        error("Account is suspended, possibly due to reaching the monthly spending limit or failure to pay"),
        K.QUOTA_EXCEEDED,
    ),
    Said("DashScope", 400, error(code="Arrearage"), K.QUOTA_EXCEEDED),
    Said("DashScope, free tier", 403, error(code="AllocationQuota.FreeTierOnly"), K.QUOTA_EXCEEDED),
    Said("Zhipu", 429, error("余额不足或无可用资源包,请充值。", "1113"), K.QUOTA_EXCEEDED),
    Said("Volcengine", 403, error(code="AccountOverdueError"), K.QUOTA_EXCEEDED),
    Said(
        "SiliconFlow",
        403,
        {"code": 30001, "message": "Sorry, your account balance is insufficient"},
        K.QUOTA_EXCEEDED,
    ),
    Said("Ollama", 403, error("your subscription payment is past due", kind="api_error"), K.QUOTA_EXCEEDED),
    Said(
        "Cohere",
        429,
        {"message": "You are using a Trial key, which is limited to 1000 API calls / month."},
        K.QUOTA_EXCEEDED,
    ),
    Said("Gemini, prepaid", 402, google(402, "RESOURCE_EXHAUSTED", "prepaid"), K.QUOTA_EXCEEDED),
    Said(
        "Gemini, in words",
        429,
        google(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."),
        K.QUOTA_EXCEEDED,
    ),
    Said("Zhipu, a plan's limit", 429, error("Usage limit reached for 5 hour.", "1308"), K.QUOTA_EXCEEDED),
    Said("out of credits", 403, error(code="out_of_credits"), K.QUOTA_EXCEEDED),
    Said("a month's quota", 403, error(code="monthly_quota_exceeded"), K.QUOTA_EXCEEDED),
    Said("a plan's limit", 429, error("x", kind="usage_limit_reached"), K.QUOTA_EXCEEDED),
    Said(
        "a plan's limit that ends",
        429,
        error("x", kind="usage_limit_reached", resets_in_seconds=77),
        K.RATE_LIMITED,
        77,
    ),
    Said("behind a router", 429, router(429, json.dumps(error(code="insufficient_quota"))), K.QUOTA_EXCEEDED),
    Said("as a 500", 500, error(code="insufficient_quota"), K.QUOTA_EXCEEDED),
    Said(
        "as a 429 that also asks to wait",
        429,
        error("Your credit balance is too low"),
        K.QUOTA_EXCEEDED,
        5,
        {"retry-after": "5"},
    ),
]

FILTERED = [
    Said(
        "Azure",
        400,
        error(
            "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
            "content_filter",
            status=400,
            innererror={"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {}}},
        ),
        K.REFUSED,
    ),
    Said(
        "nested by LiteLLM",
        400,
        error(
            "litellm.BadRequestError: x",
            "400",
            provider_specific_fields={"innererror": {"code": "ResponsibleAIPolicyViolation"}},
        ),
        K.REFUSED,
    ),
    Said(
        "nested, as content_filter",
        500,
        error("x", "500", provider_specific_fields={"innererror": {"code": "content_filter"}}),
        K.REFUSED,
    ),
    Said(
        "DashScope",
        400,
        error("Input data may contain inappropriate content.", "data_inspection_failed"),
        K.REFUSED,
    ),
    Said("DashScope, its own API", 400, {"code": "DataInspectionFailed", "message": "x"}, K.REFUSED),
    Said("DeepSeek", 400, error("Content Exists Risk", "invalid_request_error"), K.REFUSED),
    Said(
        "OpenRouter",
        403,
        error(
            "The model requires moderation. Your input was flagged",
            403,
            metadata={"reasons": ["violence"], "flagged_input": "…"},
        ),
        K.REFUSED,
    ),
    Said(
        "xAI", 403, {"code": "x", "error": "Content violates usage guidelines. Failed check: CSAM"}, K.REFUSED
    ),
    Said(
        "Anthropic",
        400,
        error("Output blocked by content filtering policy", kind="invalid_request_error"),
        K.REFUSED,
    ),
    Said("Zhipu", 400, error("系统检测到输入或生成内容可能包含不安全或敏感内容", "1301"), K.REFUSED),
    Said("Volcengine", 400, error(code="InputTextSensitiveContentDetected"), K.REFUSED),
    Said(
        "as a 500",
        500,
        error("litellm.ContentPolicyViolationError: AzureException - content management policy"),
        K.REFUSED,
    ),
]

LIMITED = [
    Said("498", 498, error("Flex tier capacity exceeded", "capacity_exceeded"), K.RATE_LIMITED),
    Said("420", 420, {}, K.RATE_LIMITED),
    Said("430", 430, {}, K.RATE_LIMITED),
    Said("Mistral", 429, {"object": "error", "message": "Service tier capacity exceeded", "code": "3505"}, K.RATE_LIMITED),
    Said("Cerebras", 429, {"message": "Tokens per minute limit exceeded", "type": "too_many_tokens_error", "code": "token_quota_exceeded"}, K.RATE_LIMITED),
    Said("Moonshot", 429, error("overloaded", kind="engine_overloaded_error"), K.RATE_LIMITED),
    Said("Vertex", 429, google(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."), K.RATE_LIMITED),
    Said("Bedrock", 400, {"__type": "ThrottlingException", "message": "Too many tokens per day"}, K.RATE_LIMITED),
    Said("as a 400", 400, error(code="rate_limit_exceeded"), K.RATE_LIMITED),
    Said("a minute's quota", 429, google(429, "RESOURCE_EXHAUSTED", "Quota exceeded for aiplatform/requests_per_minute_per_project"), K.RATE_LIMITED),
    Said("a quota and Retry-After", 429, error("You exceeded your current quota"), K.RATE_LIMITED, 26, {"retry-after": "26"}),
    Said("GitHub", 429, error("Rate limit of 10 per 60s exceeded for UserByMinute. Please wait 26 seconds before retrying.", "RateLimitReached"), K.RATE_LIMITED, 26),
    Said("as a 403", 403, google(403, "x", "Rate Limit Exceeded", {"reason": "rateLimitExceeded"}), K.RATE_LIMITED),
    Said("as a 500", 500, error("litellm.RateLimitError", "429"), K.RATE_LIMITED),
    Said("as a 503", 503, router(503, "tiny-1 is temporarily rate-limited upstream. Please retry shortly"), K.RATE_LIMITED),
    Said("Zhipu", 429, error("您的账户已达到速率限制", "1302"), K.RATE_LIMITED),
    Said("a word of payment in it", 429, error(f"{PLEASE_WAIT} Please try again in 2s. You can increase your limit by adding a payment method to your billing account. No credits are needed.", "rate_limit_exceeded", "tokens"), K.RATE_LIMITED, 2),
]  # fmt: skip

WORTH_ANOTHER_TRY = [
    Said("425", 425, {}, K.PROVIDER_ERROR),
    Said("424", 424, {"error": "Request failed during generation: x", "error_type": "generation"}, K.PROVIDER_ERROR),
    Said("423", 423, {}, K.PROVIDER_ERROR),
    Said("499", 499, {}, K.PROVIDER_ERROR),
    Said("524", 524, "<html><title>A timeout occurred</title></html>", K.TIMED_OUT),
    Said("504", 504, {}, K.TIMED_OUT),
    Said("529", 529, error("Overloaded", kind="overloaded_error"), K.PROVIDER_ERROR),
    Said("overloaded as a 400", 400, error("The engine is currently overloaded", kind="engine_overloaded_error"), K.PROVIDER_ERROR),
    Said("broken as a 400", 400, error("x", kind="server_error"), K.PROVIDER_ERROR),
    Said("Bedrock", 424, {"__type": "ModelErrorException", "message": "x"}, K.PROVIDER_ERROR),
    Said("Groq's JSON", 400, error("Failed to generate JSON.", "json_validate_failed", failed_generation="{"), K.INVALID_OUTPUT),
    Said("told to", 400, error("x"), K.INVALID_REQUEST, headers={"x-should-retry": "true"}, transient=True),
    Said("told to, money or not", 402, error("x"), K.QUOTA_EXCEEDED, headers={"x-should-retry": "true"}, transient=True),
    Said("told not to", 503, error("x"), K.PROVIDER_ERROR, headers={"x-should-retry": "false"}, transient=False),
    Said("told not to in a 200", 200, error("x", 503), K.PROVIDER_ERROR, headers={"x-should-retry": "false"}, transient=False),
]  # fmt: skip

FINAL = [
    Said("context, as a 500", 500, error(code="context_length_exceeded"), K.INVALID_REQUEST),
    Said("context, as words", 400, error("This model's maximum context length is 8192 tokens."), K.INVALID_REQUEST),
    Said("llama.cpp", 500, error("request (5000 tokens) exceeds the available context size (4096)", 400, "exceed_context_size_error"), K.INVALID_REQUEST),
    Said("Groq, too large", 413, error("Request too large for model on tokens per minute (TPM): Limit 6000, Requested 8000", "rate_limit_exceeded", "tokens"), K.INVALID_REQUEST),
    Said("OpenAI, too large", 429, error("Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 46000.", "rate_limit_exceeded", "tokens"), K.INVALID_REQUEST),
    Said("Anthropic, too long", 400, error("prompt is too long: 210000 tokens > 200000 maximum"), K.INVALID_REQUEST),
    Said("Google, a wrong key", 400, google(400, "INVALID_ARGUMENT", "API key not valid.", {"reason": "API_KEY_INVALID"}), K.UNAUTHORIZED),
    Said("a wrong key as a 500", 500, error("Incorrect API key provided", "invalid_api_key"), K.UNAUTHORIZED),
    Said("a wrong key behind a router", 502, router(502, error(code="invalid_api_key")), K.UNAUTHORIZED),
    Said("451", 451, {}, K.INVALID_REQUEST),
    Said("a model for moderation", 404, error("The model 'omni-moderation-9' does not exist"), K.INVALID_REQUEST),
]  # fmt: skip

WAITS = [
    Said("Gemini", 429, google(429, "RESOURCE_EXHAUSTED", FREE_TIER, {"x": 1}, delay("34.07s")), K.RATE_LIMITED, 34.074824224),
    Said("Gemini, only the field", 429, google(429, "RESOURCE_EXHAUSTED", "quota", delay("34.07s")), K.RATE_LIMITED, 34.07),
    Said("Gemini, as a list", 429, [google(429, "RESOURCE_EXHAUSTED", "quota", delay("26s"))], K.RATE_LIMITED, 26),
    Said("Gemini, as a 503", 503, google(503, "UNAVAILABLE", "overloaded", delay("9s")), K.PROVIDER_ERROR, 9),
    Said("Gemini, as text in text", 429, error(json.dumps(google(429, "RESOURCE_EXHAUSTED", "x", delay("26s"))), 429), K.RATE_LIMITED, 26),
    Said("Gemini behind LiteLLM", 429, error("litellm.RateLimitError: GeminiException - " + json.dumps(google(429, "RESOURCE_EXHAUSTED", "x", delay("26s"))), "429"), K.RATE_LIMITED, 26),
    Said("a field with an object", 429, {"error": {"message": "x", "retry_delay": {"seconds": 12}}}, K.RATE_LIMITED, 12),
    Said("seconds", 429, error(f"{PLEASE_WAIT} Please try again in 5.289s. Visit x"), K.RATE_LIMITED, 5.289),
    Said("milliseconds", 429, error("Please try again in 250ms."), K.RATE_LIMITED, 0.25),
    Said("minutes", 429, error("Please try again in 9m38.016s. Need more?"), K.RATE_LIMITED, 578.016),
    Said("hours", 429, error("try again in 1h12m3.5s"), K.RATE_LIMITED, 4323.5),
    Said("words", 429, error("Please retry after 7 seconds."), K.RATE_LIMITED, 7),
    Said("many words", 429, error("Please wait 1 minute and 30 seconds before trying again"), K.RATE_LIMITED, 90),
    Said("Azure", 429, error("have exceeded token rate limit of your pricing tier. Please retry after 55 seconds. Please go here", "429"), K.RATE_LIMITED, 55),
    Said("Azure's gateway", 429, {"statusCode": 429, "message": "Rate limit is exceeded. Try again in 34 seconds."}, K.RATE_LIMITED, 34),
    Said("a clock", 403, {"statusCode": 403, "message": "Out of call volume quota. Quota will be replenished in 00:12:34."}, K.RATE_LIMITED, 754),
    Said("LiteLLM", 429, error("No deployments available for selected model, Try again in 60 seconds. Passed model=x"), K.RATE_LIMITED, 60),
    Said("Hugging Face", 503, {"error": "Model x is currently loading", "estimated_time": 20.5}, K.PROVIDER_ERROR, 20.5),
    Said("the longest counts", 429, error("Please try again in 20s", retry_after=3), K.RATE_LIMITED, 20, {"retry-after": "5"}),
    Said("the header is longer", 429, error("Please try again in 2s"), K.RATE_LIMITED, 6, {"retry-after": "6"}),
    Said("OpenRouter", 429, error("Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000", 429, metadata={"headers": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "90"}}), K.RATE_LIMITED, 90),
    Said("an exhausted limit", 429, error(), K.RATE_LIMITED, 360, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}),
    Said("two limits, one exhausted", 429, error(), K.RATE_LIMITED, 8.64, {"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "8.64s"}),
    Said("two exhausted limits", 429, error(), K.RATE_LIMITED, 60, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "120ms"}),
    Said("an exhausted limit in seconds", 429, error(), K.RATE_LIMITED, 33011.4, {"x-ratelimit-remaining-requests-day": "0", "x-ratelimit-reset-requests-day": "33011.4"}),
    Said("the draft of a standard", 429, error(), K.RATE_LIMITED, 30, {"ratelimit": '"default";r=0;t=30'}),
    Said("no limit exhausted", 429, error(), K.RATE_LIMITED, None, {"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "6m0s"}),
    Said("asked to wait less", 429, error(), K.RATE_LIMITED, 2, {"retry-after": "2", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}),
    Said("Azure's milliseconds", 429, error(), K.RATE_LIMITED, 1.5, {"x-ms-retry-after-ms": "1500"}),
    Said("negative", 429, error(retry_after=-3), K.RATE_LIMITED),
    Said("NaN", 429, {"error": {"message": "x", "retry_after": "nan"}}, K.RATE_LIMITED),
    Said("infinite", 429, {"error": {"message": "x", "retry_after": "inf"}}, K.RATE_LIMITED),
    Said("eleven years", 429, error("Please try again in 4100 days"), K.RATE_LIMITED),
    Said("no time", 429, error("Please retry 3 times, or wait for the 20 requests per minute"), K.RATE_LIMITED),
    Said("unreadable", 429, google(429, "x", "x", delay("soon")), K.RATE_LIMITED),
    Said("a reset that cannot be read", 429, error(), K.RATE_LIMITED, None, {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "later"}),
]  # fmt: skip

REASONS = [
    Said("OpenRouter", 429, router(429, "tiny-1 is temporarily rate-limited upstream."), K.RATE_LIMITED, message="Provider returned error: tiny-1 is temporarily rate-limited"),
    Said("OpenRouter, JSON in text", 400, router(400, json.dumps(error("at most 1 image per prompt"))), K.INVALID_REQUEST, message="at most 1 image per prompt"),
    Said("OpenRouter in a 200", 200, router(502, {"error": {"message": "upstream is gone"}}), K.PROVIDER_ERROR, message="upstream is gone"),
    Said("an inner error", 500, error("An error occurred", innererror={"message": "the disk is full"}), K.PROVIDER_ERROR, message="the disk is full"),
    Said("an empty message", 500, error("", cause={"message": "the disk is full"}), K.PROVIDER_ERROR, message="the disk is full"),
    Said("FastAPI", 422, {"detail": [{"loc": ["body"], "msg": "field required", "type": "missing"}]}, K.INVALID_REQUEST, message="field required"),
    Said("Cloudflare", 429, {"success": False, "errors": [{"code": 2003, "message": "Rate limited"}]}, K.RATE_LIMITED, message="Rate limited"),
    Said("nothing", 503, error("", None), K.PROVIDER_ERROR, message="Service Unavailable"),
    Said("a message of its own comes first", 400, error("the real reason", metadata={"raw": "something else"}), K.INVALID_REQUEST, message="the real reason"),
]  # fmt: skip

ROWS = [
    pytest.param(row, id=f"{group}: {row.name}")
    for group, rows in {
        "in a 200": IN_A_200,
        "spent": SPENT,
        "filtered": FILTERED,
        "limited": LIMITED,
        "worth another try": WORTH_ANOTHER_TRY,
        "final": FINAL,
        "wait": WAITS,
        "reason": REASONS,
    }.items()
    for row in rows
]


@pytest.mark.parametrize("said", ROWS)
async def test_what_a_provider_says_decides_kind_retry_and_wait(said: Said) -> None:
    body = said.body.encode() if isinstance(said.body, str) else json.dumps(said.body).encode()
    answer = answers.raw(body, code=said.status, headers=said.headers)
    async with ScriptedProvider([answer]) as provider:
        failure = await failure_of(provider.base_url)
    assert failure.kind == said.kind, failure
    expected = said.kind in TRANSIENT_KINDS if said.transient is None else said.transient
    assert failure.transient == expected
    assert failure.retry_after_seconds == (None if said.wait is None else pytest.approx(said.wait))
    assert said.message in failure.message
