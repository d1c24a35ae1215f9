"""Why a model request of an agent failed, read from whatever exception arrives.

On the activity side that is the framework's own exception, with the client library's behind it. In a workflow
it is what Temporal's failure converter keeps: a type, a message, and what the framework put into the details.
The best witness in the chain of causes counts: an HTTP status with headers and body first, then a status in a
message, then the name of a class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import JsonValue

from tasquencer.ai.agents.reading import AgentStep, as_object, as_text
from tasquencer.ai.agents.steps import PriceOf, answer_facts
from tasquencer.ai.provider.errors import status_failure
from tasquencer.ai.provider.redaction import Redactor
from tasquencer.ai.provider.reply import one_line
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.retry_after import LONGEST_RETRY_AFTER

__all__ = ["facts_of_failure", "failure_of_agent"]

_LONGEST_CHAIN = 20

_PYDANTIC_AI = "pydantic_ai_model_error"
_STREAMED = "pydantic_ai_streamed_before_failing"
"""Keys in the details of Pydantic AI's errors."""

_STATUS_TYPES = frozenset(
    {
        "APIStatusError", "AuthenticationError", "BadRequestError", "ConflictError", "InternalServerError",
        "ModelHTTPError", "NotFoundError", "PermissionDeniedError", "RateLimitError",
        "UnprocessableEntityError",
    }
)  # fmt: skip
"""Types of errors whose message names a status."""

_STATUS = re.compile(
    r"(?:error code|status code|status_code): (\d{3})\b(?:.*?(?: - |, body: )(.*))?",
    re.IGNORECASE | re.DOTALL,
)

_MODEL = re.compile(r"\bmodel_name: ([^,]{1,200}),")

_KINDS = {
    "ModelRateLimitError": FailureKind.RATE_LIMITED,
    "ModelQuotaExceededError": FailureKind.QUOTA_EXCEEDED,
    "ModelUnavailableError": FailureKind.PROVIDER_ERROR,
    "ModelOverloadedError": FailureKind.PROVIDER_ERROR,
    "ModelServerError": FailureKind.PROVIDER_ERROR,
    "ModelTimeoutError": FailureKind.TIMED_OUT,
    "ModelRequestTimeout": FailureKind.TIMED_OUT,
    "APITimeoutError": FailureKind.TIMED_OUT,
    "ModelConnectionError": FailureKind.UNREACHABLE,
    "APIConnectionError": FailureKind.UNREACHABLE,
    "ModelAuthenticationError": FailureKind.UNAUTHORIZED,
    "ModelNotFoundError": FailureKind.INVALID_REQUEST,
    "ModelContextWindowExceededError": FailureKind.INVALID_REQUEST,
    "ModelRequestRejectedError": FailureKind.INVALID_REQUEST,
    "ContentFilterError": FailureKind.REFUSED,
    "UnexpectedModelBehavior": FailureKind.PROVIDER_ERROR,
    "ModelBehaviorError": FailureKind.PROVIDER_ERROR,
}
"""By class, the most telling first: what an error without a status means."""

_NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"})

_clean = Redactor()


@dataclass(frozen=True)
class _Status:
    code: int
    body: object
    headers: Mapping[str, str]
    model: str | None
    asked_seconds: float | None = None


def failure_of_agent(error: BaseException, native: Failure, *, now: datetime) -> Failure:
    """The failure of a model request: its kind, and what the provider asks for.

    Whether it qualifies for a retry stays as it is natively: that is the framework's and the policy's choice.

    Args:
        error: What the activity raised, or what the workflow got.
        native: The failure as it is read for any activity.
        now: For a Retry-After that is a date; aware.
    """
    chain = list(_chain(error))
    found = _by_status(chain, now) or _by_name(chain)
    if found is None:
        return native
    asked = [one for one in (found.retry_after_seconds, native.retry_after_seconds) if one is not None]
    details = {name: value for name, value in found.details.items() if value is not None}
    return found.model_copy(
        update={
            "transient": native.transient,
            "retry_after_seconds": max(asked, default=None),
            "details": details,
        }
    )


