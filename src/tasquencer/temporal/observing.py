"""Observed activities: Temporal retries them as before, and each attempt leaves a work item.

An interceptor on the activity side writes the work item before the attempt runs and after it ended. It
changes no command and adds no event. It does not see everything, for example the death of its worker. Then
the next attempt settles the work item, or the reconciler does (`tasquencer.temporal.observed_ends`).

The ledger does not stop a user's activities. In an outage they run unrecorded, unless the application wants
them to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from pydantic import JsonValue
from temporalio import activity
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.exceptions import CancelledError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from tasquencer.core.errors import LedgerConflict
from tasquencer.core.failure import FailureKind
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.ledger.contract import Ledger, WorkItemFilter
from tasquencer.temporal.agent_steps import AgentSteps
from tasquencer.temporal.foreign import (
    MOST_BYTES,
    as_json,
    failure_of_exception,
    hides_messages,
    matches,
    without_details,
)
from tasquencer.temporal.headers import RUN_HEADER
from tasquencer.temporal.observed_attempt import Attempt
from tasquencer.temporal.observed_ends import Ends
from tasquencer.temporal.observed_outcomes import (
    Begun,
    End,
    a_failure,
    canceled_end,
    start_entries,
    waited,
)
from tasquencer.temporal.observed_writing import ObservedWriter, OnOutage

__all__ = ["ActivityObserver", "Observing", "OnOutage"]

T = TypeVar("T")


@dataclass(frozen=True)
class Observing:
    """The options of observed activities.

    Attributes:
        patterns: Patterns of activity types, as in `fnmatch`.
        on_outage: What an attempt does while the ledger cannot be written.
        record_payloads: True to keep arguments and results. None: only if the client has no payload codec.
        most_bytes: The maximum bytes of the arguments or of the result that are kept.
    """

    patterns: Sequence[str]
    on_outage: OnOutage = "continue"
    record_payloads: bool | None = None
    most_bytes: int = MOST_BYTES


class ActivityObserver(Interceptor):
    """Writes a work item for each attempt of the activities that are observed. One per worker.

    Args:
        ledger: A ledger that is open while the worker runs.
        client: The worker's client.
        not_observed: Our own activity types.
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
        self._agents = AgentSteps(self._converter)
        self._writer = ObservedWriter(observing.on_outage)

    @property
    def missed(self) -> int:
        """The number of attempts that are missing or incomplete in the ledger after an outage."""
        return self._writer.missed

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """See the base class."""
        return _Inbound(next, self)

    def observes(self, given: ExecuteActivityInput) -> bool:
        """Return whether to observe the running activity. Our own activities are not observed."""
        kind = activity.info().activity_type
        is_ours = kind in self._not_observed or RUN_HEADER in given.headers
        return not is_ours and matches(self._observing.patterns, kind)

    async def began(self, given: ExecuteActivityInput) -> Begun:
        """Write the beginning of the attempt."""
        info, args = activity.info(), _arguments(given.args)
        step = self._agents.step(info.activity_type, args, given.headers, given.fn)
        attempt = Attempt.of(info, self._client)
        begun = Begun(attempt, self._payload(args), step, keeps_texts=self._keeps_payloads)
        begun.is_written = await self._writer.write(lambda: self._record_start(begun))
        return begun

    async def ended(self, begun: Begun, result: object, error: BaseException | None) -> None:
        """Write the end of the attempt."""
        if isinstance(error, activity._CompleteAsyncError):
            return  # it continues elsewhere
        item = begun.work_item
        now = max(datetime.now(UTC), item.started_at or item.created_at)
        end = self._end(begun, now, result, error)

        async def record() -> None:
            if not begun.is_written:
                await self._record_start(begun)
            await self._ledger.record([end.of(begun)])

        await self._writer.write(record, is_last=True)

    async def _record_start(self, begun: Begun) -> None:
        begun.work_item = await self._placed(begun)
        for other in (*begun.other_lineages(), None):
            try:
                await self._ledger.record(start_entries(begun))
            except LedgerConflict:
                # The run has already had an activity with this id or name, or an operator has reset this one.
                if other is None:
                    raise
                begun.work_item = begun.work_item.model_copy(update={"lineage": other})
            else:
                return

    async def _placed(self, begun: Begun) -> WorkItem:
        """Return the work item in its lineage. Settles the previous attempt if it is still open."""
        attempt, item = begun.attempt, begun.work_item
        if attempt.was_begun_again:
            before = await self._ledger.work_items(WorkItemFilter(work_item_id=item.id))
            if before and before[0].state.is_terminal:  # Temporal counts from 1 again after a reset
                again = begun.other_lineages()[-1]
                return item.model_copy(update={"id": attempt.id_again, "lineage": again})
            return item
        if attempt.number == 0:
            return item
        before_this = await self._latest_before(attempt)
        backoff = attempt.expected_wait()
        if before_this is None:
            if begun.step is not None:  # another step of this name may have the lineage's other attempts
                item = item.model_copy(update={"lineage": begun.other_lineages()[0]})
            return waited(item, backoff, None, backoff)
        if not before_this.state.is_terminal:
            before_this = await Ends(self._client, self._ledger).settle_before(before_this, attempt, backoff)
        if before_this.attempt < attempt.number - 1:  # when the attempts in between ended is not known
            placed = waited(item, backoff, None, backoff)
        else:
            ended_at = before_this.ended_at or item.created_at
            wait = max(timedelta(0), item.created_at - ended_at)
            placed = waited(item, wait, before_this.failure, backoff)
        return placed.model_copy(update={"lineage": before_this.lineage})

    async def _latest_before(self, attempt: Attempt) -> WorkItem | None:
        for known in attempt.ids_before():
            found = await self._ledger.work_items(WorkItemFilter(work_item_id=known))
            if found:
                return found[0]
        return None

    def _payload(self, args: Sequence[Any]) -> dict[str, JsonValue]:
        payload: dict[str, JsonValue] = {"observed": activity.info().activity_type}
        if self._keeps_payloads:
            left, kept = self._observing.most_bytes, []
            for value in args:
                kept.append(as_json(value, self._converter, left))
                left = max(0, left - len(str(kept[-1])))
            payload["arguments"] = kept
        return payload

    def _end(self, begun: Begun, now: datetime, result: object, error: BaseException | None) -> End:
        canceled = isinstance(error, asyncio.CancelledError | CancelledError)
        if canceled:
            return canceled_end(now, begun)
        step = begun.step if begun.step is not None and begun.step.asked is not None else None
        facts: dict[str, JsonValue] = {}
        failure = None
        if error is not None:
            failure = failure_of_exception(error, activity.info().retry_policy)
            if step is not None:
                failure = self._agents.failure(error, failure)
                facts = self._agents.facts_of_failure(step, error, failure)
        elif step is not None:
            facts = self._agents.answer(step, result)
        if failure is None and begun.is_too_late:
            failure = a_failure(FailureKind.TIMED_OUT, "it ended after its start-to-close timeout")
        if failure is not None:
            if not self._keeps_payloads:
                failure = without_details(failure, message="hidden" if self._hides_messages else None)
            return End(now, WorkItemState.FAILED, failure=failure, facts=facts)
        kept = None
        if self._keeps_payloads:
            kept = as_json(result, self._converter, self._observing.most_bytes)
        return End(now, WorkItemState.COMPLETED, result=kept, facts=facts)


