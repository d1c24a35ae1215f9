"""`Task`: the workflow side of a task.

A workflow makes one `Task`, loops over its `attempts`, and gives each work item an outcome:

    async for work_item in self._task.attempts(job):        # record, durable sleep, next
        async with work_item:                                # started … completed, failed, canceled
            work_item.complete(await work_item.execute_activity("generate", job, …))
    return self._task.result()

What happens when the block is left:

- after `complete` or `fail`: that is the outcome;
- by the failure of an activity, a local activity or a child workflow: the work item fails with it,
  the error is swallowed and the loop goes on, with a retry or to its end;
- by cancellation of the workflow: the work item is canceled and the cancellation goes on;
- by any other exception: it is a bug. Nothing is recorded, the exception propagates, Temporal fails
  the workflow task and tries it again until the code is mended. No attempt is burnt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from random import Random
from types import TracebackType
from typing import Any, Self, TypeVar, overload
from uuid import UUID, uuid5

from pydantic import BaseModel, JsonValue
from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, FailureError, is_cancelled_exception

from tasquencer.core.ending import TaskEndHook
from tasquencer.core.errors import InvalidRequest, TaskMisused
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.hooks import RecordOf, StateChangeHook, retry_by_recipe
from tasquencer.core.lineage import MAIN_LINEAGE
from tasquencer.core.policy import TaskPolicy, Verdict, until_exhausted
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.core.wording import attempt_label, duration
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.temporal.activations import Behaviour, behaves
from tasquencer.temporal.driver import TaskDriver
from tasquencer.temporal.failures import (
    as_application_error,
    failure_of,
    is_left_behind,
    left_behind,
    task_error,
    worker_of,
)
from tasquencer.temporal.operators import Operators, ResultOf
from tasquencer.temporal.scope import TaskScope, carried_task

__all__ = ["NEVER_RETRY", "ActiveWorkItem", "Attempts", "Task", "accept"]

NEVER_RETRY = RetryPolicy(maximum_attempts=1)
"""A failed work item is never tried again: the retry is another work item."""

_END_MARGIN = timedelta(seconds=30)
"""How long before Temporal's own timeout of a run its task ends by itself."""

T = TypeVar("T")


def accept(parse: Callable[[object], T], raw: object) -> T:
    """The workflow's raw input, parsed; input that does not validate ends the task at once.

    Take the input as `raw: Any = None` and parse it in `run`: what Temporal itself cannot
    convert would leave the workflow stuck instead of failed.

    Raises:
        ApplicationError: of type `InvalidRequest`; the message names each wrong field.
    """
    try:
        return parse(raw)
    except InvalidRequest as problem:
        raise task_error(InvalidRequest.__name__, str(problem)) from None


def _any_result(work_item: WorkItem, result: JsonValue) -> JsonValue:
    return result


