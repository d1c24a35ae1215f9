"""The updates of every task: `pause_task`, `resume_task`, `retry_now`, and those that end a work item.

Each takes one JSON object (see `tasquencer.core.actions`). It is refused before anything changes if it cannot
be carried out. It returns the new states of the work items when its transitions are in the ledger. Temporal
executes the same update id once. An update is checked twice: when it arrives, and when its turn has come.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import JsonValue
from temporalio import workflow

from tasquencer.core.actions import (
    CancelWorkItem,
    CompleteWorkItem,
    FailWorkItem,
    PauseTask,
    ResumeTask,
    RetryNow,
    check_transition,
    operator_failure,
    parse_action,
    waiting,
)
from tasquencer.core.carried import TaskPause
from tasquencer.core.errors import ActionRefused, InvalidRequest
from tasquencer.core.policy import Verdict
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.temporal.activations import behaves, is_new_run_due
from tasquencer.temporal.behaviour import Behaviour
from tasquencer.temporal.driver import TaskDriver
from tasquencer.temporal.failures import task_error
from tasquencer.temporal.timers import news

__all__ = ["Operators", "ResultOf"]

_ATTRIBUTE = "__tasquencer_operators__"
"""Of the run's event loop: the operators of all its books. See `TaskScope`."""

_OF_THE_RUN = frozenset({"pause_task", "resume_task"})
"""Updates about all books of a run, which share one `Pausing`."""

_Act = Callable[[Any], Awaitable[dict[str, Any]]]
_Check = Callable[[object], None]

ResultOf = Callable[[WorkItem, JsonValue], JsonValue]
"""Checks a result from outside and returns it in the form that the task keeps. Raises `InvalidRequest`."""


