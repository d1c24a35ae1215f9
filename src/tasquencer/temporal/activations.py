"""A guard between the SDK and each workflow instance, which controls the order of events for a task's code.

A query must never change a task's decisions. The SDK (temporalio 1.35) breaks this rule in two ways. Both
were seen on a real server, with plain workflows too:

- A workflow task that also carries a query ends before its local activities do. Their results then come in
  one activation with new events, and the resulting commands get an order that no replay repeats
  (`TMPRL1100`). On replay, results can also come in other groups than live. So the guard delivers the results
  of local activities first, one by one.
- A query that reaches a worker before the workflow task advances the run: events that no workflow task
  has delivered yet start local activities, at a time that has passed. The guard refuses such an activation.
  The SDK then fails that query and drops the run from its cache, and the workflow task finds it unchanged.
  A terminated run gets no further workflow task, so it answers with its state before those events.
- The query can even bring the start of a workflow task that another worker has got, and that this worker may
  have lost. Its activation looks like that of the workflow task, and the run would continue from decisions
  that no history has. So before the guard lets the first query after a decision answer, it asks Temporal
  whether the workflow task was completed. If not, it fails the query, so that the SDK drops the run.

The guard acts only on workflows that keep books, so all others run as without it. SDK flags of the workflow
tasks store the behaviours of a run. They cost no event, and a history that was recorded without a flag
replays without it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from temporalio import workflow
from temporalio.bridge.proto.workflow_activation import WorkflowActivation, WorkflowActivationJob
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner

from tasquencer.temporal.behaviour import GUARDS_OWN, Behaviour
from tasquencer.temporal.completions import cancels, failed, joined, keeps_books, nothing
from tasquencer.temporal.held_cancels import HeldCancels
from tasquencer.temporal.held_news import HeldNews, with_refusals
from tasquencer.temporal.jobs import Place, is_local_result, is_news, updates_in, with_jobs
from tasquencer.temporal.run_status import Status, is_lost, may_join, status_of

__all__ = [
    "activation_number",
    "behaves",
    "decide_early",
    "follows_local_result",
    "guarded",
    "is_new_run_due",
    "is_new_run_suggested",
    "length_at_news",
    "note_suggestion",
    "report_bug",
    "workflow_task_began",
]

_EXTERN = "tasquencer_activations"
_ASK_AGAIN = "the task is about to process new events: ask again in a moment"
_OWN_TASK = "legacy_query"
"""Id by which the SDK marks a query that came without a workflow task."""


def behaves(behaviour: Behaviour) -> bool:
    """Return whether the current run has the behaviour.

    The first call decides for the rest of the run: yes for a new decision, and in a replay as in its history.
    False on a worker whose runner has no guard.
    """
    guard = _current()
    return guard is not None and guard.decides(behaviour)


def decide_early() -> None:
    """Decide about the guard's own behaviours, so that the first workflow task has their flags."""
    for early in GUARDS_OWN:
        behaves(early)


def workflow_task_began() -> datetime:
    """Return when the current workflow task began, by Temporal's clock (aware UTC)."""
    guard = _current()
    return workflow.now() if guard is None else guard.began


def activation_number() -> int | None:
    """Return a number that changes whenever the run gets news: an event, or the result of a local activity.

    It counts for one worker only. Compare it, and never store it. None: the worker's runner has no guard.
    """
    guard = _current()
    return None if guard is None else guard.activations


def follows_local_result() -> bool:
    """Return whether the code runs because of the result of a local activity alone, such as a write."""
    guard = _current()
    return guard is not None and guard.hears_local_result


def length_at_news() -> int:
    """Return how long the history was when the run last had an event, live and on replay."""
    guard = _current()
    return workflow.info().get_current_history_length() if guard is None else guard.length_at_news


def is_new_run_due() -> bool:
    """Return whether the run continues as new: whether Temporal suggested it at the last write.

    The SDK's own answer can differ on replay. If a local activity continues into the next workflow task, its
    result comes with that task's suggestion on replay, but live with the previous one.
    """
    guard = _current()
    if guard is not None and behaves(Behaviour.NEW_RUN_BY_RECORD):
        return guard.suggested_new_run
    return is_new_run_suggested()


def is_new_run_suggested() -> bool:
    """Return whether Temporal suggests a new run now. A replay may see the suggestion earlier.

    It does if a query has ended a workflow task early: a replay joins that workflow task with the next one.
    """
    guard = _current()
    if guard is None or not behaves(Behaviour.NEW_RUN_ON_NEWS):
        return workflow.info().is_continue_as_new_suggested()
    return guard.suggests_new_run


def note_suggestion(*, suggested: bool) -> None:
    """Note whether Temporal suggested a new run when the last write began."""
    guard = _current()
    if guard is not None:
        guard.suggested_new_run = suggested