class Task:
    """The task that this workflow run carries out. Make it in the workflow's `__init__`.

    It offers the query `work_items`: all work items of the task, oldest first, as JSON with the
    ledger's names, without the two large columns `payload` and `result`. And the updates `retry_now`,
    `complete_work_item`, `fail_work_item` and `cancel_work_item`, see `tasquencer.actions`.

    Args:
        recipe: How a lineage retries that brings no recipe of its own.
        policy: Decides after each transition whether the task goes on, completes or fails.
        on_work_item_state_changed: Called after each transition, before the policy; what it
            returns is the next attempt. By default it retries by the recipe.
        record: Makes the domain record that is written beside each transition.
        result_of: Checks a result that comes from outside (`complete_work_item`) for this work item and
            returns it as the task keeps it; raises `InvalidRequest`.
        on_ended: Called when the task has ended and all its work items, too. The workflow that it returns is
            started, and runs on after the task. Not called for a task that has begun no work item.
        concurrency: How many work items may be started at once, over all lineages; None: any number. The
            others wait as `initialized`. Run the lineages side by side with `asyncio.gather`.
    """

    def __init__(
        self,
        *,
        recipe: RetryRecipe = RetryRecipe(),  # noqa: B008 (frozen)
        policy: TaskPolicy = until_exhausted,
        on_work_item_state_changed: StateChangeHook = retry_by_recipe,
        record: RecordOf | None = None,
        result_of: ResultOf = _any_result,
        on_ended: TaskEndHook | None = None,
        concurrency: int | None = None,
    ) -> None:
        self._on_ended = on_ended
        info = workflow.info()
        self._state = TaskState(
            task_id=info.workflow_id,
            run_id=info.run_id,
            task_type=info.workflow_type,
            recipe=recipe,
            policy=policy,
            on_work_item_state_changed=on_work_item_state_changed,
            record_of=record,
            new_id=_new_id,
            random=_random,
            started_at=info.workflow_start_time,
        )
        self._driver = TaskDriver(self._state, lambda: TaskScope.current().continue_as_new(), concurrency)
        carried = carried_task(info)
        if carried is not None:
            self._driver.resume(carried)
        # A lambda has no annotations: the SDK would compile their text for each task.
        workflow.set_query_handler(
            "work_items", lambda: [_listing(item) for item in self._state.work_items()]
        )
        Operators(self._driver, result_of).register()

    @property
    def started_at(self) -> datetime:
        """When the task began, also after it continued as new; aware UTC."""
        return self._state.started_at or workflow.info().workflow_start_time

    def deadline_after(self, seconds: float | None) -> datetime | None:
        """When the task has to end: so long after it began, and in time before Temporal's own timeouts.

        A run that Temporal times out has no chance to settle its work items, so the task ends before it.
        """
        info = workflow.info()
        ends = [] if seconds is None else [self.started_at + timedelta(seconds=seconds)]
        for begin, limit in (
            (self.started_at, info.execution_timeout),
            (info.workflow_start_time, info.run_timeout),
        ):
            if limit is not None and limit > timedelta(0):
                ends.append(begin + limit - min(_END_MARGIN, limit / 4))
        return min(ends, default=None)

    @property
    def work_items(self) -> list[WorkItem]:
        """All work items of the task, oldest first."""
        return self._state.work_items()

    def attempts(
        self,
        payload: BaseModel | JsonValue,
        *,
        lineage: str = MAIN_LINEAGE,
        recipe: RetryRecipe | None = None,
        deadline: datetime | None = None,
    ) -> Attempts:
        """The attempts at one piece of work, one after the other, until one succeeds or none is left.

        The lineage begins with this call, its first work item waits as `initialized` until the loop takes it.

        Args:
            payload: What each attempt has to do; a Pydantic model or JSON.
            lineage: Names this chain of attempts; unique within the task.
            recipe: How it retries; None takes the task's.
            deadline: No attempt starts at or after this time; a wait beyond it is given up.
        """
        TaskScope.current().enter(self._driver, self._on_ended)
        if self._state.verdict is not Verdict.FAIL:
            self._state.begin(
                _json(payload), now=workflow.now(), lineage=lineage, recipe=recipe, deadline=deadline
            )
        return Attempts(self._driver, lineage)

    def result(self, lineage: str = MAIN_LINEAGE) -> JsonValue:
        """The result of a lineage; fails the task if its policy says so.

        Raises:
            ApplicationError: of type `RetriesExhausted`, `NotRetryable`, `DeadlineExceeded` or
                `TaskFailed`; the message says what happened last, the detail is the last failure.
        """
        return self.completed(lineage).result

    def completed(self, lineage: str = MAIN_LINEAGE) -> WorkItem:
        """The completed work item of a lineage; fails the task like `result`."""
        self.check()
        item = self._state.latest(lineage)
        if item.state is not WorkItemState.COMPLETED:
            raise TaskMisused(f"lineage {lineage!r} has no result: its last work item is {item.state}")
        return item

    def check(self) -> None:
        """Fail the task, like `result`, if its policy says so."""
        if self._state.verdict is Verdict.FAIL:
            ended = self._state.failure()
            raise task_error(ended.type, ended.message, ended.failure)


