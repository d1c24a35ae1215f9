"""A guard between the SDK and each workflow instance, which controls the order of events for a task's code.

A query must never change a task's decisions. The SDK (temporalio 1.35) breaks this rule in two ways. Both
were seen on a real server, with plain workflows too:

- A workflow task that also carries a query ends before its local activities do. Their results then come in
  one activation with new events, and the resulting commands get an order that no replay repeats
  (`TMPRL1100`). On replay, results can also come in other groups than live. So the guard delivers the results
  of local activities first, one by one. Such workflow tasks are rare, because the guard answers a query only
  after the local activities under way, see `local_activities`.
- A query that reaches a worker before the workflow task advances the run: events that no workflow task
  has delivered yet start local activities, at a time that has passed. The guard refuses such an activation.
  The SDK then fails that query and drops the run from its cache, and the workflow task finds it unchanged.
  A terminated run gets no further workflow task, so it answers with its state before those events.
- The query can even bring the start of a workflow task that another worker has got, and that this worker may
  have lost. Its activation looks like that of the workflow task, and the run would continue from decisions
  that no history has. So before the guard lets the first query after a decision answer, it asks Temporal
  whether the workflow task was completed. If not, it fails the query, so that the SDK drops the run.

Decision 21 has all the rules. The guard acts only on workflows that keep books, so all others run as without
it. SDK flags of the workflow tasks store the behaviours of a run. They cost no event, and a history that was
recorded without a flag replays without it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from temporalio.bridge.proto.workflow_activation import WorkflowActivation, WorkflowActivationJob
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner

from tasquencer.temporal.activations import GUARD
from tasquencer.temporal.behaviour import Behaviour
from tasquencer.temporal.completions import cancels, failed, joined, keeps_books, leave_resolved, nothing
from tasquencer.temporal.held_cancels import HeldCancels
from tasquencer.temporal.held_news import HeldNews, with_refusals
from tasquencer.temporal.jobs import Part, Place, is_answer, is_local_result, is_news, of_kinds, with_jobs
from tasquencer.temporal.local_activities import LocalActivitiesOfRun
from tasquencer.temporal.run_status import Status, is_lost, may_join, status_of

__all__ = ["Guard", "guarded"]

_ASK_AGAIN = "the task is about to process new events: ask again in a moment"
_MOST_CANCELS = 50
"""How often a run that leaves the cache is canceled, at most."""

_OWN_TASK = "legacy_query"
"""Id by which the SDK marks a query that came without a workflow task."""


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
        guard = Guard(
            lambda: status_of(functions, info.workflow_id, info.run_id),
            lambda event_id, began: is_lost(functions, info.workflow_id, info.run_id, event_id, began),
            lambda event_id: may_join(functions, info.workflow_id, info.run_id, event_id),
            LocalActivitiesOfRun(functions, info.run_id),
        )
        externs: dict[str, Callable[..., Any]] = {**det.extern_functions, GUARD: lambda: guard}
        instance = super().create_instance(replace(det, extern_functions=externs))  # type: ignore[safe-super]
        guard.surround(instance)
        return instance


@functools.cache
def _guarded_kind(kind: type[WorkflowRunner]) -> type[WorkflowRunner]:
    return type(f"Guarded{kind.__name__}", (_GuardedRunner, kind), {})


class Guard:
    """Wraps one workflow instance and sees each of its activations.

    Args:
        status: Asks Temporal for the run's status.
        is_lost: Asks whether no worker has completed the workflow task with this start.
        may_join: Asks whether the SDK may join several workflow tasks after this one.
        local_activities: Those that have not ended. None: nobody knows them.

    Attributes:
        began: When the current workflow task began.
        bug: The bug in the task's code that the current activation has met.
        suggests_new_run: Whether Temporal suggested a new run with the last event.
        suggested_new_run: Whether it did when the last write began.
        seed: The run's random seed since its reset. None: it had none.
        hears_event: Whether what the code hears now is more than the result of a local activity.
        parts: How many parts the run has got.
        activations: The same, with queries.
    """

    def __init__(
        self,
        status: Callable[[], Status | None] = lambda: None,
        is_lost: Callable[[int, datetime], bool] = lambda _event_id, _began: False,
        may_join: Callable[[int], bool] = lambda _event_id: True,
        local_activities: LocalActivitiesOfRun | None = None,
    ) -> None:
        self._status = status
        self._is_lost = is_lost
        self._may_join = may_join
        self._local = local_activities or LocalActivitiesOfRun({}, "")
        self.began = datetime.fromtimestamp(0, UTC)
        self.bug: BaseException | None = None
        self.suggests_new_run = False
        self.suggested_new_run = False
        self.seed: int | None = None
        self.hears_event = False
        self.parts = 0
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
        self._length = 0
        self._versioning: Any = None
        self._news = HeldNews()
        self._cancels = HeldCancels()

    def surround(self, instance: WorkflowInstance) -> None:
        """See all activations of this instance."""
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
        if of_kinds(activation.jobs, "remove_from_cache"):
            self._local.forget()
            return self._without_tasks(activation)
        if self._keeps_books and not any(map(is_news, activation.jobs)):
            self._local.wait()
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

    def _without_tasks(self, activation: WorkflowActivation) -> WorkflowActivationCompletion:
        """Let the run leave the cache, and cancel its code again as long as it waits for something new.

        Code that compensates after a cancel may do so. The SDK would cancel it again only two seconds later,
        and a worker whose cache is full may then take no other run.
        """
        for _ in range(_MOST_CANCELS):
            try:
                return self._activate(activation)
            except RuntimeError as error:
                failure = error
        raise failure

    def _without_news(
        self, activation: WorkflowActivation, status: Status | None
    ) -> WorkflowActivationCompletion:
        """Answer an activation that came with a query, and decide nothing."""
        if status is None or not status.is_closed:
            return failed(activation, _ASK_AGAIN)
        return nothing(activation)

    def _refused(self, activation: WorkflowActivation, seen: Place | None) -> list[WorkflowActivationJob]:
        """Return the updates that a replay would not deliver in the same place. See `held_news`."""
        behaviour, updates = Behaviour.NEWS_AFTER_WRITES, of_kinds(activation.jobs, "do_update")
        is_ours = self._decided.get(behaviour, behaviour in self._flags)
        is_reset = of_kinds(activation.jobs, "update_random_seed")  # and brings updates that nobody repeats
        if activation.is_replaying or not updates or not is_ours or is_reset:
            return []
        is_alone = self._is_live or len(updates) == sum(map(is_news, activation.jobs))
        waits = self._news.wait or any(map(is_local_result, activation.jobs))
        # The flags of the first activation are those of an earlier worker.
        joins = waits or (not is_alone and (seen is None or self._may_join(seen.length)))
        return updates if joins else []

    def _activated(
        self, activation: WorkflowActivation, refused: list[WorkflowActivationJob]
    ) -> WorkflowActivationCompletion:
        completions: list[WorkflowActivationCompletion] = []
        resolved = {job.resolve_activity.seq for job in activation.jobs if is_local_result(job)}
        patches = of_kinds(activation.jobs, "notify_has_patch")  # before the first part, whatever that is
        for part in self._parts(activation, [*patches, *refused]):
            self._begin(part, activation)
            ours = [*patches, *self._cancels.without_own(part.jobs)]
            patches = []
            completion = self._activate(with_jobs(activation, ours)) if ours else nothing(activation)
            completions.append(completion)
            if completion.HasField("failed"):
                return completion
            leave_resolved(completion, resolved)
            self._cancels.pass_on(part, completion, holds=self._has_newest)
            self._news.note(part.jobs, completion)
            self._local.note(part.jobs, completion)
        if patches:
            completions.append(self._activate(with_jobs(activation, patches)))
        return self._versioned(functools.reduce(joined, completions) if completions else nothing(activation))

    def _begin(self, part: Part, activation: WorkflowActivation) -> None:
        self.activations += 1
        if not any(map(is_news, part.jobs)):
            return
        self.parts += 1
        self.hears_event = not part.follows
        if self.hears_event:
            self.suggests_new_run = activation.continue_as_new_suggested

    def _versioned(self, completion: WorkflowActivationCompletion) -> WorkflowActivationCompletion:
        """Return the completion with the versioning behaviour that the SDK gives all of its own."""
        if completion.successful.versioning_behavior:
            self._versioning = completion.successful.versioning_behavior
        elif self._versioning is not None and completion.HasField("successful"):
            completion.successful.versioning_behavior = self._versioning
        return completion

    @property
    def _has_newest(self) -> bool:
        return bool(self._decided.get(Behaviour.CANCELS_ON_NEWS))

    def _parts(
        self, activation: WorkflowActivation, without: Sequence[WorkflowActivationJob]
    ) -> Iterator[Part]:
        """Yield the jobs of the activation in the parts in which the instance gets them.

        The behaviours count only if the run's `Task` has decided them before this activation.
        """
        jobs = [job for job in activation.jobs if job not in without]
        start = of_kinds(jobs, "initialize_workflow")
        if start and self._joins_an_update(activation, jobs):
            yield Part.of(start, follows=False)
            jobs = [job for job in jobs if job not in start]
        results = [job for job in jobs if is_local_result(job)]
        others = [job for job in jobs if not is_local_result(job)]
        # What the SDK answers at once comes in the same workflow task.
        follows = activation.history_length == self._length and all(map(is_answer, others))
        if any(map(is_news, jobs)):
            self._length = activation.history_length
        rest = Part.of(others, follows=follows) if others else None
        seeds = of_kinds(others, "update_random_seed")
        if seeds and of_kinds(others, "initialize_workflow"):
            self.seed = seeds[-1].update_random_seed.randomness_seed
        if self._decided.get(Behaviour.NEWS_AFTER_WRITES):
            yield from (Part.of([result], follows=True) for result in results)
            if self._has_newest and seeds:
                # The code must know of a reset before a handler begins something.
                self.seed = seeds[-1].update_random_seed.randomness_seed
                yield Part.of(seeds, follows=False)
                others = [job for job in others if job not in seeds]
                rest = Part.of(others, follows=False) if others else None
            yield from self._news.ready(rest)
        elif results and self._decided.get(Behaviour.RESULTS_ONE_BY_ONE):
            yield from (Part.of([result], follows=True) for result in results)
            if rest is not None:
                yield rest
        elif results and rest is not None and self._keeps_books and self._hands_results_over_first():
            yield Part.of(results, follows=True)
            yield rest
        else:
            yield Part.of(jobs, follows=rest is None or rest.follows)

    def _joins_an_update(self, activation: WorkflowActivation, jobs: Sequence[WorkflowActivationJob]) -> bool:
        """Return whether an update comes with the run's start although another worker has seen the start.

        Only a reset brings such an update, because others are refused. A replay delivers it after the start.
        """
        is_known = Behaviour.NEWS_AFTER_WRITES in self._flags and not activation.is_replaying
        return is_known and bool(of_kinds(jobs, "do_update"))

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
