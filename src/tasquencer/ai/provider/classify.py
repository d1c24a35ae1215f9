"""From what went wrong with an AI call to a `Failure`.

`tasquencer.ai.provider.kinds` says what an error of the provider means; here are the connection's errors, and
what the provider asks for: how long to wait, and whether to try again. Answers with status 200 are judged by
`tasquencer.ai.provider.answers`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from http import HTTPStatus

import httpx2
import openai

from tasquencer.ai.provider.kinds import kind_of_error
from tasquencer.ai.provider.reply import Clean, Reply, one_line, request_id
from tasquencer.ai.provider.reported import Report, report_in
from tasquencer.ai.provider.waits import asked_in_headers, refill
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.wording import duration

__all__ = ["classify", "error_failure", "heed_provider"]

_MAY_HAVE_RUN = frozenset({408, 504, 524})
"""Statuses that say "it took too long": the work may have been done (and billed) all the same."""

_REFILLED = (FailureKind.RATE_LIMITED, FailureKind.PROVIDER_ERROR)
"""Kinds for which an exhausted rate limit counts that nobody asks to wait for."""

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


def error_failure(
    status_code: int, what: str, report: Report, headers: Mapping[str, str], now: datetime
) -> Failure:
    """The failure that an error of the provider is, whether it came with an error status or not.

    Args:
        status_code: That of the answer.
        what: The beginning of the message, before the provider's words.
        report: What the body says.
        headers: Names in lower case.
        now: Aware.
    """
    has_retry_after = bool(asked_in_headers(headers, now))
    kind = kind_of_error(status_code, report, has_retry_after=has_retry_after)
    failure = Failure.of(
        kind,
        f"{what}: {report.message}" if report.message else what,
        outcome_unknown=kind is FailureKind.TIMED_OUT or status_code in _MAY_HAVE_RUN,
        provider_code=report.code,
    )
    return heed_provider(failure, headers, report, now)


def heed_provider(failure: Failure, headers: Mapping[str, str], report: Report, now: datetime) -> Failure:
    """The failure with what the provider says about trying again; the message then says so as well."""
    notes: list[str] = []
    asked = [asked_in_headers(headers, now), asked_in_headers(report.headers, now), report.wait_seconds]
    wait = max((seconds for seconds in asked if seconds is not None), default=None)
    if wait is None and failure.kind in _REFILLED:
        wait = refill(headers, now) or refill(report.headers, now)
    if wait is not None:
        failure = failure.model_copy(update={"retry_after_seconds": wait})
        notes.append(f"asks to wait {duration(wait)}")
    should_retry = headers.get("x-should-retry", "").strip().lower()
    if should_retry in ("true", "false") and failure.transient != (should_retry == "true"):
        failure = failure.model_copy(update={"transient": should_retry == "true"})
        notes.append("says to retry" if should_retry == "true" else "says not to retry")
    if not notes:
        return failure
    return failure.model_copy(update={"message": f"{failure.message} ({', '.join(notes)})"})


def _status(error: openai.APIStatusError, now: datetime, clean: Clean) -> Failure:
    code = error.status_code
    headers = {name.lower(): value for name, value in error.response.headers.items()}
    report = report_in(error.body, clean)
    said = report.message or _meaning(code)
    if 300 <= code < 400:
        place = one_line(re.split("[?#]", headers.get("location", ""))[0], clean) or "nowhere"
        said = f"it redirects to {place}, which is not followed; correct the base URL"
    what = f"{code} from the provider"
    failure = error_failure(code, what, replace(report, message=said), headers, now)
    facts = {
        "status_code": code,
        "provider_request_id": request_id(Reply(code, headers, b""), clean),
    }
    known = {name: value for name, value in facts.items() if value is not None}
    return failure.model_copy(update={"details": known | failure.details})


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