class Attempts:
    """Asynchronous iterator over the work items of one lineage, each handed out when it may start.

    An iterator, not a generator: a generator that is left early is finalized whenever garbage is
    collected, which is no place for a workflow's effects.
    """

    def __init__(self, driver: TaskDriver, lineage: str) -> None:
        self._driver = driver
        self._lineage = lineage

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ActiveWorkItem:
        while True:
            item = self._next()
            if item is None:
                raise StopAsyncIteration
            await self._driver.wait_for(item)
            if self._driver.state.work_item(item.id).state.is_terminal:  # by an operator, meanwhile
                continue
            await self._driver.turn(item)
            if self._driver.state.work_item(item.id).state.is_terminal:
                continue
            if self._driver.is_left_behind(item):
                await self._driver.replace(item)
                continue
            if not await self._driver.expire(item):
                return ActiveWorkItem(self._driver, item)

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
    """A work item whose turn it is. Entering it records the start, leaving it the outcome."""

    def __init__(self, driver: TaskDriver, item: WorkItem) -> None:
        self._driver = driver
        self._item = item
        self._outcome: tuple[JsonValue] | Failure | None = None

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
        """What this attempt has to do; a hook may have changed it from the attempt before."""
        return self._item.payload

    @overload
    async def execute_activity(
        self,
        activity: Callable[..., Awaitable[T]],
        *args: Any,
        start_to_close_timeout: timedelta,
        heartbeat_timeout: timedelta | None = None,
        schedule_to_start_timeout: timedelta | None = None,
        schedule_to_close_timeout: timedelta | None = None,
        task_queue: str | None = None,
        result_type: None = None,
    ) -> T: ...

    @overload
    async def execute_activity(
        self,
        activity: str | Callable[..., Any],
        *args: Any,
        start_to_close_timeout: timedelta,
        heartbeat_timeout: timedelta | None = None,
        schedule_to_start_timeout: timedelta | None = None,
        schedule_to_close_timeout: timedelta | None = None,
        task_queue: str | None = None,
        result_type: type[T],
    ) -> T: ...

    @overload
    async def execute_activity(
        self,
        activity: str | Callable[..., Any],
        *args: Any,
        start_to_close_timeout: timedelta,
        heartbeat_timeout: timedelta | None = None,
        schedule_to_start_timeout: timedelta | None = None,
        schedule_to_close_timeout: timedelta | None = None,
        task_queue: str | None = None,
        result_type: None = None,
    ) -> Any: ...

    async def execute_activity(
        self,
        activity: str | Callable[..., Any],
        *args: Any,
        start_to_close_timeout: timedelta,
        heartbeat_timeout: timedelta | None = None,
        schedule_to_start_timeout: timedelta | None = None,
        schedule_to_close_timeout: timedelta | None = None,
        task_queue: str | None = None,
        result_type: type | None = None,
    ) -> Any:
        """Execute the activity that does the work: once, its id the work item's.

        Temporal never retries it. When the task is canceled, the activity is told so (it sees it
        at its next heartbeat), and the task ends after it.

        Args:
            activity: The activity, or its name.
            args: Its arguments.
            start_to_close_timeout: How long the attempt may take.
            heartbeat_timeout: How long a silent worker counts as alive; None: no heartbeats.
            schedule_to_start_timeout: How long it may wait for a worker; it then fails as `not_picked_up`.
            schedule_to_close_timeout: How long waiting and attempt together may take.
            task_queue: None takes the workflow's.
            result_type: What to read the result as; needed where the activity is given by name.
        """
        if self._driver.is_left_behind(self._item):  # an action may have started it as the reset came
            raise left_behind()
        if self._driver.state.work_item(self.id).state.is_terminal:
            raise _ended("before its call was made")
        call = workflow.start_activity(  # type: ignore[misc]
            activity,  # type: ignore[arg-type] # the SDK's overloads tell no name from a callable
            args=args,
            result_type=result_type,
            activity_id=self._item.id,
            task_queue=task_queue,
            start_to_close_timeout=start_to_close_timeout,
            heartbeat_timeout=heartbeat_timeout,
            schedule_to_start_timeout=schedule_to_start_timeout,
            schedule_to_close_timeout=schedule_to_close_timeout,
            retry_policy=NEVER_RETRY,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=attempt_label(self._item.attempt, self._driver.state.max_retries(self._item)),
        )
        return await self._driver.call(self._item, call)

    async def outcome(self, within: timedelta | None = None) -> JsonValue:
        """Wait for a person or another program to do the work: `complete_work_item` gives its result.

        The block is left, and the loop goes on, if they fail or cancel the work item instead.

        Args:
            within: How long to wait; the work item then fails as `timed_out`.
        """
        try:
            item = await asyncio.wait_for(
                self._driver.outcome(self._item), None if within is None else within.total_seconds()
            )
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

    def complete(self, result: BaseModel | JsonValue) -> None:
        """The attempt succeeded; recorded when the block is left."""
        self._settle((_json(result),))

    def fail(self, failure: Failure) -> None:
        """The attempt failed; recorded when the block is left."""
        self._settle(failure)

    def _settle(self, outcome: tuple[JsonValue] | Failure) -> None:
        if self._outcome is not None:
            raise TaskMisused(f"work item {self.id!r} was given a second outcome")
        self._outcome = outcome

    async def __aenter__(self) -> Self:
        await self._driver.start(self._item)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._driver.state.work_item(self.id).state.is_terminal and (
            error is None
            or isinstance(error, FailureError)
            # A call that was stopped before it was scheduled ends so, though the task was not canceled.
            or (isinstance(error, asyncio.CancelledError) and workflow.cancellation_reason() is None)
        ):
            await self._driver.ended(self._item)
            return True
        if error is None:
            if self._outcome is None:
                raise TaskMisused(f"the block of work item {self.id!r} was left without complete() or fail()")
            if isinstance(self._outcome, Failure):
                await self._driver.fail(self._item, self._outcome, None)
            else:
                await self._driver.complete(self._item, self._outcome[0])
            return False
        if isinstance(error, asyncio.CancelledError) or (
            is_cancelled_exception(error) and workflow.cancellation_reason() is not None
        ):
            self._driver.cancel(self._item.lineage)
            return False
        if is_cancelled_exception(error):
            await self._driver.give_up(self._item, "what it waited for was canceled")
            return True
        if is_left_behind(error):
            await self._driver.replace(self._item)
            return True
        if isinstance(error, FailureError):
            await self._driver.fail(self._item, failure_of(error), worker_of(error))
            return True
        return False


