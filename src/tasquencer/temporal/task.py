"""`Task`: the workflow side of a task.

A workflow makes one `Task`, loops over its `attempts`, and gives each work item an outcome:

    async for work_item in self._task.attempts(job):        # record, durable sleep, next
        async with work_item:                                # started … completed, failed, canceled
            work_item.complete(await work_item.execute_activity("generate", job, …))
    return self._task.result()

At the end of the block:

- After `complete` or `fail`, that is the outcome.
- After the failure of an activity, a local activity or a child workflow, the work item fails with it. The
error is swallowed, and the loop continues with a retry or ends.
- If the workflow is canceled, the work item is canceled and the cancellation propagates.
- Any other exception is a bug. Nothing is recorded, and the exception propagates. Temporal fails the workflow
task and tries it again until the code is fixed. No attempt is used up.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from random import Random
from typing import TypeVar
from uuid import UUID, uuid5

from pydantic import JsonValue
from temporalio import workflow

from tasquencer.core.carried import RESULTS_BYTES
from tasquencer.core.ending import TaskEndHook
from tasquencer.core.errors import InvalidRequest, TaskMisused
from tasquencer.core.failure import Failure
from tasquencer.core.hooks import LineageRules, RecordOf, StateChangeHook, retry_by_recipe
from tasquencer.core.json_values import as_json
from tasquencer.core.lineage import MAIN_LINEAGE, Group
from tasquencer.core.policy import TaskPolicy, Verdict, until_exhausted
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.temporal.activations import behaves, random_seed
from tasquencer.temporal.attempts import Attempts
from tasquencer.temporal.behaviour import Behaviour
from tasquencer.temporal.driver import TaskDriver
from tasquencer.temporal.failures import task_error
from tasquencer.temporal.independent import RULES
from tasquencer.temporal.operators import Operators, ResultOf
from tasquencer.temporal.run_books import join, listing
from tasquencer.temporal.scope import TaskScope, carried_task
from tasquencer.temporal.unbegun import may_never_begin

__all__ = ["ImplicitTask", "Task", "accept"]

_END_MARGIN = timedelta(seconds=30)
"""How long before Temporal's own timeout of a run its task ends."""

_ATTRIBUTE = "__tasquencer_task__"
"""Of the run's event loop: its task. See `TaskScope`."""

T = TypeVar("T")


def accept(parse: Callable[[object], T], raw: object) -> T:
    """Parse the workflow's raw input. Input that is not valid ends the task immediately.

    Declare the input as `raw: Any = None` and parse it in `run`. With another type, input that Temporal
    cannot convert would leave the workflow stuck instead of failed.

    Raises:
        ApplicationError: of type `InvalidRequest`. The message names each wrong field.
    """
    try:
        return parse(raw)
    except InvalidRequest as problem:
        raise task_error(InvalidRequest.__name__, str(problem)) from None


def _any_result(work_item: WorkItem, result: JsonValue) -> JsonValue:
    return result


