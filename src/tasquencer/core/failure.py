"""Failures: business outcomes of a work item, recorded, counted and handled.

An activity passes a failure to the workflow as the single detail of an `ApplicationError` whose type is the
failure's kind. The ledger keeps it in the column `failure`. Both hold the JSON of `Failure`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

__all__ = ["MAXIMUM_MESSAGE_LENGTH", "TRANSIENT_KINDS", "Failure", "FailureKind"]

MAXIMUM_MESSAGE_LENGTH = 2_000
"""Characters of a failure's message that are kept. Temporal loses failures over 4 MiB."""


class FailureKind(StrEnum):
    """The kinds of failure of an AI call. Your own tasks may use other kinds."""

    RATE_LIMITED = "rate_limited"
    """The provider asks to slow down: 429, or a rate limit in another form."""
    QUOTA_EXCEEDED = "quota_exceeded"
    """The account's money or plan is used up, with any status. Waiting does not help."""
    TIMED_OUT = "timed_out"
    """No answer within the attempt's timeout, 408, 504 or 524. The provider may have done the work."""
    UNREACHABLE = "unreachable"
    """No connection: refused, reset, DNS, TLS."""
    PROVIDER_ERROR = "provider_error"
    """5xx, 409, 424, 425, or an answer that is malformed or cut off."""
    INVALID_OUTPUT = "invalid_output"
    """An empty answer, or one that does not fit the schema asked for."""
    REFUSED = "refused"
    """A content filter, moderation or the model declined."""
    INVALID_REQUEST = "invalid_request"
    """400, 404, 413, 422, context too long: the same request would fail again."""
    UNAUTHORIZED = "unauthorized"
    """401, 403: wrong or missing credentials."""
    WORKER_LOST = "worker_lost"
    """The heartbeat stopped: the worker died or hung. The provider may have done the work."""
    WORKER_SHUTDOWN = "worker_shutdown"
    """The worker was stopped and its grace period ran out before the call ended."""
    TOO_LARGE = "too_large"
    """The answer exceeds what a Temporal payload can carry."""
    NOT_PICKED_UP = "not_picked_up"
    """No worker picked up the call in time. Nothing was sent."""
    OPERATOR = "operator"
    """A person or a program declared the attempt failed."""
    UNEXPECTED = "unexpected"
    """The activity raised an error that has no kind: a bug in the activity."""


TRANSIENT_KINDS = frozenset(
    {
        FailureKind.RATE_LIMITED,
        FailureKind.TIMED_OUT,
        FailureKind.UNREACHABLE,
        FailureKind.PROVIDER_ERROR,
        FailureKind.INVALID_OUTPUT,
        FailureKind.WORKER_LOST,
        FailureKind.WORKER_SHUTDOWN,
        FailureKind.NOT_PICKED_UP,
        FailureKind.OPERATOR,
    }
)
"""The kinds that qualify for a retry under `retry_on: "transient"`."""


def _shorten(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= MAXIMUM_MESSAGE_LENGTH else line[: MAXIMUM_MESSAGE_LENGTH - 1] + "…"


class Failure(BaseModel):
    """Why a work item failed.

    Attributes:
        kind: A `FailureKind`, or one of the task's own kinds.
        message: A description in one line of at most `MAXIMUM_MESSAGE_LENGTH` characters.
        transient: Whether it qualifies for a retry under `retry_on: "transient"`.
        retry_after_seconds: The wait that the provider asked for, if it did. Never shortened.
        outcome_unknown: True if the provider may have done (and billed) the work.
        details: Facts for people and domain records, such as status code, request id, tokens and cost.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    message: Annotated[str, AfterValidator(_shorten)]
    transient: bool
    retry_after_seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    outcome_unknown: bool = False
    details: dict[str, JsonValue] = Field(default_factory=dict)

    @classmethod
    def of(
        cls,
        kind: FailureKind,
        message: str,
        *,
        transient: bool | None = None,
        retry_after_seconds: float | None = None,
        outcome_unknown: bool = False,
        **details: JsonValue,
    ) -> Failure:
        """Return a failure of a known kind. It is transient if its kind is, unless `transient` is given."""
        return cls(
            kind=kind.value,
            message=message,
            transient=kind in TRANSIENT_KINDS if transient is None else transient,
            retry_after_seconds=retry_after_seconds,
            outcome_unknown=outcome_unknown,
            details={name: value for name, value in details.items() if value is not None},
        )

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"