_IDS = UUID("6f1d6c1e-2c0b-5c53-9a54-0d5f4e6f3a10")
"""Namespace of the work items' ids."""


def _new_id(lineage: str, attempt: int) -> str:
    """The id of a work item. It follows from the run: a decision made again gives the same id in any order.

    Temporal changes the random seed of a run that a reset has made, so ids differ before and after a reset.
    """
    if not behaves(Behaviour.SECOND_EDITION):
        return str(workflow.uuid4())
    name = f"{workflow.info().workflow_id}/{workflow.random_seed()}/{lineage}/{attempt}"
    return str(uuid5(_IDS, name))


def _random(work_item_id: str) -> float:
    if not behaves(Behaviour.SECOND_EDITION):
        return workflow.random().random()
    return Random(work_item_id).random()  # noqa: S311


def _ended(how: str) -> ApplicationError:
    return ApplicationError(f"the work item was ended {how}", type="WorkItemEnded")


def _json(value: BaseModel | JsonValue) -> JsonValue:
    dumped: JsonValue = (
        value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, BaseModel) else value
    )
    return dumped


def _listing(item: WorkItem) -> dict[str, Any]:
    listed = item.model_dump(mode="json", exclude={"payload", "result"})
    listed["failure_kind"] = item.failure.kind if item.failure is not None else None
    listed["failure_message"] = item.failure.message if item.failure is not None else None
    return listed
