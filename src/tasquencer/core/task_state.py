"""The decisions of a task, as a state machine without clock, randomness or I/O.

`TaskState` holds a task's work items and answers every event (a lineage begins, a work item starts,
ends) with transitions: what to record, whether a retry follows and when, and what the policy says.
Its driver supplies ids, times and random numbers, writes the entries from `take_entries` to the ledger,
waits and makes the calls.

Order of events at each transition: the transition itself, then the hook (which may ask for the next
attempt), then the policy. If the verdict ends the task, the open work items are canceled last. That calls
neither the hook nor the policy (Tasquencer calls the hook; see docs/concepts/semantics.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from pydantic import JsonValue

from tasquencer.core.carried import RESULTS_BYTES, CarriedGroup, CarriedLineage, CarriedTask, lean_work_items
from tasquencer.core.errors import TaskMisused, TooManyWorkItems
from tasquencer.core.explanation import TaskFailure, culprit, explain
from tasquencer.core.failure import Failure
from tasquencer.core.given_functions import verdict_of, wish_of
from tasquencer.core.groups import Groups
from tasquencer.core.hooks import (
    LineageRules,
    NextAttempt,
    RecordOf,
    StateChange,
    StateChangeHook,
    retry_by_recipe,
)
from tasquencer.core.lineage import MAIN_LINEAGE, Group, Lineage
from tasquencer.core.policy import TaskPolicy, Verdict, until_exhausted
from tasquencer.core.retry import Delay, RetryRecipe
from tasquencer.core.wording import moment
from tasquencer.core.work_item import DelayReason, Transition, WorkItem, WorkItemState

__all__ = ["TASK_ACTOR", "TaskState"]

TASK_ACTOR = "task"
"""The actor of a transition that the task itself decided."""


class TaskState(Groups):
    """The work items of one task and what follows from each event.

    Args:
        recipe: The recipe of lineages that have no recipe of their own.
        policy: Decides after each transition.
        on_work_item_state_changed: The hook; by default it retries by the recipe.
        record_of: Makes the domain record that is written beside each transition.
        rules: By kind, the rules of independent lineages.
        deadline: No attempt starts at or after this time, where a lineage brings no deadline of its own.
        started_at: When the task began; only kept and carried along.
        new_id: Gives the id of a work item, from its lineage and its attempt; unique.
        random: Gives a random number in [0, 1), from the id of the work item that it is for.
    """

    def __init__(
        self,
        *,
        task_id: str,
        run_id: str,
        task_type: str,
        recipe: RetryRecipe,
        new_id: Callable[[str, int], str],
        random: Callable[[str], float],
        policy: TaskPolicy = until_exhausted,
        on_work_item_state_changed: StateChangeHook = retry_by_recipe,
        record_of: RecordOf | None = None,
        rules: Mapping[str, LineageRules] | None = None,
        deadline: datetime | None = None,
        started_at: datetime | None = None,
    ) -> None:
        super().__init__(task_id, record_of, rules)
        self.recipe = recipe
        self.deadline = deadline
        self.started_at = started_at
        self.verdict = Verdict.CONTINUE
        self._run_id = run_id
        self._task_type = task_type
        self._policy = policy
        self._hook = on_work_item_state_changed
        self._new_id = new_id
        self._random = random
        self.results_bytes = RESULTS_BYTES
        self.left_out: set[str] = set()
        self._decisive: Transition | None = None

    # Reading

    def recipe_of(self, work_item: WorkItem) -> RetryRecipe:
        """The recipe of the work item's lineage."""
        return self.lineages[work_item.lineage].recipe

    def max_retries(self, work_item: WorkItem) -> int:
        """Return the number of retries that the work item's lineage allows."""
        return self.recipe_of(work_item).max_retries

    @property
    def left_out_retries(self) -> bool:
        """True if a deadline prevented a retry. Made at another time, the decision might differ."""
        return any(lineage.too_late is not None for lineage in self.lineages.values())

    # Events

    def begin(
        self,
        payload: JsonValue,
        *,
        now: datetime,
        lineage: str = MAIN_LINEAGE,
        recipe: RetryRecipe | None = None,
        deadline: datetime | None = None,
        kind: str | None = None,
        group: str | None = None,
    ) -> WorkItem:
        """Begin a lineage with its first work item, or continue one that was carried along.

        Its `kind` makes it independent, with the rules of this name.

        Returns the work item to start next. If the lineage was carried along and has already ended, returns
        its last work item.
        """
        known = self.lineages.get(lineage)
        if self.verdict is Verdict.FAIL:
            raise TaskMisused(f"lineage {lineage!r} cannot begin: the task has failed")
        if known is None:
            known = self.lineages[lineage] = Lineage(
                recipe or self.recipe, deadline or self.deadline, payload, begun=True, kind=kind, group=group
            )
            return self._initialize(
                lineage, payload, 0, Delay(timedelta(0), DelayReason.FIRST_TRY), now=now, reason=None
            )
        if known.begun:
            raise TaskMisused(f"lineage {lineage!r} was already begun: give each lineage a name of its own")
        known.begun = True
        return self.latest(lineage)

    def start(
        self,
        work_item_id: str,
        *,
        now: datetime,
        actor: str = TASK_ACTOR,
        reason: str | None = None,
        hurried: bool = False,
    ) -> Verdict:
        """Start the work item, just before its call. Pass `hurried` if an operator cut its wait short."""
        facts: dict[str, Any] = {"started_at": now}
        if hurried:
            waited = now - self.work_item(work_item_id).created_at
            facts |= {
                "delay_seconds": max(0.0, waited.total_seconds()),
                "delay_reason": DelayReason.OPERATOR,
                "not_before": now,
            }
        return self._change(work_item_id, WorkItemState.STARTED, now, actor, reason, **facts)

    def expire(self, work_item_id: str, *, now: datetime) -> bool:
        """Cancel the work item if it could not start before its lineage's deadline. Return whether it did."""
        item = self.work_item(work_item_id)
        lineage = self.lineages[item.lineage]
        if lineage.deadline is None or now < lineage.deadline:
            return False
        lineage.expired = True
        reason = f"it could not start before the deadline, {moment(lineage.deadline)}"
        self._change(work_item_id, WorkItemState.CANCELED, now, TASK_ACTOR, reason, may_continue=False)
        return True

    def complete(
        self,
        work_item_id: str,
        result: JsonValue,
        *,
        now: datetime,
        actor: str = TASK_ACTOR,
        reason: str | None = None,
    ) -> Verdict:
        """Complete the work item with a result."""
        return self._change(work_item_id, WorkItemState.COMPLETED, now, actor, reason, result=result)

    def fail(
        self,
        work_item_id: str,
        failure: Failure,
        *,
        now: datetime,
        actor: str = TASK_ACTOR,
        reason: str | None = None,
        worker: str | None = None,
        may_retry: bool = True,
    ) -> Verdict:
        """Fail the work item. A retry follows if the hook asks for it and `may_retry` is true."""
        known = {"worker": worker} if worker else {}
        return self._change(
            work_item_id,
            WorkItemState.FAILED,
            now,
            actor,
            reason,
            may_continue=may_retry,
            failure=failure,
            **known,
        )

    def cancel(self, work_item_id: str, *, now: datetime, reason: str, actor: str = TASK_ACTOR) -> Verdict:
        """Cancel the work item. The hook and the policy then decide."""
        return self._change(work_item_id, WorkItemState.CANCELED, now, actor, reason)

    def replace(self, work_item_id: str, *, now: datetime, reason: str) -> WorkItem:
        """Put a new work item in the place of an open one that an abandoned run created.

        The old one belongs to the abandoned run, so nothing else is recorded about it. The new one is the
        same attempt at the same work, with the same planned delay.
        """
        old = self.work_item(work_item_id)
        if old.state.is_terminal:
            raise TaskMisused(f"work item {old.id!r} has ended, nothing can take its place")
        fresh: dict[str, Any] = {
            "id": self._new_id(old.lineage, old.attempt),
            "run_id": self._run_id,
            "state": WorkItemState.INITIALIZED,
            "created_at": now,
            "started_at": None,
            "worker": None,
        }
        item = old.model_copy(update=fresh)
        transition = self.put_in_place(item, old, actor=TASK_ACTOR, reason=reason)
        self._conclude(transition, may_continue=True)
        return item

    def close(
        self, *, now: datetime, reason: str, lineage: str | None = None, spares_independent: bool = False
    ) -> None:
        """Cancel the open work items of one lineage or of all. Calls neither the hook nor the policy."""
        for item in self.open_work_items():
            group = self.group_of(item.lineage)
            is_of_the_task = self.rules_of(item.lineage) is None or (group is not None and group.counted)
            is_spared = spares_independent and not is_of_the_task
            if lineage in (None, item.lineage) and not is_spared:
                self.move(item, WorkItemState.CANCELED, now, TASK_ACTOR, reason)

    def end_group(self, name: str, group: Group, *, now: datetime) -> Verdict:
        """End a group, unless it has ended: cancel what is open in it, and ask the policy if it counts it.

        Args:
            group: The group with its end: the state, the lineage that ends it, and why it is given up.
        """
        if self.groups[name].state is not None:
            return self.verdict
        ended = self.conclude_group(name, group, now, TASK_ACTOR)
        return self._judge(ended) if group.counted else self.verdict

    # The end

    def failure(self) -> TaskFailure:
        """Return how a task with the verdict `fail` ends."""
        if self.verdict is not Verdict.FAIL or self._decisive is None:
            raise TaskMisused("the task has not failed")
        counted = [item for item in self.work_items() if self.rules_of(item.lineage) is None]
        item = self.work_item(culprit(self._decisive, counted))
        name = self.lineages[item.lineage].group
        if name is not None and (failure := self.groups[name].failure) is not None:
            return TaskFailure("TaskFailed", f"{name}: {failure.message}", failure)
        return explain(item, self.lineages[item.lineage], self._decisive.reason, self.before(item))

    # Continuing as new

    def carry(self) -> CarriedTask:
        """Return the state that the next run of this task needs."""
        open_items = self.open_work_items()
        work_items, left_out = lean_work_items(
            self.work_items(), self.lineages, self.results_bytes, self.groups
        )
        return CarriedTask(
            lineages={name: CarriedLineage.of(lineage) for name, lineage in self.lineages.items()},
            work_items=work_items,
            groups={name: CarriedGroup.of(group) for name, group in self.groups.items()},
            left_out=left_out | self.left_out,
            payloads={
                item.id: item.payload
                for item in open_items
                if item.payload != self.lineages[item.lineage].first_payload
            },
            sequences={item.id: self.sequence(item.id) for item in open_items},
            deadline=self.deadline,
            started_at=self.started_at,
            verdict=self.verdict,
            decisive=self._decisive,
        )

    def resume(self, carried: CarriedTask) -> None:
        """Continue from the state that an earlier run carried along. Nothing is recorded again."""
        if self.work_items():
            raise TaskMisused("only a new task can resume")
        self.deadline, self.started_at = carried.deadline, carried.started_at
        self.verdict, self._decisive = carried.verdict, carried.decisive
        self.left_out = set(carried.left_out)
        for name, lineage in carried.lineages.items():
            self.lineages[name] = lineage.lineage()
        for name, group in carried.groups.items():
            self.put_group(name, group.group())
        for lean in carried.work_items:
            payload = carried.payloads.get(lean.id, carried.lineages[lean.lineage].payload)
            item = lean if lean.state.is_terminal else lean.model_copy(update={"payload": payload})
            self.take_over(item, carried.sequences.get(item.id, 0))

    # The machinery

    def _initialize(
        self,
        lineage: str,
        payload: JsonValue,
        attempt: int,
        delay: Delay,
        *,
        now: datetime,
        reason: str | None,
    ) -> WorkItem:
        item = WorkItem(
            id=self._new_id(lineage, attempt),
            task_id=self.task_id,
            run_id=self._run_id,
            task_type=self._task_type,
            lineage=lineage,
            attempt=attempt,
            state=WorkItemState.INITIALIZED,
            payload=payload,
            delay_seconds=delay.duration.total_seconds(),
            delay_reason=delay.reason,
            not_before=now + delay.duration,
            created_at=now,
        )
        self._conclude(self.add(item, actor=TASK_ACTOR, reason=reason), may_continue=True)
        return item

    def _change(
        self,
        work_item_id: str,
        state: WorkItemState,
        now: datetime,
        actor: str,
        reason: str | None,
        *,
        may_continue: bool = True,
        **facts: object,
    ) -> Verdict:
        transition = self.move(self.work_item(work_item_id), state, now, actor, reason, **facts)
        return self._conclude(transition, may_continue=may_continue)

    def _conclude(self, transition: Transition, *, may_continue: bool) -> Verdict:
        """Apply a transition's consequences: the hook's request, then the policy's verdict."""
        if may_continue:
            item = self.work_item(transition.work_item_id)
            jitter = self._random(item.id) if item.state is WorkItemState.FAILED else 0.0
            rules = self.rules_of(item.lineage)
            hook = self._hook if rules is None else rules.on_work_item_state_changed
            wish = wish_of(hook, StateChange(item, transition, self.recipe_of(item), jitter))
            if wish is not None:
                self._follow(item, wish, transition.at)
        return self._decide(transition)

    def _follow(self, item: WorkItem, wish: NextAttempt, now: datetime) -> None:
        lineage = self.lineages[item.lineage]
        if not item.state.is_terminal:
            raise TaskMisused(f"a hook asked for another attempt while {item.id!r} is still {item.state}")
        if item.attempt >= lineage.recipe.max_retries:
            raise TooManyWorkItems(item.lineage, lineage.recipe.max_retries)
        if lineage.deadline is not None and now + wish.delay.duration >= lineage.deadline:
            lineage.too_late = wish.delay
            return
        why = item.failure.kind if item.failure is not None else item.state.value
        self._initialize(
            item.lineage, wish.payload, item.attempt + 1, wish.delay, now=now, reason=f"after {why}"
        )

    def _decide(self, transition: Transition) -> Verdict:
        item = self.work_item(transition.work_item_id)
        return self.verdict if self.rules_of(item.lineage) is not None else self._judge(transition)

    def _judge(self, transition: Transition) -> Verdict:
        if self.verdict is Verdict.FAIL:
            return self.verdict
        self.verdict = verdict_of(self._policy, transition, self.counts())
        if self.verdict is Verdict.FAIL:
            self._decisive = transition
        if self.verdict is not Verdict.CONTINUE:
            has_failed = self.verdict is Verdict.FAIL
            reason = "the task failed" if has_failed else "the task completed"
            self.cancel_groups()
            self.close(now=transition.at, reason=reason, spares_independent=not has_failed)
        return self.verdict