def report_bug(error: BaseException) -> None:
    """Fail the current workflow task because of a bug in the task's code, even if other code catches the
    error.

    Otherwise a `TaskGroup` would first cancel its other tasks, and those cancellations would be in the
    history when the bug is fixed.
    """
    guard = _current()
    runtime = workflow._Runtime.current()  # the SDK has no public name for this question
    if guard is not None and not runtime.workflow_is_failure_exception(error):
        guard.bug = error


def guarded(runner: WorkflowRunner) -> WorkflowRunner:
    """Return a runner of the same type whose workflow instances have the guard.

    It stays an instance of its class, and `dataclasses.replace` keeps the guard, so that other plugins can
    still configure it.
    """
    if isinstance(runner, _GuardedRunner):
        return runner
    same = copy.copy(runner)
    object.__setattr__(same, "__class__", _guarded_kind(type(runner)))
    return same


class _GuardedRunner(WorkflowRunner):
    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        info, functions = det.info, det.extern_functions
        guard = _Guard(
            lambda: status_of(functions, info.workflow_id, info.run_id),
            lambda event_id, began: is_lost(functions, info.workflow_id, info.run_id, event_id, began),
            lambda event_id: may_join(functions, info.workflow_id, info.run_id, event_id),
        )
        externs: dict[str, Callable[..., Any]] = {**det.extern_functions, _EXTERN: lambda: guard}
        instance = super().create_instance(replace(det, extern_functions=externs))  # type: ignore[safe-super]
        guard.surround(instance)
        return instance


@functools.cache
def _guarded_kind(kind: type[WorkflowRunner]) -> type[WorkflowRunner]:
    return type(f"Guarded{kind.__name__}", (_GuardedRunner, kind), {})


def _current() -> _Guard | None:
    find = workflow.extern_functions().get(_EXTERN)
    return None if find is None else find()


