"""From what went wrong with an AI call to a `Failure`: DESIGN's table, row by row.

    rate_limited     429
    quota_exceeded   429 whose code says that the money is spent; 402
    timed_out        no answer in time; 408
    unreachable      connection refused, reset, closed without an answer; DNS; TLS
    provider_error   5xx, 409, redirects, an answer that is not HTTP or breaks off
    refused          an error status whose code names a content filter
    invalid_request  any other 4xx, and a context that is too long whatever the status
    unauthorized     401, 403
    unexpected       everything else: a bug of ours

Answers with status 200 are judged by `tasquencer.ai.provider.answers`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus

import httpx2
import openai

from tasquencer.ai.provider.reply import Clean, Reply, one_line, provider_error_in, request_id
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.retry_after import parse_retry_after
from tasquencer.core.wording import duration

__all__ = ["classify", "heed_headers"]

_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_CONTEXT_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_FILTER_CODES = frozenset({"content_filter", "content_policy_violation", "responsibleaipolicyviolation"})

_MAY_HAVE_RUN = frozenset({408, 504, 524})
"""Statuses that say "it took too long": the work may have been done (and billed) all the same."""

_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
"""The request cannot have been received: there was no connection to send it on."""

_MISCONFIGURED = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
"""The request cannot be sent as HTTP at all (a base URL without a scheme, a line break in the key)."""


def classify(
    error: BaseException, *, now: datetime, clean: Clean, limit_seconds: float | None = None
) -> Failure:
    """The failure that an exception of the OpenAI client, its HTTP library or `asyncio.timeout` stands for.

    Args:
        error: Any exception but a cancellation.
        now: For a Retry-After that is a date; aware.
        clean: Makes foreign texts fit to be recorded.
        limit_seconds: The call's time limit, for the message.
    """
    if isinstance(error, openai.APIStatusError):
        return _status(error, now, clean)
    if isinstance(error, openai.APIConnectionError):
        return _connection(error.__cause__ or error, clean, limit_seconds)
    if isinstance(error, TimeoutError | httpx2.RequestError):
        return _connection(error, clean, limit_seconds)
    return Failure.of(FailureKind.UNEXPECTED, _named(error, clean), outcome_unknown=True)


def heed_headers(failure: Failure, headers: Mapping[str, str], now: datetime) -> Failure:
    """The failure with what the answer's headers say about trying again, which the message then says too."""
    notes: list[str] = []
    wait = parse_retry_after(headers, now)
    if wait is not None:
        failure = failure.model_copy(update={"retry_after_seconds": wait.total_seconds()})
        notes.append(f"asks to wait {duration(wait.total_seconds())}")
    if headers.get("x-should-retry", "").strip().lower() == "false":
        failure = failure.model_copy(update={"transient": False})
        notes.append("says not to retry")
    if not notes:
        return failure
    return failure.model_copy(update={"message": f"{failure.message} ({', '.join(notes)})"})


def _status(error: openai.APIStatusError, now: datetime, clean: Clean) -> Failure:
    headers = {name.lower(): value for name, value in error.response.headers.items()}
    said = provider_error_in(error.body, clean)
    message = said.message or _meaning(error.status_code)
    if 300 <= error.status_code < 400:
        place = one_line(re.split("[?#]", headers.get("location", ""))[0], clean) or "nowhere"
        message = f"it redirects to {place}, which is not followed; correct the base URL"
    kind = _kind(error.status_code, {(said.code or "").lower(), (said.type or "").lower()})
    failure = Failure.of(
        kind,
        f"{error.status_code} from the provider: {message}",
        outcome_unknown=error.status_code in _MAY_HAVE_RUN,
        status_code=error.status_code,
        provider_code=said.code or said.type,
        provider_request_id=request_id(Reply(error.status_code, headers, b""), clean),
    )
    return heed_headers(failure, headers, now)


def _kind(status_code: int, codes: set[str]) -> FailureKind:
    if codes & _CONTEXT_CODES:
        return FailureKind.INVALID_REQUEST
    match status_code:
        case 429:
            return FailureKind.QUOTA_EXCEEDED if codes & _QUOTA_CODES else FailureKind.RATE_LIMITED
        case 402:
            return FailureKind.QUOTA_EXCEEDED
        case 408:
            return FailureKind.TIMED_OUT
        case 401 | 403:
            return FailureKind.UNAUTHORIZED
        case 409:
            return FailureKind.PROVIDER_ERROR
        case code if 400 <= code < 500:
            return FailureKind.REFUSED if codes & _FILTER_CODES else FailureKind.INVALID_REQUEST
        case _:
            return FailureKind.PROVIDER_ERROR


def _connection(cause: BaseException, clean: Clean, limit_seconds: float | None) -> Failure:
    sent = not isinstance(cause, _NEVER_SENT)
    if isinstance(cause, TimeoutError | httpx2.TimeoutException | openai.APITimeoutError):
        within = f" within {duration(limit_seconds)}" if limit_seconds is not None else " in time"
        what = "no answer" if sent else "no connection to the provider"
        return Failure.of(FailureKind.TIMED_OUT, what + within, outcome_unknown=sent)
    if isinstance(cause, _MISCONFIGURED):
        return Failure.of(FailureKind.INVALID_REQUEST, f"the request cannot be sent: {_named(cause, clean)}")
    if isinstance(cause, httpx2.TooManyRedirects | httpx2.DecodingError) or (
        isinstance(cause, httpx2.RemoteProtocolError) and "disconnected" not in str(cause).lower()
    ):
        message = f"the provider's answer is not valid HTTP: {_named(cause, clean)}"
        return Failure.of(FailureKind.PROVIDER_ERROR, message, outcome_unknown=True)
    what = "the connection to the provider broke" if sent else "no connection to the provider"
    how = _named(cause, clean)
    if isinstance(cause, httpx2.NetworkError) and how == type(cause).__name__:
        how = "it was reset"  # the system's word for it is lost on the way here
    return Failure.of(FailureKind.UNREACHABLE, f"{what}: {how}", outcome_unknown=sent)


def _meaning(status_code: int) -> str:
    try:
        return HTTPStatus(status_code).phrase
    except ValueError:
        return "no explanation"


def _named(error: BaseException, clean: Clean) -> str:
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - a foreign __str__ may do anything
        said = ""
    text = one_line(said, clean)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
