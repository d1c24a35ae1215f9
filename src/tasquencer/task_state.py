"""The decisions of a task, as a state machine without clock, random or I/O.

`TaskState` holds a task's work items and answers every event (a lineage begins, a work item starts,
ends) with transitions: what to record, whether a retry follows and when, and what the policy says.
Whoever drives it supplies ids, times and random numbers, hands `take_entries` to the ledger, and
does the waiting and the calling.

Order of events at each transition: the transition itself, then the hook (which may ask for the next
attempt), then the policy, then the teardown of what is still open if the verdict ends the task. The
teardown calls neither hook nor policy (Tasquencer's calls the hook; see docs/semantics.md).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue

from tasquencer.entries import DomainRecord, LedgerEntry
from tasquencer.errors import IllegalTransition, TaskMisused, TooManyWorkItems, UnknownWorkItem
from tasquencer.failure import Failure
from tasquencer.policy import Counts, TaskPolicy, Verdict, until_exhausted
from tasquencer.retry import Delay, GiveUp, RetryRecipe
from tasquencer.wording import attempt_label, duration, moment, one_line
from tasquencer.work_item import LEGAL_TRANSITIONS, DelayReason, Transition, WorkItem, WorkItemState

__all__ = [
    "MAIN_LINEAGE",
    "TASK_ACTOR",
    "CarriedLineage",
    "CarriedTask",
    "NextAttempt",
    "RecordOf",
    "StateChange",
    "StateChangeHook",
    "TaskFailure",
    "TaskState",
    "retry_by_recipe",
]

MAIN_LINEAGE = "main"
"""The lineage of a plain task."""

TASK_ACTOR = "task"
"""The actor of a transition that no person or program asked for."""

_CARRIED_MESSAGE_LENGTH = 50
"""Characters of a failure's message that travel along when a task continues as new."""

_CARRIED_RESULTS_BYTES = 300_000
"""Bytes of results that travel along then; of one that does not fit, the ledger has the only copy."""


@dataclass(frozen=True)
class StateChange:
    """What a hook learns about a transition.

    Attributes:
        work_item: The work item after the transition, its payload included.
        transition: What changed, when, by whom.
        recipe: The task's recipe.
        jitter: A random number in [0, 1) if the work item failed, else 0.
    """

    work_item: WorkItem
    transition: Transition
    recipe: RetryRecipe
    jitter: float


@dataclass(frozen=True)
class NextAttempt:
    """A hook's wish: one more work item in the lineage, with this payload, after this delay."""

    payload: JsonValue
    delay: Delay


StateChangeHook = Callable[[StateChange], NextAttempt | None]
"""Called after each transition. Pure: no clock, no random, no I/O. None: nothing to add."""

RecordOf = Callable[[WorkItem, RetryRecipe], DomainRecord | None]
"""The domain record of a work item in its present state; None: it has none. Pure."""


def retry_by_recipe(change: StateChange) -> NextAttempt | None:
    """The default hook: a failed work item is followed by another one as the recipe says."""
    item = change.work_item
    if change.transition.next_state is not WorkItemState.FAILED or item.failure is None:
        return None
    decision = change.recipe.after_failure(item.attempt, item.failure, change.jitter)
    return NextAttempt(item.payload, decision) if isinstance(decision, Delay) else None


@dataclass(frozen=True)
class TaskFailure:
    """How a task that did not complete ends: the type and message of its error, the last failure."""

    type: str
    message: str
    failure: Failure | None


class CarriedLineage(BaseModel):
    """A lineage of a task that continues as new; the payload is that of its first work item."""

    model_config = ConfigDict(frozen=True)

    payload: JsonValue = None
    recipe: RetryRecipe
    deadline: AwareDatetime | None = None


class CarriedTask(BaseModel):
    """What a task takes along when it continues as new: enough to go on without asking anyone.

    Attributes:
        lineages: By name; those that have ended without their payload.
        work_items: Oldest first, without payloads, and without the results for which there is no room.
        payloads: Of the open work items whose payload is not their lineage's first, by id.
        sequences: How many transitions the open work items have had, less one, by id.
        hurried: Work items whose wait an operator has ended and that only wait for their turn: by id, the
            actor and the reason.
        left_behind: Ids of open work items that a reset has left behind and that are yet to be replaced.
    """

    model_config = ConfigDict(frozen=True)

    lineages: dict[str, CarriedLineage]
    work_items: list[WorkItem]
    payloads: dict[str, JsonValue]
    sequences: dict[str, int]
    hurried: dict[str, tuple[str, str | None]] = {}
    left_behind: set[str] = set()
    deadline: AwareDatetime | None = None
    started_at: AwareDatetime | None = None


