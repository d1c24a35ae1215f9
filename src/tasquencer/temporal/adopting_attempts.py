"""The attempts of one adopted activity, and the workflow's view of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import JsonValue
from temporalio import workflow
from temporalio.api.common.v1 import Payload, RetryPolicy as RetryPolicyMessage
from temporalio.common import RawValue
from temporalio.converter import ActivitySerializationContext, PayloadConverter, WithSerializationContext
from temporalio.exceptions import ActivityError, RetryState, is_cancelled_exception
from temporalio.worker import StartActivityInput

from tasquencer.ai.agents.steps import PriceOf
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.failure import Failure
from tasquencer.core.json_values import as_json as any_json
from tasquencer.core.retry import Delay
from tasquencer.core.wording import attempt_label, one_line
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.temporal.adopting_agents import adopted_step
from tasquencer.temporal.adopting_header import (
    ATTEMPT_HEADER,
    AttemptNote,
    packed_details,
    take_heartbeat_details,
)
from tasquencer.temporal.adopting_retries import (
    AdoptedPolicy,
    adopted_failure,
    canceled_error,
    final_error,
    late_error,
    next_step,
    operator_error,
)
from tasquencer.temporal.adopting_run import AdoptedRun
from tasquencer.temporal.calls import cancels_seen
from tasquencer.temporal.failures import failed_from_outside, failure_of, is_left_behind, worker_of
from tasquencer.temporal.foreign import MOST_BYTES, as_json, without_details
from tasquencer.temporal.headers import RUN_HEADER, HeaderCodec
from tasquencer.temporal.only_once import NEVER_RETRY
from tasquencer.temporal.scope import TaskScope
from tasquencer.temporal.wire import json_payload

__all__ = ["AdoptedActivity", "Keeping"]

_WAITS = workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED

Start = Callable[[StartActivityInput], "workflow.ActivityHandle[Any]"]


class Keeping:
    """The parts of an activity that the ledger keeps.

    Attributes:
        payloads: True for arguments, results and the details of failures.
        messages: True for the messages of failures.
        price_of: Prices of model requests.
    """

    def __init__(self, *, payloads: bool, messages: bool, price_of: PriceOf) -> None:
        self.payloads = payloads
        self.messages = messages
        self.price_of = price_of

    def arguments(self, kind: str, values: Sequence[Any], payloads: Sequence[Payload]) -> JsonValue:
        """Return the payload of the work items."""
        kept: dict[str, JsonValue] = {"adopted": kind}
        if self.payloads:
            left, arguments = MOST_BYTES, []
            for value, payload in zip(values, payloads, strict=True):
                arguments.append(_kept(value, RawValue(payload), left))
                left = max(0, left - len(str(arguments[-1])))
            kept["arguments"] = arguments
        return kept

    def result(self, value: object, converter: PayloadConverter) -> JsonValue:
        """Return the result of a work item."""
        return as_json(value, converter) if self.payloads else None

    def given(self, value: JsonValue) -> JsonValue:
        """Return a result that comes from outside."""
        return any_json(value, "the result") if self.payloads else None

    def failure(self, failure: Failure) -> Failure:
        """Return the failure of a work item."""
        if self.payloads:
            return failure
        return without_details(failure, message=None if self.messages else "hidden")


def _kept(value: object, raw: RawValue, most: int) -> JsonValue:
    kept = as_json(raw, workflow.payload_converter(), most)
    if isinstance(kept, dict) and kept.get("not_recorded") == RawValue.__name__:
        kept["not_recorded"] = type(value).__name__
    return kept


class AdoptedActivity:
    """One adopted activity: its attempts, one after the other.

    Args:
        run: The adopted activities of the workflow run.
        given: The options from the workflow's code.
        start: Starts an activity natively.
        keeping: The parts that the ledger keeps.

    Raises:
        ValueError: the options are wrong, with the SDK's message.
    """

    def __init__(self, run: AdoptedRun, given: StartActivityInput, start: Start, keeping: Keeping) -> None:
        if not given.start_to_close_timeout and not given.schedule_to_close_timeout:
            raise ValueError("Activity must have start_to_close_timeout or schedule_to_close_timeout")
        if given.retry_policy is not None:
            given.retry_policy.apply_to_proto(RetryPolicyMessage())  # checks it
        self._converter = _converter_for(given)
        # Encode now, as the SDK does, so that later changes by the code are not sent.
        payloads = self._converter.to_payloads(given.args) if given.args else []
        self._run = run
        self._start = start
        self._keeping = keeping
        self._payload = keeping.arguments(given.activity, given.args, payloads)
        self._given = replace(given, args=[RawValue(payload) for payload in payloads])
        self._policy = AdoptedPolicy.of(given.retry_policy)
        self._began_at = workflow.now()
        self._step = adopted_step(given, payloads, keeping.price_of, keeps_texts=keeping.payloads)
        self._lineage = run.next_name(given.activity, given.activity_id, self._step)
        self._details: Sequence[Any] = ()
        self._errors: dict[str, ActivityError] = {}
        self._causes: list[BaseException | None] = []
        self._results: dict[str, Any] = {}
        self._is_canceled = False

    @property
    def lineage(self) -> str:
        """The name of its lineage."""
        return self._lineage

    @property
    def _deadline(self) -> datetime | None:
        limit = self._given.schedule_to_close_timeout
        return None if not limit else self._began_at + limit

    @property
    def _has_limit(self) -> bool:
        """Return whether one attempt has less time than all attempts together."""
        one, whole = self._given.start_to_close_timeout, self._given.schedule_to_close_timeout
        return bool(one) and (not whole or one < whole)  # type: ignore[operator] # `bool(one)` says that it is

    async def carry_out(self) -> Any:
        """Make attempts until one succeeds or none is left. Return the result or raise the native error."""
        state = self._run.state
        await self._unless_the_run_ends()
        self._run.begin(self._lineage, self._payload, self._policy, self._deadline, self._check)
        while not (item := state.latest(self._lineage)).state.is_terminal:
            try:
                await self._attempt(item)
            except asyncio.CancelledError:
                await self._canceled()
        await self._unless_the_run_ends()
        if item.state is WorkItemState.COMPLETED:
            return self._results[item.id]
        raise self._error_of(item)

    async def _unless_the_run_ends(self) -> None:
        """Never return if the run is ending, because natively its activities have no further effect."""
        if self._run.driver.is_ending:
            await self._run.driver.nothing_more()

    async def _attempt(self, item: WorkItem) -> None:
        driver = self._run.driver
        await driver.wait_for(item)
        if not driver.still_waits(item):  # an operator has ended it, or a reset has replaced it
            return
        if driver.is_left_behind(item):
            await driver.replace(item)
            return
        if await driver.expire(item):
            return
        await driver.start(item)
        if not self._has_ended(item):
            await self._call(item)

    async def _call(self, item: WorkItem) -> None:
        driver = self._run.driver
        await self._unless_the_run_ends()
        call = self._start(self._options(item))
        result: Any = None
        error: ActivityError | None = None
        try:
            result = await driver.calls.call(item, call)
        except ActivityError as raised:
            error = raised
        await self._unless_the_run_ends()
        was_asked = driver.calls.was_stopped(item.id)
        is_canceled = cancels_seen() > 0
        if self._has_ended(item):  # by an operator
            await driver.ended(item)
        elif error is None:
            self._results[item.id] = result
            if self._step is not None:
                self._step.completed(item, result, self._converter)
            await driver.complete(item, self._keeping.result(result, self._converter))
        elif is_left_behind(error):
            await driver.replace(item)
        else:
            await self._failed(item, error, may_retry=not is_canceled)
        if is_canceled and not was_asked:
            # The outcome arrived before the cancel. Natively the code then sees only the cancel.
            raise asyncio.CancelledError
        if is_canceled:
            self._is_canceled = True
            _uncancel()

    async def _failed(self, item: WorkItem, error: ActivityError, *, may_retry: bool) -> None:
        driver = self._run.driver
        self._details = take_heartbeat_details(error) or self._details
        self._errors[item.id] = error
        if is_cancelled_exception(error):
            await driver.give_up(item, "canceled")
            return
        self._causes.append(error.cause)
        told = failed_from_outside(error)
        if told is not None:  # with the `temporal` command
            failure, actor, reason = told
            await driver.fail(item, failure, may_retry=may_retry, actor=actor, reason=reason)
            return
        failure = adopted_failure(failure_of(error), error.cause, self._policy)
        if self._step is not None:
            failure = self._step.failed(item, error, failure)
        failure = self._keeping.failure(failure)
        await driver.fail(item, failure, worker=worker_of(error), may_retry=may_retry)

    async def _canceled(self) -> None:
        """The handle was canceled while no attempt was running, or when one ended."""
        await self._unless_the_run_ends()
        item = self._run.state.latest(self._lineage)
        if item.state in (WorkItemState.COMPLETED, WorkItemState.FAILED):
            raise asyncio.CancelledError
        if not item.state.is_terminal:
            await self._run.driver.stopped(item)
        self._is_canceled = True
        _uncancel()

    def _has_ended(self, item: WorkItem) -> bool:
        present = self._run.state.find(item.id)
        return present is None or present.state.is_terminal

    def _options(self, item: WorkItem) -> StartActivityInput:
        """Return the options that start the attempt once."""
        given, deadline = self._given, self._deadline
        left = None if deadline is None else max(deadline - workflow.now(), timedelta(milliseconds=1))
        note = AttemptNote(
            attempt=item.attempt + 1,
            scheduled_at=self._began_at,
            policy=AttemptNote.described(given.retry_policy),
            details=packed_details(self._details, self._converter),
        )
        headers = {
            **given.headers,
            RUN_HEADER: TaskScope.current().run_header(item.id, self._run.driver),
            ATTEMPT_HEADER: HeaderCodec.encoded(note.payload()),
        }
        label = attempt_label(item.attempt, self._policy.most_attempts - 1)
        summary = self._lineage if self._step is not None else given.summary or self._lineage
        return replace(
            given,
            # The id that the code has chosen, because others may use it to complete the activity.
            activity_id=given.activity_id if self._may_use_the_id(item) else item.id,
            retry_policy=NEVER_RETRY,
            schedule_to_close_timeout=left,
            headers=headers,
            summary=one_line(summary if item.attempt == 0 else f"{summary}: {label}", 200),
        )

    def _may_use_the_id(self, item: WorkItem) -> bool:
        """Return whether the attempt gets the id from the code.

        After an operator has ended an attempt, its call may still exist under this id.
        """
        lineage = self._run.state.lineages[self._lineage]
        before = lineage.work_item_ids[: item.attempt]
        return self._given.activity_id is not None and all(one in self._errors for one in before)

    # What the code sees

    def _error_of(self, item: WorkItem) -> ActivityError:
        """Return the error of the activity whose last attempt this is."""
        kind, error = self._given.activity, self._errors.get(item.id)
        before = self._causes[-2] if len(self._causes) > 1 else None
        if item.state is WorkItemState.CANCELED:
            if error is not None:
                return error
            if self._run.state.lineages[self._lineage].expired:
                return late_error(kind, item.id, self._causes[-1] if self._causes else None)
            waits = self._given.cancellation_type is _WAITS and item.attempt > 0
            return canceled_error(kind, item.id, waits=waits)
        assert item.failure is not None
        assert item.ended_at is not None
        state: Delay | RetryState = RetryState.CANCEL_REQUESTED
        if not self._is_canceled:
            state = next_step(
                self._policy, item.attempt, item.failure, now=item.ended_at, deadline=self._deadline
            )
        if isinstance(state, Delay):
            state = RetryState.MAXIMUM_ATTEMPTS_REACHED
        if error is None:
            return operator_error(kind, item.id, item.failure, state)
        return final_error(error, state, before, has_limit=self._has_limit)

    def _check(self, item: WorkItem, result: JsonValue) -> JsonValue:
        """Read a result that comes from outside as the activity's return type."""
        payload = json_payload(result)
        if result is None:
            payload = self._converter.to_payloads([None])[0]
        kind = self._given.ret_type
        try:
            self._results[item.id] = self._converter.from_payloads(
                [payload], None if kind is None else [kind]
            )[0]
        except Exception as problem:  # noqa: BLE001 - the application's converter
            name = getattr(kind, "__name__", str(kind))
            raise InvalidRequest(
                [f"result: activity {self._given.activity!r} returns {name}: {one_line(str(problem), 500)}"]
            ) from None
        return self._keeping.given(result)


def _uncancel() -> None:
    """Do the same as the SDK's handle after the cancel has had its effect."""
    running = asyncio.current_task()
    while running is not None and running.cancelling():
        running.uncancel()


def _converter_for(given: StartActivityInput) -> PayloadConverter:
    """Return the payload converter with the context of the activity, as in the SDK."""
    converter = workflow.payload_converter()
    if isinstance(converter, WithSerializationContext):
        info = workflow.info()
        converter = converter.with_context(
            ActivitySerializationContext(
                namespace=info.namespace,
                workflow_id=info.workflow_id,
                workflow_type=info.workflow_type,
                activity_type=given.activity,
                activity_id=given.activity_id,
                activity_task_queue=given.task_queue or info.task_queue,
                is_local=False,
            )
        )
    return converter
