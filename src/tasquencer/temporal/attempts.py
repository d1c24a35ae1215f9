"""The attempts of a lineage, and the block that runs one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from pydantic import JsonValue
from temporalio import workflow
from temporalio.exceptions import ApplicationError, FailureError, is_cancelled_exception

from tasquencer.core.errors import TaskMisused
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.json_values import as_json
from tasquencer.core.policy import Verdict
from tasquencer.core.wording import attempt_label, duration
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.temporal.activations import behaves, report_bug
from tasquencer.temporal.behaviour import Behaviour
from tasquencer.temporal.calls import cancels_seen
from tasquencer.temporal.driver import STOPPED, TaskDriver
from tasquencer.temporal.failures import (
    as_application_error,
    failed_from_outside,
    failure_of,
    is_left_behind,
    left_behind,
    worker_of,
)
from tasquencer.temporal.only_once import NEVER_RETRY
from tasquencer.temporal.timers import named_timeout

__all__ = ["ActiveWorkItem", "Attempts"]

_OF_THE_WORK_ITEM = frozenset({"activity_id", "cancellation_type", "retry_policy"})

T = TypeVar("T")


class Attempts:
    """Asynchronous iterator over the work items of one lineage. It returns each when it may start.

    It is not a generator, because the garbage collector would finalize a generator that is left early, at a
    time that is not deterministic.
    """

    def __init__(self, driver: TaskDriver, lineage: str) -> None:
        self._driver = driver
        self._lineage = lineage

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ActiveWorkItem:
        driver = self._driver
        while True:
            if driver.is_ending:
                await driver.nothing_more()
            item = self._next()
            if item is None:
                raise StopAsyncIteration
            await driver.wait_for(item)
            if not driver.still_waits(item):  # an operator has ended it, or a reset has replaced it
                continue
            await driver.take_place(item)
            if not driver.still_waits(item):
                driver.places.leave(item.id)
                continue
            if driver.is_left_behind(item):
                await driver.replace(item)
                continue
            if not await driver.expire(item):
                return ActiveWorkItem(driver, item)

    def _next(self) -> WorkItem | None:
        state = self._driver.state
        if state.verdict is Verdict.FAIL:
            return None
        item = state.latest(self._lineage)
        if item.state is WorkItemState.STARTED:
            raise TaskMisused(
                f"work item {item.id!r} is still started: use `async with work_item:` in the loop"
            )
        return None if item.state.is_terminal else item


class ActiveWorkItem:
    """A work item that can start now. Entering its block records the start, leaving it the outcome."""

    def __init__(self, driver: TaskDriver, item: WorkItem) -> None:
        self._driver = driver
        self._item = item
        self._outcome: tuple[JsonValue] | Failure | None = None
        self._is_entered = False
        self._has_called = False
        self._cancels_before = 0

    @property
    def _has_ended(self) -> bool:
        present = self._driver.state.find(self.id)
        return present is None or present.state.is_terminal

    @property
    def _is_stopped(self) -> bool:
        """Return whether the code of this block was canceled but has not ended yet."""
        return cancels_seen() > self._cancels_before

    @property
    def id(self) -> str:
        """The work item's id."""
        return self._item.id

    @property
    def attempt(self) -> int:
        """0 for the first try, k for retry k."""
        return self._item.attempt

    @property
    def payload(self) -> JsonValue:
        """The input of this attempt. A hook may have changed it since the previous attempt."""
        return self._item.payload

    @overload
    async def execute_activity(
        self,
        activity: Callable[..., Awaitable[T]],
        *args: Any,
        result_type: None = None,
        **config: Unpack[workflow.ActivityConfig],
    ) -> T: ...

    @overload
    async def execute_activity(
        self,
        activity: str | Callable[..., Any],
        *args: Any,
        result_type: type[T],
        **config: Unpack[workflow.ActivityConfig],
    ) -> T: ...

    @overload
    async def execute_activity(
        self,
        activity: str | Callable[..., Any],
        *args: Any,
        result_type: None = None,
        **config: Unpack[workflow.ActivityConfig],
    ) -> Any: ...

    async def execute_activity(
        self,
        activity: str | Callable[..., Any],
        *args: Any,
        result_type: type | None = None,
        **config: Unpack[workflow.ActivityConfig],
    ) -> Any:
        """Execute the activity that does the work, once, with the work item's id.

        Temporal never retries it. When the task is canceled, the activity learns of it at its next heartbeat,
        and the task ends after it.

        Args:
            activity: The activity, or its name.
            args: Its arguments.
            result_type: The type of the result. Needed if the activity is given by name.
            config: The options of `workflow.execute_activity`: timeouts, `task_queue`, `priority` and others.
                `schedule_to_start_timeout` fails the attempt as `not_picked_up`. `heartbeat_timeout` is the
                time for which a silent worker counts as alive. The work item sets `retry_policy`,
                `activity_id` and `cancellation_type` itself, so you cannot give them.

        Raises:
            TaskMisused: outside `async with work_item`, a second time in one block, or with an option that
                cannot be given.
        """
        self._check_call(config)
        if self._driver.is_ending:
            await self._driver.nothing_more()
        if self._driver.is_left_behind(self._item):  # an action may have started it during the reset
            raise left_behind()
        if self._has_ended:
            raise _ended("before its call was made")
        self._has_called = True
        max_retries = self._driver.state.max_retries(self._item)
        if config.get("summary") is None:
            config["summary"] = attempt_label(self._item.attempt, max_retries)
        call = workflow.start_activity(  # type: ignore[call-overload] # they tell no name from a callable
            activity,
            args=args,
            result_type=result_type,
            **config,
            activity_id=self._item.id,
            retry_policy=NEVER_RETRY,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
        return await self._driver.calls.call(self._item, call)

    def _check_call(self, config: workflow.ActivityConfig) -> None:
        if not self._is_entered:
            raise TaskMisused(
                "execute_activity belongs in the block of its work item: `async with work_item:`"
            )
        if self._has_called:
            raise TaskMisused(
                f"work item {self.id!r} executes a second activity: one work item makes one call; "
                "use a separate lineage for the other one"
            )
        if given := sorted(_OF_THE_WORK_ITEM & config.keys()):
            raise TaskMisused(f"execute_activity does not take {', '.join(given)}: the work item sets it")

    async def outcome(self, within: timedelta | None = None, *, summary: str | None = None) -> JsonValue:
        """Wait for a person or another program to do the work and report it with `complete_work_item`.

        If they fail or cancel the work item instead, the block ends and the loop continues.

        Args:
            within: How long to wait. After that the work item fails as `timed_out`.
            summary: Names the timer of this wait in the Web UI. None: its lineage and attempt.
        """
        if summary is None:
            label = attempt_label(self._item.attempt, self._driver.state.max_retries(self._item))
            summary = f"{self._item.lineage}: {label}"
        seconds = None if within is None else within.total_seconds()
        try:
            item = await named_timeout(self._driver.outcome(self._item), seconds, summary)
        except TimeoutError:
            after = duration(within.total_seconds()) if within is not None else ""
            raise as_application_error(
                Failure.of(FailureKind.TIMED_OUT, f"no outcome from outside within {after}")
            ) from None
        if self._driver.is_left_behind(item) and not item.state.is_terminal:
            raise left_behind()
        if item.state is not WorkItemState.COMPLETED:
            raise _ended("without a result")
        return item.result

    def complete(self, result: object) -> None:
        """Report success. The result is recorded as JSON (see `as_json`) at the end of the block."""
        self._give((as_json(result, f"the result of lineage {self._item.lineage!r}"),))

    def fail(self, failure: Failure) -> None:
        """Report a failure. It is recorded at the end of the block."""
        self._give(failure)

    def _give(self, outcome: tuple[JsonValue] | Failure) -> None:
        if self._outcome is not None:
            raise TaskMisused(f"work item {self.id!r} was given a second outcome")
        self._outcome = outcome

    async def __aenter__(self) -> Self:
        if self._driver.is_ending:
            await self._driver.nothing_more()
        self._is_entered = True
        self._cancels_before = cancels_seen()
        if self._driver.replaces_at_the_start(self._item):
            self._item = await self._driver.replace(self._item)
        if not self._has_ended:  # by an operator or the policy, since the loop returned it
            await self._driver.start(self._item)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._is_entered = False
        swallowed = await self._leave(error)
        if swallowed and self._is_stopped and not self._driver.is_being_canceled(self._item.lineage):
            # The outcome counts although this code was canceled. The cancellation now propagates.
            raise asyncio.CancelledError(STOPPED)
        return swallowed

    async def _leave(self, error: BaseException | None) -> bool:
        """Record the outcome of the block. Return whether to swallow its error."""
        driver, item = self._driver, self._item
        if self._has_ended and (
            error is None
            or isinstance(error, FailureError)
            # A call that was stopped before it was scheduled ends like this without a cancel of the task.
            or (isinstance(error, asyncio.CancelledError) and not self._is_asked_to_end())
        ):
            await driver.ended(item)
            return True
        if error is None:
            if self._outcome is None:
                raise TaskMisused(f"the block of work item {self.id!r} was left without complete() or fail()")
            if isinstance(self._outcome, Failure):
                await driver.fail(item, self._outcome, may_retry=not self._is_stopped)
            else:
                await driver.complete(item, self._outcome[0])
            return True
        if isinstance(error, asyncio.CancelledError) or (
            is_cancelled_exception(error) and (self._is_asked_to_end() or driver.is_ending)
        ):
            await driver.stopped(item)
            # A timeout around the block waits for the cancellation itself, not for the call's error.
            only_this_code = self._is_stopped and not driver.is_being_canceled(item.lineage)
            return only_this_code and not isinstance(error, asyncio.CancelledError)
        if is_left_behind(error) and self._is_asked_to_end() and behaves(Behaviour.RESULTS_ONE_BY_ONE):
            await driver.stopped(item)
            raise asyncio.CancelledError(STOPPED)  # the cancel that came as the call was turned away
        if is_left_behind(error):
            await driver.replace(item)
            return True
        if is_cancelled_exception(error):
            await driver.give_up(item, "what it waited for was canceled")
            return True
        if isinstance(error, FailureError):
            await self._fail_with(error)
            return True
        if isinstance(error, Exception):  # an instance that leaves the cache raises another kind
            report_bug(error)
        return False

    async def _fail_with(self, error: FailureError) -> None:
        driver, item, may_retry = self._driver, self._item, not self._is_stopped
        told = failed_from_outside(error)
        if told is None or not behaves(Behaviour.OPERATORS_COMMANDS):
            await driver.fail(item, failure_of(error), worker=worker_of(error), may_retry=may_retry)
        else:
            failure, actor, reason = told
            await driver.fail(item, failure, may_retry=may_retry, actor=actor, reason=reason)

    def _is_asked_to_end(self) -> bool:
        return self._is_stopped or self._driver.is_being_canceled(self._item.lineage)


def _ended(how: str) -> ApplicationError:
    return ApplicationError(f"the work item was ended {how}", type="WorkItemEnded")
