"""The adopted activities of one workflow run: their work items, their driver, their names.

Their books are separate from those of a `Task`. A task's policy neither counts nor ends them, its new run
does not carry them along, and a workflow without a `Task` can have them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import NoReturn
from uuid import UUID, uuid5

from pydantic import JsonValue
from temporalio import workflow

from tasquencer.core.entries import DomainRecord
from tasquencer.core.errors import TaskMisused
from tasquencer.core.hooks import NextAttempt, StateChange
from tasquencer.core.policy import Counts, Verdict
from tasquencer.core.retry import Delay, RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import Transition, WorkItem, WorkItemState
from tasquencer.temporal.activations import random_seed
from tasquencer.temporal.adopting_agents import AdoptedStep
from tasquencer.temporal.adopting_retries import AdoptedPolicy, next_step
from tasquencer.temporal.driver import TaskDriver
from tasquencer.temporal.operators import Operators
from tasquencer.temporal.run_books import join, listing

__all__ = ["AdoptedDriver", "AdoptedRun"]

_ATTRIBUTE = "__tasquencer_adopted__"
"""Attribute of the run's event loop. See `TaskScope`."""

_IDS = UUID("0d2f1f6a-9c39-5a0e-8a65-2f1f5e1f2a77")
"""Namespace of the work items' ids."""


class AdoptedDriver(TaskDriver):
    """Runs attempts of adopted activities. The workflow's code decides about its own cancellation."""

    def is_being_canceled(self, lineage: str) -> bool:
        """Return False, because natively only a cancel of the activity's handle cancels the activity."""
        return False

    async def close(self, reason: str) -> None:
        """Record the open work items as canceled, because the workflow is ending.

        As in Temporal, the end of the workflow neither waits for its activities nor cancels them.
        """
        self.is_ending = True
        self.state.close(now=workflow.now(), reason=reason)
        self.writing.settle()
        await self.flush()
        await workflow.wait_condition(lambda: self.actions_under_way == 0)

    def _stop_what_ended(self) -> None:
        if not self.is_ending:
            super()._stop_what_ended()

    def _may_continue_as_new(self) -> bool:
        return False  # the workflow belongs to the user


class AdoptedRun:
    """A run's adopted activities. Created when the first one starts."""

    def __init__(self) -> None:
        info = workflow.info()
        self._names = Counter[str]()
        self._keys: dict[str, str] = {}
        self._steps: dict[str, AdoptedStep] = {}
        self._policies: dict[str, AdoptedPolicy] = {}
        self._checks: dict[str, Callable[[WorkItem, JsonValue], JsonValue]] = {}
        self.state = TaskState(
            task_id=info.workflow_id,
            run_id=info.run_id,
            task_type=info.workflow_type,
            recipe=AdoptedPolicy.of(None).recipe,
            policy=_the_code_decides,
            on_work_item_state_changed=self._next_attempt,
            record_of=self._record,
            new_id=lambda lineage, attempt: _new_id(self._keys.get(lineage, lineage), attempt),
            random=lambda _: 0.0,
            started_at=info.workflow_start_time,
        )
        self.driver = AdoptedDriver(self.state, _never, None)
        join(self.state)
        if workflow.get_query_handler("work_items") is None:
            workflow.set_query_handler("work_items", lambda: listing())  # noqa: PLW0108 - it has no annotations
        Operators(self.driver, self._result_of).register(replaces=False)

    @classmethod
    def find(cls) -> AdoptedRun | None:
        """Return those of the current run, if it has any."""
        found: AdoptedRun | None = vars(asyncio.get_running_loop()).get(_ATTRIBUTE)
        return found

    @classmethod
    def current(cls) -> AdoptedRun:
        """Return those of the current run."""
        found = cls.find()
        if found is None:
            found = cls()
            setattr(asyncio.get_running_loop(), _ATTRIBUTE, found)
        return found

    def next_name(self, activity_type: str, activity_id: str | None, step: AdoptedStep | None) -> str:
        """The lineage of the activity that starts now: `charge #1`, `charge #2`, or `charge #<its id>`.

        A step of an agent has its own name, and from the second use on a number. The ids of its work items
        do not depend on that name, so a release may read names from arguments that another one could not.
        """
        if activity_id is None:
            self._names[activity_type] += 1
            key = f"{activity_type} #{self._names[activity_type]}"
        else:
            name = f"{activity_type} #{activity_id}"
            self._names[name] += 1
            key = name if self._names[name] == 1 else f"{name} ({self._names[name]})"
        if step is None:
            return key
        self._names[step.name] += 1
        number = self._names[step.name]
        lineage = step.name if number == 1 else f"{step.name} #{number}"
        self._keys[lineage] = key
        self._steps[lineage] = step
        return lineage

    def _record(self, item: WorkItem, recipe: RetryRecipe) -> DomainRecord | None:
        step = self._steps.get(item.lineage)
        return None if step is None else step.record(item, recipe.max_retries)

    def begin(
        self,
        lineage: str,
        payload: JsonValue,
        policy: AdoptedPolicy,
        deadline: datetime | None,
        check: Callable[[WorkItem, JsonValue], JsonValue],
    ) -> None:
        """Begin a lineage.

        Args:
            lineage: Its name, from `next_name`.
            payload: The payload to keep.
            policy: Its retry policy.
            deadline: The end of the schedule-to-close timeout.
            check: Checks a result that comes from outside.
        """
        self._policies[lineage] = policy
        self._checks[lineage] = check
        self.state.begin(
            payload, now=workflow.now(), lineage=lineage, recipe=policy.recipe, deadline=deadline
        )

    def _next_attempt(self, change: StateChange) -> NextAttempt | None:
        item = change.work_item
        if change.transition.next_state is not WorkItemState.FAILED or item.failure is None:
            return None
        lineage = self.state.lineages[item.lineage]
        step = next_step(
            self._policies[item.lineage],
            item.attempt,
            item.failure,
            now=change.transition.at,
            deadline=lineage.deadline,
        )
        return NextAttempt(item.payload, step) if isinstance(step, Delay) else None

    def _result_of(self, item: WorkItem, result: JsonValue) -> JsonValue:
        return self._checks[item.lineage](item, result)


def _the_code_decides(transition: Transition, counts: Counts) -> Verdict:
    return Verdict.CONTINUE


def _new_id(lineage: str, attempt: int) -> str:
    """Return the id of a work item. As in a task, it depends on the run, and differs after a reset."""
    name = f"{workflow.info().workflow_id}/{random_seed()}/{lineage}/{attempt}"
    return str(uuid5(_IDS, name))


def _never() -> NoReturn:
    raise TaskMisused("adopted activities do not continue a workflow as new")
