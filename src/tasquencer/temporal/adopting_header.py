"""Tells an attempt of an adopted activity about the earlier attempts.

For Temporal each attempt is the first attempt of a separate activity. A header contains the real number and
the last heartbeat details, so that `activity.info()` returns the same as natively. A failed attempt returns
its last heartbeat details below its error, and the workflow removes them there.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict
from temporalio import activity
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.common import RawValue, RetryPolicy
from temporalio.converter import PayloadConverter
from temporalio.exceptions import (
    ApplicationError,
    ApplicationErrorCategory,
    CancelledError,
    FailureError,
    TimeoutError as TemporalTimeout,
)
from temporalio.worker import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
)

from tasquencer.temporal.adopting_agents import with_asked_wait
from tasquencer.temporal.agent_steps import RetryWarnings
from tasquencer.temporal.headers import HeaderCodec
from tasquencer.temporal.wire import json_payload, received

__all__ = [
    "ATTEMPT_HEADER",
    "AttemptInterceptor",
    "AttemptNote",
    "packed_details",
    "take_heartbeat_details",
]

ATTEMPT_HEADER = "tasquencer-attempt"
"""The header of an adopted attempt."""

_DETAILS = "tasquencer.HeartbeatDetails"
"""Type of the error below a failure that carries the last heartbeat details."""

MOST_DETAILS = 64 * 1024
"""Maximum bytes of heartbeat details that are passed on."""


class AttemptNote(BaseModel):
    """The contents of the header.

    Attributes:
        attempt: The number of the attempt from 1, as in Temporal.
        scheduled_at: When the first attempt was scheduled.
        policy: The activity's retry policy, with intervals in seconds.
        details: The last heartbeat details, as serialized `Payloads` in base64. None: there are none.
    """

    model_config = ConfigDict(frozen=True)

    attempt: int
    scheduled_at: AwareDatetime
    policy: dict[str, Any] | None = None
    details: str | None = None

    @staticmethod
    def described(policy: RetryPolicy | None) -> dict[str, Any] | None:
        """Return a retry policy for the header."""
        if policy is None:
            return None
        longest = policy.maximum_interval
        return {
            "initial_interval": policy.initial_interval.total_seconds(),
            "backoff_coefficient": policy.backoff_coefficient,
            "maximum_interval": None if longest is None else longest.total_seconds(),
            "maximum_attempts": policy.maximum_attempts,
            "non_retryable_error_types": list(policy.non_retryable_error_types or ()),
        }

    def payload(self) -> Payload:
        """Return the note as the payload of a header."""
        return json_payload(self)

    def applied(self, info: activity.Info, converter: PayloadConverter) -> activity.Info:
        """Return the info of the activity as it would be natively."""
        policy = info.retry_policy
        if self.policy is not None:
            longest = self.policy["maximum_interval"]
            policy = RetryPolicy(
                initial_interval=timedelta(seconds=self.policy["initial_interval"]),
                backoff_coefficient=self.policy["backoff_coefficient"],
                maximum_interval=None if longest is None else timedelta(seconds=longest),
                maximum_attempts=self.policy["maximum_attempts"],
                non_retryable_error_types=self.policy["non_retryable_error_types"] or None,
            )
        details: Sequence[Any] = info.heartbeat_details
        if self.details is not None:
            details = converter.from_payloads(Payloads.FromString(b64decode(self.details)).payloads)
        return replace(
            info,
            attempt=self.attempt,
            scheduled_time=self.scheduled_at,
            heartbeat_details=details,
            retry_policy=policy,
        )


def packed_details(details: Sequence[Any], converter: PayloadConverter) -> str | None:
    """Return heartbeat details for the header, or None if there are none or too many bytes."""
    if not details:
        return None
    packed = Payloads(payloads=converter.to_payloads(details)).SerializeToString()
    return b64encode(packed).decode() if len(packed) <= MOST_DETAILS else None


def take_heartbeat_details(error: FailureError) -> Sequence[Any]:
    """Remove the attempt's last heartbeat details from its error and return them. Empty if there are none."""
    parent: BaseException = error
    child = parent.__cause__
    while child is not None:
        if isinstance(child, ApplicationError) and child.type == _DETAILS:
            parent.__cause__ = None
            if isinstance(parent, FailureError) and parent.failure is not None:
                parent.failure.ClearField("cause")  # otherwise it would be in the failure of the workflow
            return child.details
        if isinstance(child, TemporalTimeout) and child.last_heartbeat_details:
            return child.last_heartbeat_details
        parent, child = child, child.__cause__
    return []


class AttemptInterceptor(Interceptor):
    """Applies the headers of adopted attempts on the activity side.

    Args:
        headers: The client's codec.
        converter: The client's payload converter.
    """

    def __init__(self, headers: HeaderCodec, converter: PayloadConverter) -> None:
        self._headers = headers
        self._converter = converter
        self._retries = RetryWarnings()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """See the base class."""
        return _Inbound(next, self._headers, self._converter, self._retries)


class _Inbound(ActivityInboundInterceptor):
    def __init__(
        self,
        next: ActivityInboundInterceptor,  # noqa: A002
        headers: HeaderCodec,
        converter: PayloadConverter,
        retries: RetryWarnings,
    ) -> None:
        super().__init__(next)
        self._headers = headers
        self._converter = converter
        self._retries = retries
        self._outbound: _Outbound | None = None

    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        self._outbound = _Outbound(outbound)
        super().init(self._outbound)

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        payload, outbound = input.headers.get(ATTEMPT_HEADER), self._outbound
        if payload is None or outbound is None:
            return await super().execute_activity(input)
        info = activity.info()
        self._retries.look(info.activity_type, input.fn)
        header = await self._headers.received(payload, info.namespace, info.workflow_id or "")
        outbound.known = received(RawValue(header), AttemptNote).applied(info, self._converter)
        try:
            return await super().execute_activity(input)
        except (activity._CompleteAsyncError, asyncio.CancelledError, CancelledError):
            raise
        except Exception as error:
            told = with_asked_wait(error, info.activity_type)
            if outbound.details:
                _add_below(told, outbound.details, self._converter)
            if told is error:
                raise
            raise told from told.__cause__


class _Outbound(ActivityOutboundInterceptor):
    def __init__(self, next: ActivityOutboundInterceptor) -> None:  # noqa: A002
        super().__init__(next)
        self.known: activity.Info | None = None
        self.details: Sequence[Any] = ()

    def info(self) -> activity.Info:
        return self.known or super().info()

    def heartbeat(self, *details: Any) -> None:
        self.details = details
        super().heartbeat(*details)


def _add_below(error: BaseException, details: Sequence[Any], converter: PayloadConverter) -> None:
    try:
        if packed_details(details, converter) is None:
            return
    except Exception:  # noqa: BLE001 - what the application's converter cannot write
        return
    marker = ApplicationError(
        "the last heartbeat of the attempt", *details, type=_DETAILS, category=ApplicationErrorCategory.BENIGN
    )
    seen = {id(error)}
    while error.__cause__ is not None and id(error.__cause__) not in seen:
        cause = error.__cause__
        if isinstance(cause, ApplicationError) and cause.type == _DETAILS:
            break  # the activity raises the same exception again
        seen.add(id(cause))
        error = cause
    error.__cause__ = marker
