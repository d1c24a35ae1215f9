"""Turns the errors of an AI call into a `Failure`.

`tasquencer.ai.provider.errors` reads what the provider reports; here are the errors of the connection.
Answers with status 200 are judged by `tasquencer.ai.provider.answers`.
"""

from __future__ import annotations

from datetime import datetime

import httpx2
import openai

from tasquencer.ai.provider.errors import status_failure
from tasquencer.ai.provider.reply import Clean, one_line
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.wording import duration

__all__ = ["classify"]

_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
"""Errors before there was a connection, so that the request cannot have been received."""

_MISCONFIGURED = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
"""Errors of a request that HTTP cannot send (a base URL without a scheme, a line break in the key)."""


def classify(
    error: BaseException, *, now: datetime, clean: Clean, limit_seconds: float | None = None
) -> Failure:
    """Return the failure for an exception of the OpenAI client, its HTTP library or `asyncio.timeout`.

    Args:
        error: Any exception except a cancellation.
        now: The current time (aware), for a Retry-After that is a date.
        clean: Makes foreign texts safe to record.
        limit_seconds: The call's time limit, for the message.
    """
    if isinstance(error, openai.APIStatusError):
        return status_failure(error.status_code, error.body, error.response.headers, now=now, clean=clean)
    if isinstance(error, openai.APIConnectionError):
        return _connection(error.__cause__ or error, clean, limit_seconds)
    if isinstance(error, TimeoutError | httpx2.RequestError):
        return _connection(error, clean, limit_seconds)
    return Failure.of(FailureKind.UNEXPECTED, _named(error, clean), outcome_unknown=True)


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
        how = "it was reset"  # the library drops the system's own message
    return Failure.of(FailureKind.UNREACHABLE, f"{what}: {how}", outcome_unknown=sent)


def _named(error: BaseException, clean: Clean) -> str:
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - a foreign __str__ may do anything
        said = ""
    text = one_line(said, clean)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