class _Guard:
    """Wraps one workflow instance and sees each of its activations."""

    def __init__(
        self,
        status: Callable[[], Status | None] = lambda: None,
        is_lost: Callable[[int, datetime], bool] = lambda _event_id, _began: False,
        may_join: Callable[[int], bool] = lambda _event_id: True,
    ) -> None:
        self._status = status
        self._is_lost = is_lost
        self._may_join = may_join
        self.began = datetime.fromtimestamp(0, UTC)
        self.bug: BaseException | None = None
        self.suggests_new_run = False
        self.suggested_new_run = False
        self.hears_local_result = False
        self.length_at_news = 0
        self.activations = 0
        self._activate: Callable[[WorkflowActivation], WorkflowActivationCompletion]
        self._keeps_books = False
        self._seen: Place | None = None
        self._decided_at: int | None = None
        self._decided: dict[Behaviour, bool] = {}
        self._used: set[Behaviour] = set()
        self._flags: frozenset[int] = frozenset()
        self._is_replaying = False
        self._has_caught_up = False
        self._has_canceled = False
        self._is_live = False
        self._news = HeldNews()
        self._cancels = HeldCancels()

    def surround(self, instance: WorkflowInstance) -> None:
        self._activate = instance.activate
        instance.activate = self.activate  # type: ignore[method-assign, assignment]

    def decides(self, behaviour: Behaviour) -> bool:
        """Return whether the run has the behaviour, and remember a new decision in the history."""
        self._keeps_books = True  # only tasks ask
        if behaviour not in self._decided:
            self._decided[behaviour] = not self._is_replaying or behaviour in self._flags
            if not self._is_replaying:
                self._used.add(behaviour)
        return self._decided[behaviour]

    def activate(self, activation: WorkflowActivation) -> WorkflowActivationCompletion:
        """Activate the instance in the right order, and only with events that a task may depend on."""
        self._flags = frozenset(activation.available_internal_flags)
        self._is_replaying = activation.is_replaying
        seen, can_be_hidden = self._seen, not self._has_caught_up or self._has_canceled

        status = functools.cache(self._status)  # two questions would take too long for the SDK

        @functools.cache
        def born_of_a_query() -> bool:
            return self._is_born_of_a_query(activation, seen, status, can_be_hidden=can_be_hidden)

        if self._keeps_books and self._follows_lost_decisions(activation):
            return failed(activation, _ASK_AGAIN)
        if self._keeps_books and born_of_a_query():
            return self._without_news(activation, status())
        self._note(activation)
        refused = self._refused(activation, seen)
        completion = with_refusals(self._activated(activation, refused), refused)
        self._is_live = self._is_live or not activation.is_replaying
        if self.bug is not None:
            return failed(activation, f"{type(self.bug).__name__}: {self.bug}")
        self._keeps_books = self._keeps_books or keeps_books(completion)
        if self._keeps_books and born_of_a_query():
            return self._without_news(activation, status())
        self._has_canceled = self._has_canceled or cancels(completion)
        if self._used and completion.HasField("successful"):
            completion.successful.used_internal_flags.extend(sorted(self._used))
            self._used.clear()
        return completion

    def _without_news(
        self, activation: WorkflowActivation, status: Status | None
    ) -> WorkflowActivationCompletion:
        """Answer an activation that came with a query, and decide nothing."""
        if status is None or not status.is_closed:
            return failed(activation, _ASK_AGAIN)
        return nothing(activation)

    def _refused(self, activation: WorkflowActivation, seen: Place | None) -> list[WorkflowActivationJob]:
        """Return the updates that a replay would not deliver in the same place. See `held_news`."""
        behaviour, updates = Behaviour.NEWS_AFTER_WRITES, updates_in(activation)
        is_ours = self._decided.get(behaviour, behaviour in self._flags)
        if activation.is_replaying or not updates or not is_ours:
            return []
        is_alone = self._is_live or len(updates) == sum(map(is_news, activation.jobs))
        # The flags of the first activation are those of an earlier worker.
        joins = self._news.wait or (not is_alone and (seen is None or self._may_join(seen.length)))
        return updates if joins else []

    def _activated(
        self, activation: WorkflowActivation, refused: list[WorkflowActivationJob]
    ) -> WorkflowActivationCompletion:
        completions: list[WorkflowActivationCompletion] = []
        if refused:
            kept = [job for job in activation.jobs if job not in refused]
            activation = with_jobs(activation, kept)
        for jobs in self._parts(activation):
            self.activations += 1
            self.hears_local_result = all(map(is_local_result, jobs))
            if not self.hears_local_result:
                self.length_at_news = activation.history_length
            self._look_for_suggestion(activation, jobs)
            ours = self._cancels.without_own(jobs)
            completion = self._activate(with_jobs(activation, ours)) if ours else nothing(activation)
            completions.append(completion)
            if completion.HasField("failed"):
                return completion
            self._cancels.pass_on(jobs, completion, holds=bool(self._decided.get(Behaviour.CANCELS_ON_NEWS)))
            self._news.note(jobs, completion)
        return functools.reduce(joined, completions) if completions else nothing(activation)

    def _parts(self, activation: WorkflowActivation) -> Iterator[list[WorkflowActivationJob]]:
        """Yield the jobs of the activation in the groups in which the instance gets them.

        The behaviours count only if the run's `Task` has decided them before this activation.
        """
        results = [job for job in activation.jobs if is_local_result(job)]
        others = [job for job in activation.jobs if not is_local_result(job)]
        if self._decided.get(Behaviour.NEWS_AFTER_WRITES):
            yield from ([result] for result in results)
            if ready := self._news.hold(others):
                yield ready
        elif results and self._decided.get(Behaviour.RESULTS_ONE_BY_ONE):
            yield from ([result] for result in results)
            if others:
                yield others
        elif results and others and self._keeps_books and self._hands_results_over_first():
            yield results
            yield others
        else:
            yield list(activation.jobs)

    def _look_for_suggestion(self, activation: WorkflowActivation, jobs: list[WorkflowActivationJob]) -> None:
        if any(not is_local_result(job) and not job.HasField("query_workflow") for job in jobs):
            self.suggests_new_run = activation.continue_as_new_suggested

    def _hands_results_over_first(self) -> bool:
        if self._is_replaying:
            return Behaviour.RESULTS_FIRST in self._flags
        self._used.add(Behaviour.RESULTS_FIRST)
        return True

    def _note(self, activation: WorkflowActivation) -> None:
        place = Place.of(activation)
        if self._seen is None or place.length != self._seen.length:
            self.began = activation.timestamp.ToDatetime(UTC)
        self._seen = place
        # The SDK says of each activation with queries only that it replays. Its place is up to date.
        self._has_caught_up = not activation.is_replaying or not any(map(is_news, activation.jobs))
        if not activation.is_replaying:
            self._decided_at = place.length

    def _follows_lost_decisions(self, activation: WorkflowActivation) -> bool:
        """Return whether the query follows decisions that no workflow task has reported to Temporal."""
        is_query = any(job.query_workflow.query_id == _OWN_TASK for job in activation.jobs)
        if not is_query or self._decided_at is None:
            return False
        decided_at, self._decided_at = self._decided_at, None
        return activation.history_length == decided_at and self._is_lost(decided_at, self.began)

    def _is_born_of_a_query(
        self,
        activation: WorkflowActivation,
        seen: Place | None,
        find_status: Callable[[], Status | None],
        *,
        can_be_hidden: bool,
    ) -> bool:
        """Return whether the events of the activation came with a query.

        Only a workflow task changes the time and the size. But a workflow task that delivers nothing changes
        them unseen: the next activation shows its time and size, and may still have come with a query. Such
        workflow tasks are at the end of a replay, and after the run has canceled an activity or a child. A
        workflow task that a worker has lost changes the size alone. In these cases only Temporal knows
        whether a workflow task is under way.
        """
        if activation.is_replaying or seen is None or not any(map(is_news, activation.jobs)):
            return False
        place = Place.of(activation)
        if place.length <= seen.length:
            return False
        if (place.size, place.time) == (seen.size, seen.time):
            return True
        status = find_status() if can_be_hidden or place.time == seen.time else None
        return status is not None and status.is_past(activation.timestamp.ToDatetime(UTC))
