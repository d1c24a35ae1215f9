"""Observed activities: Temporal retries them as before, and each attempt leaves a work item.

An interceptor on the activity side writes the work item before the attempt runs and after it ended. It
changes no command and adds no event. It does not see everything, for example the death of its worker. Then
the next attempt settles the work item, or the reconciler does (`tasquencer.temporal.observed_ends`).

The ledger does not stop somebody's activities: in an outage they run unrecorded, unless the application wants
them to wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Literal, TypeVar

from pydantic import JsonValue
from temporalio import activity
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.exceptions import CancelledError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import LedgerConflict, LedgerUnavailable
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import DelayReason, Transition, WorkItem, WorkItemState
from tasquencer.ledger.contract import Ledger, WorkItemFilter
from tasquencer.temporal.foreign import (
    MOST_BYTES,
    as_json,
    failure_of_exception,
    hides_messages,
    matches,
    without_details,
)
from tasquencer.temporal.headers import RUN_HEADER
from tasquencer.temporal.observed_ends import TEMPORAL, Attempt, Ends, end_entry

__all__ = ["ActivityObserver", "Observing", "OnOutage"]

OnOutage = Literal["continue", "wait"]

T = TypeVar("T")

_PATIENCE = timedelta(seconds=2)
"""How long a write may take before it counts as an outage."""

_REST_SECONDS = 5.0
"""In an outage the ledger is tried so often. Activities in between do not wait for it."""

_AGAIN_SECONDS = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Observing:
    """What is observed, and how.

    Attributes:
        patterns: Of activity types, as in `fnmatch`.
        on_outage: What becomes of an attempt when the ledger cannot be written.
        record_payloads: Keep arguments and results; None: only if the client has no payload codec.
        most_bytes: Of the arguments, or of the result, that are kept.
    """

    patterns: Sequence[str]
    on_outage: OnOutage = "continue"
    record_payloads: bool | None = None
    most_bytes: int = MOST_BYTES


class ActivityObserver(Interceptor):
    """Writes a work item for each attempt of the activities that are observed. One per worker.

    Args:
        ledger: Open while the worker runs.
        client: The worker's.
        not_observed: Activity types of ours.
    """

    def __init__(
        self, ledger: Ledger, client: Client, observing: Observing, not_observed: Collection[str]
    ) -> None:
        self._ledger = ledger
        self._client = client
        self._observing = observing
        self._not_observed = frozenset(not_observed)
        converter = client.data_converter
        self._converter = converter.payload_converter
        wanted = observing.record_payloads
        self._keeps_payloads = converter.payload_codec is None if wanted is None else wanted
        self._hides_messages = hides_messages(converter) and not self._keeps_payloads
        self._writer = _Writer(observing.on_outage)

    @property
    def missed(self) -> int:
        """How many attempts the ledger has not, or not whole, because it could not be written."""
        return self._writer.missed

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """See the base class."""
        return _Inbound(next, self)

    def observes(self, given: ExecuteActivityInput) -> bool:
        """Return whether the running activity is to be observed: not if it is one of ours."""
        kind = activity.info().activity_type
        is_ours = kind in self._not_observed or RUN_HEADER in given.headers
        return not is_ours and matches(self._observing.patterns, kind)

    async def began(self, given: ExecuteActivityInput) -> _Begun:
        """Write that the attempt begins."""
        begun = _Begun(Attempt.of(activity.info(), self._client), self._payload(given.args))
        begun.is_written = await self._writer.write(lambda: self._record_start(begun))
        return begun

    async def ended(self, begun: _Begun, result: object, error: BaseException | None) -> None:
        """Write how the attempt ended."""
        if isinstance(error, activity._CompleteAsyncError):
            return  # it goes on elsewhere
        item = begun.work_item
        now = max(datetime.now(UTC), item.started_at or item.created_at)
        entry = self._end(begun, now, result, error)

        async def record() -> None:
            if not begun.is_written:
                await self._record_start(begun)
            await self._ledger.record([entry.of(begun.work_item)])

        await self._writer.write(record, is_last=True)

    async def _record_start(self, begun: _Begun) -> None:
        begun.work_item = await self._placed(begun)
        try:
            await self._ledger.record(_start(begun.work_item))
        except LedgerConflict:
            # The run has had an activity with this id before, or an operator has reset this one.
            again = f"{begun.work_item.lineage}@{begun.attempt.scheduled_at:%Y-%m-%dT%H:%M:%S.%f}"
            begun.work_item = begun.work_item.model_copy(update={"lineage": again})
            await self._ledger.record(_start(begun.work_item))

    async def _placed(self, begun: _Begun) -> WorkItem:
        """The work item in its lineage: after the attempt before, which is settled if it is still open."""
        attempt, item = begun.attempt, begun.work_item
        if attempt.was_begun_again:
            before = await self._ledger.work_items(WorkItemFilter(work_item_id=item.id))
            if before and before[0].state.is_terminal:  # Temporal counts from 1 again after a reset
                again = f"{attempt.lineage}@{attempt.scheduled_at:%Y-%m-%dT%H:%M:%S.%f}"
                return item.model_copy(update={"id": attempt.id_again, "lineage": again})
            return item
        if attempt.number == 0:
            return item
        found = await self._ledger.work_items(WorkItemFilter(work_item_id=attempt.id_before))
        wait = attempt.expected_wait()
        if not found:
            return _waited(item, wait, None)
        before_this = found[0]
        if not before_this.state.is_terminal:
            before_this = await Ends(self._client, self._ledger).settle_before(before_this, attempt, wait)
        ended_at = before_this.ended_at or item.created_at
        waited = max(timedelta(0), item.created_at - ended_at)
        placed = _waited(item, waited, before_this.failure)
        return placed.model_copy(update={"lineage": before_this.lineage})

    def _payload(self, args: Sequence[Any]) -> dict[str, JsonValue]:
        payload: dict[str, JsonValue] = {"observed": activity.info().activity_type}
        if self._keeps_payloads:
            # A dynamic activity gets all of them in one list.
            is_dynamic = len(args) == 1 and isinstance(args[0], list) and bool(args[0])
            if is_dynamic and all(isinstance(value, RawValue) for value in args[0]):
                args = args[0]
            left, kept = self._observing.most_bytes, []
            for value in args:
                kept.append(as_json(value, self._converter, left))
                left = max(0, left - len(str(kept[-1])))
            payload["arguments"] = kept
        return payload

    def _end(self, begun: _Begun, now: datetime, result: object, error: BaseException | None) -> _End:
        canceled = isinstance(error, asyncio.CancelledError | CancelledError)
        if canceled:
            return _canceled(now, begun)
        failure = None if error is None else failure_of_exception(error, activity.info().retry_policy)
        if failure is None and begun.is_too_late:
            failure = _failure(FailureKind.TIMED_OUT, "it ended after its start-to-close timeout")
        if failure is not None:
            if not self._keeps_payloads:
                failure = without_details(failure, message="hidden" if self._hides_messages else None)
            return _End(now, WorkItemState.FAILED, failure=failure)
        kept = None
        if self._keeps_payloads:
            kept = as_json(result, self._converter, self._observing.most_bytes)
        return _End(now, WorkItemState.COMPLETED, result=kept)


class _Begun:
    """An attempt under way."""

    def __init__(self, attempt: Attempt, payload: dict[str, JsonValue]) -> None:
        self.attempt = attempt
        self.work_item = attempt.work_item(payload)
        self.is_written = False
        self._began = monotonic()

    @property
    def elapsed(self) -> timedelta:
        return timedelta(seconds=monotonic() - self._began)

    @property
    def is_too_late(self) -> bool:
        limit = activity.info().start_to_close_timeout
        return limit is not None and limit > timedelta(0) and self.elapsed > limit


@dataclass(frozen=True)
class _End:
    at: datetime
    state: WorkItemState
    result: JsonValue = None
    failure: Failure | None = None
    reason: str | None = None

    def of(self, item: WorkItem) -> LedgerEntry:
        return end_entry(
            item, self.state, at=self.at, result=self.result, failure=self.failure, reason=self.reason
        )


def _canceled(now: datetime, begun: _Begun) -> _End:
    """How an attempt ended that was canceled: Temporal tells why."""
    details = activity.cancellation_details()
    if details is None:
        failure = _failure(FailureKind.UNEXPECTED, "it raised CancelledError though nobody canceled it")
        return _End(now, WorkItemState.FAILED, failure=failure)
    if details.timed_out:
        limit = activity.info().start_to_close_timeout
        if limit is not None and begun.elapsed >= 0.95 * limit:
            failure = _failure(FailureKind.TIMED_OUT, "no outcome within the attempt's time limit")
        else:
            failure = _failure(FailureKind.WORKER_LOST, "Temporal got no heartbeat in time")
        return _End(now, WorkItemState.FAILED, failure=failure)
    if details.worker_shutdown:
        failure = _failure(FailureKind.WORKER_SHUTDOWN, "the worker was stopped before the attempt ended")
        return _End(now, WorkItemState.FAILED, failure=failure)
    if details.paused or details.reset:
        what = "paused" if details.paused else "reset"
        failure = _failure(FailureKind.OPERATOR, f"the activity was {what}")
        return _End(now, WorkItemState.FAILED, failure=failure)
    reason = "canceled" if details.cancel_requested else "Temporal no longer waits for it"
    return _End(now, WorkItemState.CANCELED, reason=reason)


def _failure(kind: FailureKind, message: str) -> Failure:
    return Failure.of(kind, message, outcome_unknown=kind is not FailureKind.UNEXPECTED)


def _waited(item: WorkItem, wait: timedelta, failure: Failure | None) -> WorkItem:
    asked = failure.retry_after_seconds if failure is not None else None
    reason = DelayReason.BACKOFF if asked is None else DelayReason.RETRY_AFTER
    return item.model_copy(update={"delay_seconds": wait.total_seconds(), "delay_reason": reason})


def _start(item: WorkItem) -> list[LedgerEntry]:
    created = item.model_copy(update={"state": WorkItemState.INITIALIZED, "started_at": None})
    steps = [
        (created, None, item.created_at),
        (item, WorkItemState.INITIALIZED, item.started_at or item.created_at),
    ]
    return [
        LedgerEntry(
            transition=Transition(
                work_item_id=item.id,
                sequence=sequence,
                previous_state=previous,
                next_state=then.state,
                at=at,
                actor=TEMPORAL,
            ),
            work_item=then,
        )
        for sequence, (then, previous, at) in enumerate(steps)
    ]


class _Inbound(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, observer: ActivityObserver) -> None:  # noqa: A002
        super().__init__(next)
        self._observer = observer

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        if not self._observer.observes(input):
            return await super().execute_activity(input)
        begun, was_canceled = await _to_the_end(self._observer.began(input))
        if was_canceled and (running := asyncio.current_task()) is not None:
            running.cancel()  # the activity sees it where it would have seen it without us
        try:
            result = await super().execute_activity(input)
        except BaseException as error:
            await _to_the_end(self._observer.ended(begun, None, error))
            raise
        # A cancel that comes now is too late, as it would be without us: the activity has its result.
        await _to_the_end(self._observer.ended(begun, result, None))
        return result


async def _to_the_end(doing: Awaitable[T]) -> tuple[T, bool]:
    """Do it, whatever is canceled meanwhile; and whether something was."""
    task, was_canceled = asyncio.ensure_future(doing), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            was_canceled = True
    return task.result(), was_canceled


class _Writer:
    """Writes to the ledger, or lets it be where that would hold up somebody's activity."""

    def __init__(self, on_outage: OnOutage) -> None:
        self._waits = on_outage == "wait"
        self._down_since: float | None = None
        self._tried_at = 0.0
        self._missed_now = 0
        self.missed = 0

    async def write(self, writing: Callable[[], Awaitable[None]], *, is_last: bool = False) -> bool:
        """Return whether it is written.

        Args:
            is_last: If it is not written, nobody writes it later: the attempt counts as missed.
        """
        while not await self._try(writing):
            if not self._waits:
                if is_last:
                    self._missed_now += 1
                    self.missed += 1
                return False
            await asyncio.sleep(_AGAIN_SECONDS)
        return True

    async def _try(self, writing: Callable[[], Awaitable[None]]) -> bool:
        if not self._waits and self._down_since is not None and monotonic() - self._tried_at < _REST_SECONDS:
            return False
        self._tried_at = monotonic()
        try:
            async with asyncio.timeout(_PATIENCE.total_seconds()):
                await writing()
        except LedgerConflict as conflict:
            # The next attempt, the reconciler or the end of its task has settled it meanwhile.
            _log.debug("an observed attempt is settled already: %s", conflict)
        except (LedgerUnavailable, TimeoutError) as error:
            self._went_down(str(error) or f"no answer within {_PATIENCE.total_seconds():g} s")
            return False
        except Exception:
            if not self._waits:
                # A bug of ours must not fail somebody else's activity.
                _log.exception("an observed attempt could not be recorded")
                return False
            raise
        if self._down_since is not None:
            missed, self._missed_now, self._down_since = self._missed_now, 0, None
            _log.warning(
                "the ledger can be written again; attempts of observed activities that it lacks: %d", missed
            )
        return True

    def _went_down(self, problem: str) -> None:
        if self._down_since is None:
            self._down_since = monotonic()
            what = "they wait for it" if self._waits else "they run unrecorded"
            _log.error("the ledger cannot be written, observed activities: %s: %s", what, problem)