def facts_of_failure(
    error: BaseException, failure: Failure, step: AgentStep, price_of: PriceOf
) -> dict[str, JsonValue]:
    """What is known of a failed request, in the names of `AiAnswer`: model, reported tokens."""
    facts: dict[str, JsonValue] = {}
    for one in _chain(error):
        streamed = _detail(one).get(_STREAMED)
        if streamed is not None:
            facts = answer_facts(step, streamed, price_of)
            break
    facts.pop("text", None)
    known = {name: failure.details.get(name) for name in ("model", "provider_request_id")}
    return facts | {name: value for name, value in known.items() if value is not None}


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, or was under way when it was raised."""
    seen: set[int] = set()
    pending = [error]
    while pending and len(seen) < _LONGEST_CHAIN:
        one = pending.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        pending += [
            other
            for other in (one.__cause__, one.__context__, getattr(one, "cause", None))
            if isinstance(other, BaseException)
        ]


def _by_status(chain: list[BaseException], now: datetime) -> Failure | None:
    found = [status for one in chain if (status := _told(one) or _had(one)) is not None]
    if not found:
        # The innermost says most: the client library's error is behind the framework's.
        found = [status for one in reversed(chain) if (status := _said(one)) is not None]
    if not found:
        return None
    status = max(found, key=lambda one: (bool(one.headers), one.body is not None))
    failure = status_failure(status.code, status.body, status.headers, now=now, clean=_clean)
    asked = [one.asked_seconds for one in found if one.asked_seconds is not None]
    if failure.retry_after_seconds is None and asked:
        wait = min(max(asked), LONGEST_RETRY_AFTER.total_seconds())
        failure = failure.model_copy(update={"retry_after_seconds": wait})
    model = next((one.model for one in found if one.model), None)
    return failure.model_copy(update={"details": failure.details | {"model": model}})


def _detail(error: BaseException) -> Mapping[str, Any]:
    details = getattr(error, "details", None)
    return as_object(details[0]) if isinstance(details, list | tuple) and details else {}


def _told(error: BaseException) -> _Status | None:
    """The status in the details that Pydantic AI puts into its errors."""
    encoded = as_object(_detail(error).get(_PYDANTIC_AI))
    args = encoded.get("args")
    if not (isinstance(args, list) and len(args) >= 2 and isinstance(args[0], int)):
        return None
    state = as_object(encoded.get("state"))
    body = args[2] if len(args) > 2 else state.get("body")
    return _Status(
        args[0], body, _headers(state.get("headers")), as_text(args[1]), _wait(state.get("retry_after"))
    )


def _had(error: BaseException) -> _Status | None:
    """The status of an exception that has headers and body: Pydantic AI's, or a client library's."""
    code = getattr(error, "status_code", None)
    if isinstance(code, bool) or not isinstance(code, int) or not hasattr(error, "body"):
        return None
    headers = getattr(error, "headers", None) or getattr(getattr(error, "response", None), "headers", None)
    return _Status(
        code,
        getattr(error, "body", None),
        _headers(headers),
        as_text(getattr(error, "model_name", None)),
        _wait(getattr(error, "retry_after", None)),
    )


def _said(error: BaseException) -> _Status | None:
    """The status in a message, where only type and message are left."""
    kind = getattr(error, "type", None)
    if kind not in _STATUS_TYPES and kind not in _KINDS:
        return None
    found = _STATUS.search(str(getattr(error, "message", "") or error))
    if found is None:
        return None
    model = _MODEL.search(str(error))
    return _Status(int(found[1]), found[2], {}, model[1] if model else None)


def _headers(value: object) -> Mapping[str, str]:
    items = getattr(value, "items", None)
    if items is None:
        return {}
    return {str(name).lower(): str(text) for name, text in items()}


def _wait(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        return None
    return float(value)


def _by_name(chain: list[BaseException]) -> Failure | None:
    for one in chain:
        names = _names(one)
        kind = next((kind for name, kind in _KINDS.items() if name in names), None)
        if kind is None:
            continue
        return Failure.of(
            kind,
            one_line(str(getattr(one, "message", "") or one), _clean),
            outcome_unknown=_may_have_run(kind, one, chain),
            model=_clean_model(one),
        )
    return None


def _names(error: BaseException) -> frozenset[str]:
    """The names of its classes, or the type that Temporal kept."""
    kind = getattr(error, "type", None)
    encoded = as_object(_detail(error).get(_PYDANTIC_AI)).get("qualname")
    named = {name for name in (kind, encoded) if isinstance(name, str)}
    return frozenset(named | {one.__name__ for one in type(error).__mro__})


def _may_have_run(kind: FailureKind, error: BaseException, chain: list[BaseException]) -> bool:
    if kind not in (FailureKind.TIMED_OUT, FailureKind.UNREACHABLE):
        return False
    state = as_object(as_object(_detail(error).get(_PYDANTIC_AI)).get("state"))
    phase = getattr(error, "phase", None) or state.get("phase")
    causes = {type(one).__name__ for one in chain} | {str(getattr(one, "type", "")) for one in chain}
    return phase not in ("pool", "connect") and causes.isdisjoint(_NEVER_SENT)


def _clean_model(error: BaseException) -> str | None:
    encoded = as_object(_detail(error).get(_PYDANTIC_AI)).get("args")
    told = encoded[0] if isinstance(encoded, list) and encoded else None
    model = as_text(getattr(error, "model_name", None)) or as_text(told)
    return one_line(model, _clean, 200) if model else None