def _arguments(args: Sequence[Any]) -> Sequence[Any]:
    """Return an activity's arguments. A dynamic activity gets all of them in one list."""
    is_dynamic = len(args) == 1 and isinstance(args[0], list) and bool(args[0])
    if is_dynamic and all(isinstance(value, RawValue) for value in args[0]):
        return list(args[0])
    return args


class _Inbound(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, observer: ActivityObserver) -> None:  # noqa: A002
        super().__init__(next)
        self._observer = observer

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        if not self._observer.observes(input):
            return await super().execute_activity(input)
        begun, was_canceled = await _to_the_end(self._observer.began(input))
        if was_canceled and (running := asyncio.current_task()) is not None:
            running.cancel()  # the activity sees it at the same place as natively
        try:
            result = await super().execute_activity(input)
        except BaseException as error:
            await _to_the_end(self._observer.ended(begun, None, error))
            raise
        # A cancel that comes now is too late, as natively, because the activity has its result.
        await _to_the_end(self._observer.ended(begun, result, None))
        return result


async def _to_the_end(doing: Awaitable[T]) -> tuple[T, bool]:
    """Run it to its end despite cancels. Also return whether a cancel arrived."""
    task, was_canceled = asyncio.ensure_future(doing), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            was_canceled = True
    return task.result(), was_canceled
