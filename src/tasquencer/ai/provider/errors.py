"""Turns errors that a provider reports into failures, with the wait and the advice to retry.

This module knows no client library: an error is a status, headers and a body. `tasquencer.ai.provider.kinds`
decides on the kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from http import HTTPStatus

from tasquencer.ai.provider.kinds import kind_of_error
from tasquencer.ai.provider.reply import Clean, Reply, one_line, request_id
from tasquencer.ai.provider.reported import Report, report_in
from tasquencer.ai.provider.waits import asked_in_headers, refill
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.wording import duration

__all__ = ["error_failure", "heed_provider", "status_failure"]

_MAY_HAVE_RUN = frozenset({408, 504, 524})
"""Statuses for "it took too long". The work may have been done (and billed)."""

_REFILLED = (FailureKind.RATE_LIMITED, FailureKind.PROVIDER_ERROR)
"""Kinds for which an exhausted rate limit counts even without a request to wait."""


def status_failure(
    code: int, body: object, headers: Mapping[str, str], *, now: datetime, clean: Clean
) -> Failure:
    """Return the failure for an answer with an error status.

    Args:
        code: The status.
        body: The body as JSON or text.
        headers: The headers, with names in upper or lower case.
        now: The current time (aware), for a Retry-After that is a date.
        clean: Makes foreign texts safe to record.
    """
    headers = {name.lower(): value for name, value in headers.items()}
    report = report_in(body, clean)
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


def error_failure(
    status_code: int, what: str, report: Report, headers: Mapping[str, str], now: datetime
) -> Failure:
    """Return the failure for an error of the provider, with or without an error status.

    Args:
        status_code: The status of the answer.
        what: The beginning of the message, before the provider's words.
        report: The contents of the body.
        headers: The headers, with names in lower case.
        now: The current time, aware.
    """
    has_retry_after = bool(asked_in_headers(headers, now))
    kind = kind_of_error(status_code, report, has_retry_after=has_retry_after)
    message = f"{what}: {report.message}" if report.message else what
    parameter = report.parameter if kind is FailureKind.INVALID_REQUEST else None
    if parameter is not None and parameter not in message:
        message = f"{message} (parameter {parameter})"
    failure = Failure.of(
        kind,
        message,
        outcome_unknown=kind is FailureKind.TIMED_OUT or status_code in _MAY_HAVE_RUN,
        provider_code=report.code,
        parameter=parameter,
    )
    return heed_provider(failure, headers, report, now)


def heed_provider(failure: Failure, headers: Mapping[str, str], report: Report, now: datetime) -> Failure:
    """Return the failure with the provider's request to wait or to retry, also named in the message."""
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


def _meaning(status_code: int) -> str:
    try:
        return HTTPStatus(status_code).phrase
    except ValueError:
        return "no explanation"