@dataclass
class _Lineage:
    recipe: RetryRecipe
    deadline: datetime | None
    first_payload: JsonValue
    begun: bool
    work_item_ids: list[str] = field(default_factory=list)
    too_late: Delay | None = None
    expired: bool = False
    standing: WorkItemState | None = None
    counted: bool = False


class TaskState:
    """The work items of one task and what follows from each event.

    Args:
        recipe: How a lineage retries that brings no recipe of its own.
        policy: Decides after each transition.
        on_work_item_state_changed: The hook; by default it retries by the recipe.
        record_of: Makes the domain record that is written beside each transition.
        deadline: No attempt starts at or after this time, where a lineage brings no deadline of its own.
        started_at: When the task began; only kept and carried along.
        new_id: Gives a new unique id.
        random: Gives a random number in [0, 1).
    """

    def __init__(
        self,
        *,
        task_id: str,
        run_id: str,
        task_type: str,
        recipe: RetryRecipe,
        new_id: Callable[[], str],
        random: Callable[[], float],
        policy: TaskPolicy = until_exhausted,
        on_work_item_state_changed: StateChangeHook = retry_by_recipe,
        record_of: RecordOf | None = None,
        deadline: datetime | None = None,
        started_at: datetime | None = None,
    ) -> None:
        self.task_id = task_id
        self.recipe = recipe
        self.deadline = deadline
        self.started_at = started_at
        self.verdict = Verdict.CONTINUE
        self._run_id = run_id
        self._task_type = task_type
        self._policy = policy
        self._hook = on_work_item_state_changed
        self._record_of = record_of
        self._new_id = new_id
        self._random = random
        self._work_items: dict[str, WorkItem] = {}
        self._sequences: dict[str, int] = {}
        self._lineages: dict[str, _Lineage] = {}
        self._entries: list[LedgerEntry] = []
        self._ended: list[str] = []
        self._states = Counter[WorkItemState]()
        self._standings = Counter[WorkItemState | None]()
        self._decisive: Transition | None = None

    # Reading

    def work_items(self) -> list[WorkItem]:
        """All work items, oldest first."""
        return list(self._work_items.values())

    def work_item(self, work_item_id: str) -> WorkItem:
        """The work item with this id. Raises `UnknownWorkItem`."""
        try:
            return self._work_items[work_item_id]
        except KeyError:
            raise UnknownWorkItem(work_item_id, self.task_id) from None

    def find(self, work_item_id: str) -> WorkItem | None:
        """The work item with this id, if there is one: after a reset another one may have taken its place."""
        return self._work_items.get(work_item_id)

    def open_work_items(self) -> list[WorkItem]:
        """Those that are initialized or started, oldest first."""
        return [item for item in self._work_items.values() if not item.state.is_terminal]

    def latest(self, lineage: str = MAIN_LINEAGE) -> WorkItem:
        """The last work item of a lineage. Raises `TaskMisused` if it was never begun."""
        if lineage not in self._lineages:
            raise TaskMisused(f"lineage {lineage!r} was never begun: call attempts() first")
        return self._work_items[self._lineages[lineage].work_item_ids[-1]]

    def before(self, work_item: WorkItem) -> WorkItem | None:
        """The work item that came before this one in its lineage."""
        ids = self._lineages[work_item.lineage].work_item_ids
        return self._work_items[ids[work_item.attempt - 1]] if work_item.attempt else None

    def recipe_of(self, work_item: WorkItem) -> RetryRecipe:
        """The recipe of the work item's lineage."""
        return self._lineages[work_item.lineage].recipe

    def max_retries(self, work_item: WorkItem) -> int:
        """How many retries the work item's lineage has."""
        return self.recipe_of(work_item).max_retries

    def counts(self) -> Counts:
        """How many work items and lineages stand how."""
        return Counts(
            initialized=self._states[WorkItemState.INITIALIZED],
            started=self._states[WorkItemState.STARTED],
            completed=self._states[WorkItemState.COMPLETED],
            failed=self._states[WorkItemState.FAILED],
            canceled=self._states[WorkItemState.CANCELED],
            open_lineages=self._standings[None],
            completed_lineages=self._standings[WorkItemState.COMPLETED],
            failed_lineages=self._standings[WorkItemState.FAILED],
            canceled_lineages=self._standings[WorkItemState.CANCELED],
        )

    @property
    def left_out_retries(self) -> bool:
        """Whether a retry was left out because of a deadline: decided a second time, it might not be."""
        return any(lineage.too_late is not None for lineage in self._lineages.values())

    @property
    def has_entries(self) -> bool:
        """Whether something is to be recorded."""
        return bool(self._entries)

    def just_ended(self) -> list[str]:
        """Ids of the work items whose end is to be recorded."""
        return list(self._ended)

    def take_entries(self) -> list[LedgerEntry]:
        """What is to be recorded since the last call, in order."""
        entries, self._entries, self._ended = self._entries, [], []
        return entries

    # Events

    def begin(
        self,
        payload: JsonValue,
        *,
        now: datetime,
        lineage: str = MAIN_LINEAGE,
        recipe: RetryRecipe | None = None,
        deadline: datetime | None = None,
    ) -> WorkItem:
        """Begin a lineage with its first work item, or take up one that was carried along.

        Returns the work item that is to be started next; of a carried lineage that is already
        settled, its last one.
        """
        known = self._lineages.get(lineage)
        if self.verdict is Verdict.FAIL:
            raise TaskMisused(f"lineage {lineage!r} cannot begin: the task has failed")
        if known is None:
            known = self._lineages[lineage] = _Lineage(
                recipe or self.recipe, deadline or self.deadline, payload, begun=True
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
        """The work item's call is about to be made; `hurried` by an operator, if its wait was cut short."""
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
        """Give the work item up if it could only start at or after its lineage's deadline; whether it was."""
        item = self.work_item(work_item_id)
        lineage = self._lineages[item.lineage]
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
        """The work item ended with a result."""
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
        """The work item ended with a failure; a retry follows if the hook says so and it `may_retry`."""
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
        """The work item is given up; hook and policy see it and decide."""
        return self._change(work_item_id, WorkItemState.CANCELED, now, actor, reason)

    def replace(self, work_item_id: str, *, now: datetime, reason: str) -> WorkItem:
        """Leave an open work item to an abandoned past, and go on with another one in its place.

        Nothing more is recorded of the old one: it belongs to the run that was abandoned. The new one is the
        same attempt at the same work, with the same plan of its delay.
        """
        old = self.work_item(work_item_id)
        if old.state.is_terminal:
            raise TaskMisused(f"work item {old.id!r} has ended, nothing can take its place")
        del self._work_items[old.id], self._sequences[old.id]
        self._states[old.state] -= 1
        self._entries = [entry for entry in self._entries if entry.work_item.id != old.id]
        fresh: dict[str, Any] = {
            "id": self._new_id(),
            "run_id": self._run_id,
            "state": WorkItemState.INITIALIZED,
            "created_at": now,
            "started_at": None,
            "worker": None,
        }
        item = old.model_copy(update=fresh)
        self._lineages[old.lineage].work_item_ids[-1] = item.id
        self._conclude(self._note(None, item, now, TASK_ACTOR, reason), may_continue=True)
        return item

    def adopt(self, known: LedgerEntry, entries: list[LedgerEntry]) -> list[LedgerEntry]:
        """Take over how a work item ended that was just canceled, for the ledger held its end before.

        Neither hook nor policy is asked: the work item was given up because the task ends.

        Args:
            known: The end that the ledger holds.
            entries: What was to be recorded, the cancellation included.

        Returns:
            The entries, with the known end in the place of the cancellation.
        """
        present = self.work_item(known.work_item.id)
        if present.state is not WorkItemState.CANCELED or not known.work_item.state.is_terminal:
            raise TaskMisused(f"work item {present.id!r} is {present.state}, the ledger's end is not its own")
        fields = ("state", "result", "failure", "started_at", "ended_at", "worker")
        item = present.model_copy(update={name: getattr(known.work_item, name) for name in fields})
        self._keep(item, present.state)
        record = self._record(item)
        told = item.model_copy(update={"payload": None})
        entry = LedgerEntry(transition=known.transition, work_item=told, record=record)
        canceled = (item.id, WorkItemState.CANCELED)
        return [
            entry if (one.work_item.id, one.transition.next_state) == canceled else one for one in entries
        ]

    def close(self, *, now: datetime, reason: str, lineage: str | None = None) -> None:
        """Cancel what is open, of one lineage or of all; neither hook nor policy is asked."""
        for item in self.open_work_items():
            if lineage in (None, item.lineage):
                self._move(item, WorkItemState.CANCELED, now, TASK_ACTOR, reason)

    # The end

    def failure(self) -> TaskFailure:
        """How a task with the verdict `fail` ends."""
        if self.verdict is not Verdict.FAIL or self._decisive is None:
            raise TaskMisused("the task has not failed")
        item = self._culprit(self._decisive)
        lineage = self._lineages[item.lineage]
        recipe, deadline, too_late = lineage.recipe, lineage.deadline, lineage.too_late
        label = attempt_label(item.attempt, recipe.max_retries)
        if item.lineage != MAIN_LINEAGE:
            label = f"{item.lineage}: {label}"
        if lineage.expired:
            before = self.before(item)
            last = before.failure if before is not None else None
            message = f"{label} was given up: {self._decisive.reason}"
            if last is not None:
                message += f"; the try before failed with {last}"
            return TaskFailure(GiveUp.DEADLINE_EXCEEDED, message, last)
        if item.failure is None or item.ended_at is None:
            reason = self._decisive.reason
            return TaskFailure(
                "TaskFailed", f"{label} was {item.state}" + (f": {reason}" if reason else ""), None
            )
        ended = f"{label} failed with {item.failure}"
        if lineage.work_item_ids[-1] != item.id:
            return TaskFailure(
                "TaskFailed", f"{ended} (the task's policy allows no further try)", item.failure
            )
        if too_late is not None and deadline is not None:
            wait = f"{duration(too_late.duration.total_seconds())} ({too_late.reason})"
            start = moment(item.ended_at + too_late.duration)
            times = f"the next try could start at {start}, the deadline is {moment(deadline)}"
            return TaskFailure(
                GiveUp.DEADLINE_EXCEEDED, f"{ended}; after a wait of {wait} {times}", item.failure
            )
        if not recipe.qualifies(item.failure):
            return TaskFailure(
                GiveUp.NOT_RETRYABLE, f"{ended}, which does not qualify for a retry", item.failure
            )
        if item.attempt >= recipe.max_retries:
            spent = "all retries are spent" if item.attempt else "no retries are allowed"
            return TaskFailure(GiveUp.RETRIES_EXHAUSTED, f"{ended}; {spent}", item.failure)
        return TaskFailure("TaskFailed", ended, item.failure)

    def _culprit(self, decisive: Transition) -> WorkItem:
        """The work item that failed the task: the one that just ended badly, else the last that did."""
        bad = (WorkItemState.FAILED, WorkItemState.CANCELED)
        if decisive.next_state not in bad:
            ended = [item for item in self._work_items.values() if item.state in bad and item.ended_at]
            if ended:
                return max(ended, key=lambda item: item.ended_at or decisive.at)
        return self._work_items[decisive.work_item_id]

    # Continuing as new

    def carry(self) -> CarriedTask:
        """What the next run of this task needs to go on."""
        open_items = self.open_work_items()
        return CarriedTask(
            lineages={
                name: CarriedLineage(
                    payload=None if lineage.standing else lineage.first_payload,
                    recipe=lineage.recipe,
                    deadline=lineage.deadline,
                )
                for name, lineage in self._lineages.items()
            },
            work_items=self._lean_work_items(),
            payloads={
                item.id: item.payload
                for item in open_items
                if item.payload != self._lineages[item.lineage].first_payload
            },
            sequences={item.id: self._sequences[item.id] for item in open_items},
            deadline=self.deadline,
            started_at=self.started_at,
        )

    def _lean_work_items(self) -> list[WorkItem]:
        room = _CARRIED_RESULTS_BYTES
        lean = []
        for item in self._work_items.values():
            size = len(json.dumps(item.result).encode())
            lean.append(_lean(item, item.result if size <= room else None))
            room -= size if size <= room else 0
        return lean

    def resume(self, carried: CarriedTask) -> None:
        """Take up what an earlier run carried along. Nothing is recorded again."""
        if self._work_items:
            raise TaskMisused("only a new task can resume")
        self.deadline, self.started_at = carried.deadline, carried.started_at
        for name, lineage in carried.lineages.items():
            self._lineages[name] = _Lineage(lineage.recipe, lineage.deadline, lineage.payload, begun=False)
        for lean in carried.work_items:
            payload = carried.payloads.get(lean.id, carried.lineages[lean.lineage].payload)
            item = lean if lean.state.is_terminal else lean.model_copy(update={"payload": payload})
            self._work_items[item.id] = item
            self._sequences[item.id] = carried.sequences.get(item.id, 0)
            self._states[item.state] += 1
            self._lineages[item.lineage].work_item_ids.append(item.id)
            self._recount(item.lineage)

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
            id=self._new_id(),
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
        self._lineages[lineage].work_item_ids.append(item.id)
        self._conclude(self._note(None, item, now, TASK_ACTOR, reason), may_continue=True)
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
        transition = self._move(self.work_item(work_item_id), state, now, actor, reason, **facts)
        return self._conclude(transition, may_continue=may_continue)

    def _conclude(self, transition: Transition, *, may_continue: bool) -> Verdict:
        """What follows from a transition: the hook's wish, then the policy's verdict."""
        if may_continue:
            item = self._work_items[transition.work_item_id]
            jitter = self._random() if item.state is WorkItemState.FAILED else 0.0
            wish = self._hook(StateChange(item, transition, self.recipe_of(item), jitter))
            if wish is not None:
                self._follow(item, wish, transition.at)
        return self._decide(transition)

    def _move(
        self,
        before: WorkItem,
        state: WorkItemState,
        now: datetime,
        actor: str,
        reason: str | None,
        **facts: object,
    ) -> Transition:
        if state not in LEGAL_TRANSITIONS[before.state]:
            raise IllegalTransition(before.id, before.state, state)
        if state.is_terminal:
            facts["ended_at"] = now
        return self._note(before, before.model_copy(update={"state": state, **facts}), now, actor, reason)

    def _note(
        self, before: WorkItem | None, item: WorkItem, now: datetime, actor: str, reason: str | None
    ) -> Transition:
        sequence = 0 if before is None else self._sequences[item.id] + 1
        transition = Transition(
            work_item_id=item.id,
            sequence=sequence,
            previous_state=None if before is None else before.state,
            next_state=item.state,
            at=now,
            actor=actor,
            reason=reason,
        )
        self._sequences[item.id] = sequence
        self._keep(item, None if before is None else before.state)
        # The ledger has the payload from the first entry; it need not travel again.
        told = item if before is None else item.model_copy(update={"payload": None})
        entry = LedgerEntry(transition=transition, work_item=told, record=self._record(item))
        self._entries.append(entry)
        if item.state.is_terminal:
            self._ended.append(item.id)
        return transition

    def _record(self, item: WorkItem) -> DomainRecord | None:
        return None if self._record_of is None else self._record_of(item, self.recipe_of(item))

    def _keep(self, item: WorkItem, previous_state: WorkItemState | None) -> None:
        self._work_items[item.id] = item
        if previous_state is not None:
            self._states[previous_state] -= 1
        self._states[item.state] += 1
        self._recount(item.lineage)

    def _recount(self, name: str) -> None:
        lineage = self._lineages[name]
        state = self._work_items[lineage.work_item_ids[-1]].state
        standing = state if state.is_terminal else None
        if lineage.counted:
            self._standings[lineage.standing] -= 1
        lineage.standing, lineage.counted = standing, True
        self._standings[standing] += 1

    def _follow(self, item: WorkItem, wish: NextAttempt, now: datetime) -> None:
        lineage = self._lineages[item.lineage]
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
        if self.verdict is Verdict.FAIL:
            return self.verdict
        self.verdict = self._policy(transition, self.counts())
        if self.verdict is Verdict.FAIL:
            self._decisive = transition
        if self.verdict is not Verdict.CONTINUE:
            ended = "failed" if self.verdict is Verdict.FAIL else "completed"
            self.close(now=transition.at, reason=f"the task {ended}")
        return self.verdict


def _lean(item: WorkItem, result: JsonValue) -> WorkItem:
    update: dict[str, object] = {"payload": None, "result": result}
    if item.failure is not None:
        short = one_line(item.failure.message, _CARRIED_MESSAGE_LENGTH)
        update["failure"] = item.failure.model_copy(update={"message": short, "details": {}})
    return item.model_copy(update=update)