class Operators:
    """Executes actions from outside on a task's work items.

    Args:
        driver: The task's driver.
        result_of: Checks the result of `complete_work_item`.
    """

    def __init__(self, driver: TaskDriver, result_of: ResultOf) -> None:
        self._driver = driver
        self._result_of = result_of
        # The SDK loses an answer that a replay gives at the result of a write, and the task would stop.
        self._answers_on_news = behaves(Behaviour.ANSWERS_ON_NEWS)
        self.results_of: dict[str, ResultOf] = {}
        """By lineage, where it has a function of its own."""

        # An action that ends a work item must be in the history before it is written to the ledger, see
        # `driver`. One that only ends a wait need not be, but earlier events still come first.
        self._actions: dict[str, tuple[_Act, _Check, Callable[[], Awaitable[None]]]] = {
            "pause_task": (self._pause, self._check_pause, _immediately),
            "resume_task": (self._resume, self._check_resume, _immediately),
            "retry_now": (self._retry_now, self._check_retry_now, self._ended_waits),
            "complete_work_item": (self._complete, self._check_complete, news),
            "fail_work_item": (self._fail, self._check_fail, news),
            "cancel_work_item": (self._cancel, self._check_cancel, news),
        }

    def register(self, *, replaces: bool = True) -> None:
        """Offer the updates. A run's update acts on the books that have the work item, a pause on all books.

        Args:
            replaces: Updates of the same names that the workflow offers itself. Otherwise they stay.
        """
        members: list[Operators] = vars(asyncio.get_running_loop()).setdefault(_ATTRIBUTE, [])
        members.append(self)
        for name in self._actions:
            if replaces or workflow.get_update_handler(name) is None:
                handler, validator = _handler(name, members), _validator(name, members)
                workflow.set_update_handler(name, handler, validator=validator)

    @property
    def is_ending(self) -> bool:
        """Return whether no further attempt of these books starts, because they are about to end."""
        return self._driver.is_ending or self._driver.state.verdict is Verdict.FAIL

    def is_addressed(self, name: str, raw: object) -> bool:
        """Return whether the action is about work items of these books."""
        if name == "retry_now":
            with contextlib.suppress(ActionRefused):
                return bool(self._waiting())
            return False
        return isinstance(raw, dict) and self._driver.state.find(str(raw.get("work_item_id"))) is not None

    def check(self, name: str, raw: object) -> None:
        """Raise the error with which the action is refused, if it cannot be carried out."""
        _refusing(self._actions[name][1])(raw)

    async def carry_out(self, name: str, raw: object) -> dict[str, Any]:
        """Carry the action out; what became of it."""
        act, _, first = self._actions[name]
        self._driver.actions_under_way += 1
        try:
            await first()
            if isinstance(raw, dict) and self._driver.calls.has_arrived(str(raw.get("work_item_id"))):
                await self._driver.calls.catch_up()
            self.check(name, raw)
            return await act(raw)
        finally:
            if self._answers_on_news and name not in _OF_THE_RUN:
                await news()
            self._driver.actions_under_way -= 1

    async def _ended_waits(self) -> None:
        known = self._waiting()
        await self._driver.catch_up_with_timers()
        if not any(self._still_waits(work_item_id) for work_item_id in known):
            raise task_error(ActionRefused.__name__, "no attempt is waiting: the wait has just ended")

    async def _retry_now(self, raw: object = None) -> dict[str, Any]:
        action = parse_action(RetryNow, raw)
        ids = self._waiting()
        for work_item_id in ids:
            self._driver.hurry(work_item_id, action.actor, action.reason)
        await workflow.wait_condition(
            # A retry that the code has left behind never starts in this run. A new run keeps its mark.
            lambda: (
                not any(self._still_waits(known) for known in ids)
                or (self._answers_on_news and is_new_run_due())
            )
        )
        await self._driver.flush()
        hurried = [self._driver.successor(known) for known in ids if self._was_hurried(known)]
        if not hurried:
            raise task_error(ActionRefused.__name__, "no attempt is waiting: the task has just ended")
        return {"work_item_ids": hurried}

    async def _pause(self, raw: object = None) -> dict[str, Any]:
        action = parse_action(PauseTask, raw)
        pause = TaskPause(actor=action.actor, reason=action.reason, at=workflow.now())
        self._driver.pausing.begin(pause)
        return {"paused": pause.model_dump(mode="json")}

    async def _resume(self, raw: object = None) -> dict[str, Any]:
        self._driver.pausing.end()
        return {"paused": None}

    async def _complete(self, raw: object = None) -> dict[str, Any]:
        action = parse_action(CompleteWorkItem, raw)
        self._driver.state.complete(
            action.work_item_id,
            self._result(action),
            now=workflow.now(),
            actor=action.actor,
            reason=action.reason,
        )
        return await self._acted_on(action.work_item_id)

    async def _fail(self, raw: object = None) -> dict[str, Any]:
        action = parse_action(FailWorkItem, raw)
        self._driver.state.fail(
            action.work_item_id,
            operator_failure(action),
            now=workflow.now(),
            actor=action.actor,
            reason=action.reason,
            may_retry=workflow.cancellation_reason() is None,
        )
        return await self._acted_on(action.work_item_id)

    async def _cancel(self, raw: object = None) -> dict[str, Any]:
        action = parse_action(CancelWorkItem, raw)
        reason = f"canceled by {action.actor}" + (f": {action.reason}" if action.reason else "")
        self._driver.state.cancel(action.work_item_id, now=workflow.now(), actor=action.actor, reason=reason)
        return await self._acted_on(action.work_item_id)

    async def _acted_on(self, work_item_id: str) -> dict[str, Any]:
        await self._driver.flush()
        return {"work_item_id": work_item_id, "state": self._driver.state.work_item(work_item_id).state.value}

    def _result(self, action: CompleteWorkItem) -> JsonValue:
        item = self._driver.state.work_item(action.work_item_id)
        return self.results_of.get(item.lineage, self._result_of)(item, action.result)

    def _waiting(self) -> list[str]:
        driver = self._driver
        ids = [
            item.id
            for item in waiting(driver.state)
            if not driver.is_hurried(item.id) and not driver.is_ready(item.id)
        ]
        if not ids:
            raise ActionRefused("no attempt is waiting: someone else already ended the wait")
        return ids

    def _still_waits(self, work_item_id: str) -> bool:
        present = self._driver.successor(work_item_id)
        state = self._driver.state.work_item(present).state
        return state is WorkItemState.INITIALIZED and not self._driver.is_ready(present)

    def _was_hurried(self, work_item_id: str) -> bool:
        item = self._driver.state.work_item(self._driver.successor(work_item_id))
        return item.started_at is not None or item.state is WorkItemState.INITIALIZED

    def _check_pause(self, raw: object = None) -> None:
        parse_action(PauseTask, raw)
        if self._driver.pausing.pause is not None:
            raise ActionRefused(f"the task is {self._driver.pausing.pause} already")
        if self.is_ending:
            raise ActionRefused("the task is ending: no further attempt starts")

    def _check_resume(self, raw: object = None) -> None:
        parse_action(ResumeTask, raw)
        if self._driver.pausing.pause is None:
            raise ActionRefused("the task is not paused")

    def _check_retry_now(self, raw: object = None) -> None:
        parse_action(RetryNow, raw)
        if self._driver.pausing.pause is not None:
            raise ActionRefused(f"the task is {self._driver.pausing.pause}: resume it first")
        self._waiting()

    def _check_complete(self, raw: object = None) -> None:
        action = parse_action(CompleteWorkItem, raw)
        check_transition(self._driver.state, action.work_item_id, WorkItemState.COMPLETED)
        self._result(action)

    def _check_fail(self, raw: object = None) -> None:
        action = parse_action(FailWorkItem, raw)
        check_transition(self._driver.state, action.work_item_id, WorkItemState.FAILED)

    def _check_cancel(self, raw: object = None) -> None:
        action = parse_action(CancelWorkItem, raw)
        check_transition(self._driver.state, action.work_item_id, WorkItemState.CANCELED)


def _addressed(name: str, members: list[Operators], raw: object) -> list[Operators]:
    if name in _OF_THE_RUN:
        return [next((one for one in members if not one.is_ending), members[0])]
    return [one for one in members if one.is_addressed(name, raw)] or members[:1]


def _handler(name: str, members: list[Operators]) -> _Act:
    async def handler(raw: object = None) -> dict[str, Any]:
        done = [await one.carry_out(name, raw) for one in _addressed(name, members, raw)]
        if len(done) == 1:
            return done[0]
        return {"work_item_ids": [known for each in done for known in each["work_item_ids"]]}

    # The SDK would compile the text of the annotations for each task.
    handler.__annotations__ = {"raw": Any}
    return handler


def _validator(name: str, members: list[Operators]) -> _Check:
    def validator(raw: object = None) -> None:
        for one in _addressed(name, members, raw):
            one.check(name, raw)

    return validator


async def _immediately() -> None:
    """Wait for nothing first, because the action ends no work item."""


def _refusing(check: Callable[[object], None]) -> Callable[[object], None]:
    def validator(raw: object = None) -> None:
        try:
            check(raw)
        except (ActionRefused, InvalidRequest) as refusal:
            raise task_error(type(refusal).__name__, str(refusal)) from None

    return validator