class Task:
    """The task of this workflow run. Make it in the workflow's `__init__`.

    It offers the query `work_items`, which returns all work items of the task, oldest first, as JSON with the
    ledger's names, without the two large columns `payload` and `result`. It also offers the updates
    `pause_task`, `resume_task`, `retry_now`, `complete_work_item`, `fail_work_item` and `cancel_work_item`,
    see `tasquencer.core.actions`.

    Args:
        recipe: The recipe of lineages that have no recipe of their own.
        policy: Decides after each transition whether the task continues, completes or fails.
        on_work_item_state_changed: Called after each transition, before the policy. It returns the next
        attempt or None. By default it retries by the recipe.
        record: Makes the domain record that is written with each transition.
        result_of: Checks a result from outside (`complete_work_item`) for this work item and returns it in
        the form that the task keeps. Raises `InvalidRequest`.
        on_ended: Called when the task and all its work items have ended. The workflow that it returns is
        started and runs independently. Not called for a task that has begun no work item.
        concurrency: How many work items may be started at the same time, over all lineages. None: no limit.
        The others wait as `initialized`. Run the lineages side by side with `asyncio.gather`.
        results_bytes: Bytes of results, as JSON, that the task carries along when it continues as new.
        `result` refuses those that do not fit. All carried state must fit into Temporal's 2 MiB.
        rules: The rules of independent lineages, by kind. The policy does not count these lineages. Your
        code reads their end (`last`) and decides.
    """

    _replaces_handlers = True
    _driver_type = TaskDriver

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
        results_bytes: int = RESULTS_BYTES,
        rules: Mapping[str, LineageRules] | None = None,
    ) -> None:
        self._begin(on_ended)
        info = workflow.info()
        self._state = TaskState(
            task_id=info.workflow_id,
            run_id=info.run_id,
            task_type=info.workflow_type,
            recipe=recipe,
            policy=policy,
            on_work_item_state_changed=on_work_item_state_changed,
            record_of=record,
            rules={**RULES, **(rules or {})},
            new_id=_new_id,
            random=_random,
            started_at=info.workflow_start_time,
        )
        self._state.results_bytes = results_bytes
        self._driver = self._driver_type(
            self._state, lambda: TaskScope.current().continue_as_new(), concurrency
        )
        if behaves(Behaviour.SETTLES_UNBEGUN):
            may_never_begin(self._driver)
        join(self._state)
        carried = carried_task(info)
        if carried is not None:
            self._driver.resume(carried)
        if self._replaces_handlers or workflow.get_query_handler("work_items") is None:
            # A lambda has no annotations, whose text the SDK would compile for each task.
            workflow.set_query_handler("work_items", lambda: listing())  # noqa: PLW0108
        self._operators = Operators(self._driver, result_of)
        self._operators.register(replaces=self._replaces_handlers)

    def _begin(self, on_ended: TaskEndHook | None) -> None:
        self._on_ended = on_ended
        self._names = Counter[str]()
        loop = vars(asyncio.get_running_loop())
        known = loop.setdefault(_ATTRIBUTE, self)
        if known is not self and isinstance(known, ImplicitTask):
            raise TaskMisused("make the Task in the workflow's `__init__`, before the first `ask`")

    @classmethod
    def current(cls) -> Task:
        """The task of this run; a workflow without one gets one. Raises `TaskMisused` without the plugin."""
        scope = TaskScope.current()
        known: Task | None = vars(asyncio.get_running_loop()).get(_ATTRIBUTE)
        task = ImplicitTask() if known is None else known
        scope.enter(task._driver, task._on_ended)
        return task

    @property
    def started_at(self) -> datetime:
        """When the task began (aware UTC), also after it continued as new."""
        return self._state.started_at or workflow.info().workflow_start_time

    def deadline_after(self, seconds: float | None) -> datetime | None:
        """Return when the task has to end: this time after it began, but before Temporal's own timeouts.

        A run that Temporal times out has no chance to settle its work items, so the task ends earlier.
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
        payload: object,
        *,
        lineage: str = MAIN_LINEAGE,
        recipe: RetryRecipe | None = None,
        deadline: datetime | None = None,
        kind: str | None = None,
        group: str | None = None,
    ) -> Attempts:
        """Iterate over the attempts at one piece of work until one succeeds or none is left.

        The lineage begins with this call. Its first work item waits as `initialized` until the loop takes it.

        Args:
            payload: The input of each attempt, kept as JSON (a Pydantic model, a dataclass, plain values).
            lineage: The name of this chain of attempts, unique within the task.
            recipe: The recipe of its retries. None means the task's.
            deadline: No attempt starts at or after this time. A longer wait is given up.
            kind: The `rules` of an independent lineage. None: the task's own hook, record and policy.
            group: The group that the lineage belongs to, see `begin_group`.
        """
        TaskScope.current().enter(self._driver, self._on_ended)
        if self._state.verdict is not Verdict.FAIL and not self._driver.is_ending:
            self._driver.begins(lineage)
            self._state.begin(
                as_json(payload, f"the payload of lineage {lineage!r}"),
                now=workflow.now(),
                lineage=lineage,
                recipe=recipe,
                deadline=deadline,
                kind=kind,
                group=group,
            )
        return Attempts(self._driver, lineage)

    def next_name(self, prefix: str, suffix: str | None = None) -> str:
        """A name for the next lineage with this prefix: `ask-1`, `ask-2-label` …"""
        self._names[prefix] += 1
        name = f"{prefix}-{self._names[prefix]}"
        return name if suffix is None else f"{name}-{suffix}"

    def deadline_within(self, within: timedelta | None, lineage: str) -> datetime | None:
        """Return when something has to end that begins now with this lineage, before Temporal's own timeouts.

        If the lineage has begun before the task continued as new, its deadline stays.
        """
        if (known := self._state.lineages.get(lineage)) is not None:
            return known.deadline
        begin = workflow.now() - self.started_at
        return self.deadline_after(None if within is None else (begin + within).total_seconds())

    def results_from_outside(self, lineage: str, result_of: ResultOf) -> None:
        """Let this function check the results that come from outside for a lineage."""
        self._operators.results_of[lineage] = result_of

    def begin_group(self, name: str, *, counted: bool) -> None:
        """Begin a group of lineages, which make one result together (`attempts(…, group=name)`).

        Args:
            name: Unique among the groups of the task.
            counted: Whether the policy counts the group as one lineage. It does not count the lineages in it.
        """
        TaskScope.current().enter(self._driver, self._on_ended)
        self._state.begin_group(name, counted=counted)

    @property
    def groups(self) -> Mapping[str, Group]:
        """The groups of the task by name, and how they have ended."""
        return self._state.groups

    def abandon_group(self, name: str) -> None:
        """End an independent group whose code was canceled. Its work items have ended in their own way."""
        if self.groups[name].state is None:
            self._state.put_group(name, Group(counted=False, state=WorkItemState.CANCELED))

    async def end_group(
        self, name: str, state: WorkItemState, last: str, failure: Failure | None = None
    ) -> None:
        """End a group, unless it has ended. Its open work items are canceled, and the policy decides.

        Args:
            name: The name of the group.
            state: How it ends.
            last: The lineage that ends it. Its result is that of the group.
            failure: Why the code gives the group up. None: the last work item of `last` says it.
        """
        group = Group(self.groups[name].counted, state, last, failure)
        self._state.end_group(name, group, now=workflow.now())
        await self._driver.flush()

    def is_carried(self, lineage: str) -> bool:
        """Return whether the result of a lineage has traveled along with a task that continued as new."""
        return self._state.latest(lineage).id not in self._state.left_out

    def independent_result(self, lineage: str) -> JsonValue:
        """The result of an independent lineage.

        Raises:
            ApplicationError: it has none; the type and the message say why.
        """
        self.check()
        item = self._state.latest(lineage)
        if item.state is not WorkItemState.COMPLETED:
            ended = self._state.failure_in(lineage)
            raise task_error(ended.type, ended.message, ended.failure)
        return self._carried_along(item)

    def result(self, lineage: str = MAIN_LINEAGE) -> JsonValue:
        """Return the result of a lineage. Fails the task if its policy decides so.

        Raises:
            ApplicationError: of type `RetriesExhausted`, `NotRetryable`, `DeadlineExceeded` or
                `TaskFailed`. The message describes the last event, and the detail is the last failure.
        """
        return self._carried_along(self.completed(lineage))

    def _carried_along(self, item: WorkItem) -> JsonValue:
        if item.id in self._state.left_out:
            raise TaskMisused(
                f"the result of lineage {item.lineage!r} did not travel along when the task continued as "
                f"new: all results together may have {self._state.results_bytes:,} bytes. The ledger has it; "
                "keep large results elsewhere"
            )
        return item.result

    def last(self, lineage: str = MAIN_LINEAGE) -> WorkItem:
        """Return the last work item of a lineage, in any state."""
        return self._state.latest(lineage)

    def reason(self, lineage: str = MAIN_LINEAGE) -> str | None:
        """Return the reason of the last transition of a lineage, if it has one."""
        return self._state.lineages[lineage].reason

    def completed(self, lineage: str = MAIN_LINEAGE) -> WorkItem:
        """Return the completed work item of a lineage. Fails the task like `result`."""
        self.check()
        item = self._state.latest(lineage)
        if item.state is not WorkItemState.COMPLETED:
            raise TaskMisused(f"lineage {lineage!r} has no result: its last work item is {item.state}")
        return item

    async def continue_as_new_if_due(self) -> None:
        """Continue as new if Temporal suggests it and no work item is started.

        Waits do that by themselves. Call it between two pieces of work where a task has many of them. The new
        run takes the code from its beginning: `attempts` of a lineage that has ended are over, its result is
        there.
        """
        await self._driver.continue_if_due()

    def check(self) -> None:
        """Fail the task, like `result`, if its policy decides so."""
        if self._state.verdict is Verdict.FAIL:
            ended = self._state.failure()
            raise task_error(ended.type, ended.message, ended.failure)


class _StayingDriver(TaskDriver):
    def _may_continue_as_new(self) -> bool:
        return False


class ImplicitTask(Task):
    """The task of a workflow that makes none itself. No backoff continues its workflow as new.

    What the workflow offers under the names of a task's query and updates stays its own.
    """

    _replaces_handlers = False
    _driver_type = _StayingDriver


_IDS = UUID("6f1d6c1e-2c0b-5c53-9a54-0d5f4e6f3a10")
"""Namespace of the work items' ids."""


def _new_id(lineage: str, attempt: int) -> str:
    """Return the id of a work item. It depends on the run, so a repeated decision gives the same id.

    A run made by a reset has another random seed, so ids differ before and after a reset.
    """
    if not behaves(Behaviour.SECOND_EDITION):
        return str(workflow.uuid4())
    name = f"{workflow.info().workflow_id}/{random_seed()}/{lineage}/{attempt}"
    return str(uuid5(_IDS, name))


def _random(work_item_id: str) -> float:
    if not behaves(Behaviour.SECOND_EDITION):
        return workflow.random().random()
    return Random(work_item_id).random()  # noqa: S311
