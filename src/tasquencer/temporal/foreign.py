"""Activities of users: selects them, and records their arguments, results and failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from pydantic import JsonValue
from temporalio.common import RawValue, RetryPolicy
from temporalio.converter import DataConverter, PayloadConverter
from temporalio.exceptions import FailureError

from tasquencer.core.failure import Failure
from tasquencer.core.wording import one_line
from tasquencer.temporal.failures import failure_of

__all__ = ["MOST_BYTES", "as_json", "failure_of_exception", "hides_messages", "matches", "without_details"]

MOST_BYTES = 64 * 1024
"""Maximum bytes of a foreign activity's arguments or result that the ledger keeps."""

_MESSAGE_LENGTH = 2_000


def matches(patterns: Sequence[str], activity_type: str) -> bool:
    """Return whether one of the patterns (as in `fnmatch`, with case) matches the activity type."""
    return any(fnmatchcase(activity_type, pattern) for pattern in patterns)


def as_json(value: object, converter: PayloadConverter, most_bytes: int = MOST_BYTES) -> JsonValue:
    """Return the value as the client's payload converter writes it, if that is JSON and not too large.

    Otherwise a note: `{"not_recorded": <type>, "bytes": <size>}`.
    """
    try:
        payload = value.payload if isinstance(value, RawValue) else converter.to_payload(value)
    except Exception:  # noqa: BLE001 - the SDK asks the same converter, and says so to the user
        return {"not_recorded": type(value).__name__, "bytes": None}
    encoding = payload.metadata.get("encoding", b"")
    if encoding == b"binary/null":
        return None
    if encoding.startswith(b"json/") and len(payload.data) <= most_bytes:
        try:
            read: JsonValue = json.loads(payload.data, parse_constant=_refuse)
        except (ValueError, RecursionError):
            pass
        else:
            return read
    return {"not_recorded": type(value).__name__, "bytes": len(payload.data)}


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def failure_of_exception(error: BaseException, policy: RetryPolicy | None = None) -> Failure:
    """Return the failure for an exception of an activity.

    An exception that is not one of Temporal's errors gets its class name as the kind, as in Temporal.

    Args:
        policy: Of the activity; it may exclude the kind from retries.
    """
    if isinstance(error, FailureError):
        failure = failure_of(error)
    else:
        failure = Failure(
            kind=type(error).__name__, message=str(error) or type(error).__name__, transient=True
        )
    asked = getattr(error, "next_retry_delay", None)
    if asked is not None and failure.retry_after_seconds is None:
        failure = failure.model_copy(update={"retry_after_seconds": max(0.0, asked.total_seconds())})
    if policy is not None and failure.kind in (policy.non_retryable_error_types or ()):
        failure = failure.model_copy(update={"transient": False})
    return failure.model_copy(update={"message": one_line(failure.message, _MESSAGE_LENGTH)})


def hides_messages(converter: DataConverter) -> bool:
    """Return whether the client hides the messages of failures from Temporal."""
    return bool(getattr(converter.failure_converter, "_encode_common_attributes", False))


def without_details(failure: Failure, *, message: str | None) -> Failure:
    """Return the failure without its details, and with another message if one is given."""
    update: dict[str, object] = {"details": {}}
    if message is not None:
        update["message"] = message
    return failure.model_copy(update=update)
