"""Finds problems in the accounts of one task.

`tests.stories` has the checks that hold after any fault. The checks here compare the accounts with each
other, and know the effects that a fault excuses. All are pure functions from an account to sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from tasquencer.ai.timeouts import CALL_MARGIN
from tasquencer.core.failure import FailureKind
from tasquencer.core.task_state import TASK_ACTOR
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.temporal.reconciling import RECONCILER
from tests.chaos.accounts import Account, BatchAccount
from tests.chaos.events import BUSY, DEATHS, PAUSES, Event
from tests.chaos.histories import History
from tests.stories import action_checks, ending_checks, lineage_checks, record_checks
from tests.stories.story import CANCEL_TASK, Call, Reply, Story, label_of, text_of

__all__ = ["CHECKS", "batch_violations", "each_end_has_its_cause", "violations"]

Check = Callable[[Account], Iterator[str]]

LAG = timedelta(seconds=2)
"""What the clocks of processes and a busy machine may put between a cause and what follows."""

_ALWAYS: Sequence[Callable[[Story], Iterator[str]]] = (
    record_checks.paths_are_legal,
    record_checks.what_ended_never_changed,
    record_checks.the_ai_jobs_agree,
    lineage_checks.nothing_starts_early,
    lineage_checks.each_lineage_is_bounded,
    lineage_checks.nothing_starts_after_the_deadline,
    lineage_checks.no_retry_is_left_out,
    ending_checks.the_policy_decides,
    ending_checks.the_end_says_what_happened,
)
"""What holds in every story."""

SILENCERS = (*DEATHS, *PAUSES, BUSY, "kill temporal", "worker ended by itself")
"""Events after which a worker's heartbeats may be missing, as after a disturbed connection to Temporal."""

DEADLOCK = timedelta(seconds=2)
"""A workflow that decides for longer counts as deadlocked: the SDK fails its workflow task."""

_CONNECTION = ("cut", "refuse", "stall")


def the_stories_are_as_ever(account: Account) -> Iterator[str]:
    """See `_ALWAYS`. The policy of a task that was cut off had no say in its end."""
    for check in _ALWAYS:
        if account.is_cut_off and check is ending_checks.the_policy_decides:
            continue
        try:
            yield from check(account.story)
        except (KeyError, IndexError, TypeError) as error:  # the story is too contradictory for it
            yield f"{check.__name__} stumbles: {error!r}"


def the_task_ended(account: Account) -> Iterator[str]:
    """No task is lost."""
    history = account.history
    if account.outcome is None or history.state == "open":
        yield "lost: the task has not ended, long after the faults"
        return
    if history.state == "terminated" and account.terminated_because is None:
        yield "lost: the task was terminated, nobody asked for that"
    if history.state == "timed out":
        yield from _timed_out(account)
    state, result, kind, message = account.outcome
    if (state, dict(result)) != (history.state, dict(history.result)):
        yield f"the client got {state} {result}, the history says {history.state} {history.result}"
    if state == "failed" and (kind, message) != (history.error_type, history.message):
        yield f"the client got {kind} {message}, the history says {history.error_type} {history.message}"


def _timed_out(account: Account) -> Iterator[str]:
    history, limit = account.history, account.story.run_timeout_seconds
    if limit is None or history.run_started_at is None or history.closed_at is None:
        yield "lost: the task was timed out, nobody asked for that"
    elif history.closed_at - history.run_started_at < timedelta(seconds=limit):
        yield "lost: the task was timed out before its time"
    elif not account.events and not account.story.lost_at:
        yield "lost: the task was timed out, though nothing kept it from ending before"


def nothing_is_open(account: Account) -> Iterator[str]:
    """I6: a task settles its work items itself, or the reconciler does where it had no chance to."""
    history = account.history
    if history.state == "open":
        return
    for item in account.story.items:
        name = f"{label_of(item)} ({item.id})"
        if not item.state.is_terminal:
            yield f"I6: the task is closed, {name} is {item.state}"
        elif account.story.ended_by(item) != RECONCILER:
            continue
        elif not account.is_cut_off:
            yield f"I6: the task left {name} open, the reconciler had to settle it"
        else:
            reason = account.story.transitions[item.id][-1].reason
            if reason != (wanted := _why_settled(account)):
                yield f"I6: {name} was settled because of {reason!r}, expected {wanted!r}"
            if item.ended_at and history.closed_at and item.ended_at < history.closed_at:
                yield f"I6: {name} was settled before its task was closed"


def _why_settled(account: Account) -> str:
    if account.history.state == "terminated":
        return f"the task was terminated: {account.terminated_because}"
    return "the task ran into Temporal's timeout"


def each_request_was_recorded_first(account: Account) -> Iterator[str]:
    """I1 and I2."""
    items = {item.id: item for item in account.story.items}
    scheduled = Counter(key for key, _ in account.history.scheduled)
    for key, number in Counter(call.key for call in account.story.calls).items():
        if key not in items:
            yield f"I1: request {key} belongs to no work item"
        elif key not in scheduled:
            yield f"I1: the history knows nothing of the request of {label_of(items[key])}"
        if number > 1:
            yield f"I2: {number} requests with the key {key}"
    for call in account.story.calls:
        item = items.get(call.key or "")
        if item is None:
            continue
        if call.held is not None and "started" not in call.held:
            yield f"I1: {label_of(item)} was {'/'.join(call.held) or 'unknown'} when its request arrived"
        if item.started_at is None or call.at < item.started_at:
            yield f"I1: the request of {label_of(item)} arrived before its start"
    for key, times in scheduled.items():
        if times > 1:
            yield f"I2: the history has {times} calls of {key}"
        if key not in items:
            yield f"I1: the history has a call of {key}, the ledger does not know it"
        elif items[key].started_at is None:
            yield f"I1: the history has a call of {label_of(items[key])}, the ledger says it never started"
    if account.history.tries > 1:
        yield f"I2: Temporal made a call {account.history.tries} times"


def no_more_calls_at_once_than_allowed(account: Account) -> Iterator[str]:
    """The concurrency of a fan-out bounds its calls.

    Not what the ledger has as started: a start that a dying worker recorded stays there until its turn comes.
    """
    ends = {item.id: item.ended_at for item in account.story.items}
    for key, at in account.history.scheduled:
        others = [
            other
            for other, begin in account.history.scheduled
            if begin <= at and (end := ends.get(other)) is not None and end > at
        ]
        if account.story.concurrency is not None and len(others) > account.story.concurrency:
            yield f"{len(others)} calls at once when {key} was made, {account.story.concurrency} are allowed"


def the_workflow_never_stumbles(account: Account) -> Iterator[str]:
    """I8 and I10: no workflow task fails, and what is in the history can be replayed."""
    yield from _stumbles(account.history, account.events)
    never = ("closed before WorkflowTaskStarted", "the task is about to process new events")
    undecided = account.is_cut_off and any(words in account.query_error for words in never)
    if account.query_error and not undecided:
        yield f"I10: the closed task does not answer its query: {account.query_error}"


def _stumbles(history: History, events: Iterable[Event]) -> Iterator[str]:
    """Workflow tasks that failed, except those of a stopped worker or a busy machine, whose decision looked
    deadlocked: they are decided again."""
    excuses = [event for event in events if event.kind in (*PAUSES, BUSY)]
    for trouble in history.troubles:
        began_at, failed_at = trouble.began_at - LAG, trouble.failed_at
        is_excused = trouble.is_deadlock and any(
            event.overlaps(began_at, failed_at)
            and (event.kind == BUSY or event.lasts(DEADLOCK, until=failed_at))
            for event in excuses
        )
        if not is_excused:
            yield f"I8: a workflow task failed: {trouble.message}"


def the_query_agrees(account: Account) -> Iterator[str]:
    """The task's own answer at its end agrees with the ledger, except for work items that it forgot.

    A task that was cut off reports the decision that it would have made next.
    """
    if account.listed is None or account.history.state == "open" or account.is_cut_off:
        return
    told = {str(row["id"]): row for row in account.listed}
    forgotten = account.story.forgotten
    for item in account.story.items:
        row = told.pop(item.id, None)
        if row is None:
            if item.id not in forgotten:
                yield f"the task does not know {label_of(item)} ({item.id}) of the ledger"
            continue
        for name in ("state", "attempt", "lineage", "delay_reason", "failure_kind"):
            mine = item.failure.kind if name == "failure_kind" and item.failure else getattr(item, name, None)
            if mine != row[name]:
                yield f"{label_of(item)}: {name} is {mine!r} in the ledger, {row[name]!r} in the task"
    for stranger in told:
        yield f"the task knows {stranger}, the ledger does not"


def each_end_has_its_cause(account: Account) -> Iterator[str]:
    """A crash uses up no attempt that was not made: each end of a work item has a cause."""
    story = account.story
    for item in story.items:
        if item.started_at is None or item.ended_at is None or item.state is WorkItemState.CANCELED:
            continue
        if story.ended_by(item) != TASK_ACTOR:
            continue
        call = story.call_of(item)
        if item.state is WorkItemState.COMPLETED:
            if call is None or call.given.kind is not None or text_of(item) != call.given.text:
                given = None if call is None else call.given
                yield f"{label_of(item)} completed with {text_of(item)!r}, the provider's answer is {given}"
        elif item.failure is not None:
            yield from _failure(account, item, item.failure.kind, call)


def _failure(account: Account, item: WorkItem, kind: str, call: Call | None) -> Iterator[str]:
    begin, end = item.started_at, item.ended_at
    if begin is None or end is None:
        return
    name = f"{label_of(item)} ({item.id}) failed with {kind}"
    given = None if call is None else call.given
    silenced = _silenced(account, begin, end)
    disturbed = [
        event for event in account.events_between(_CONNECTION, begin - LAG, end) if event.peer == "provider"
    ]
    if kind == FailureKind.WORKER_LOST:
        if not silenced:
            yield f"{name}, no worker was killed, stopped or cut off"
    elif kind == FailureKind.WORKER_SHUTDOWN:
        if not account.events_between(("stop worker",), begin - LAG, end):
            yield f"{name}, no worker was stopped"
    elif kind == FailureKind.TIMED_OUT:
        whole = timedelta(seconds=account.story.request.attempt_timeout_seconds)
        # The write of the start may wait for the ledger, and what is left until the deadline is less then.
        scheduled = max(begin, dict(account.history.scheduled).get(item.id, begin))
        limit = _time_for_a_call(account, whole, scheduled)
        if end - scheduled < limit:
            yield f"{name} before its time"
        elif limit == whole and not (given is not None and given.endless) and not silenced and not disturbed:
            yield f"{name}, the provider's answer is {given}, and nothing was disturbed"
    elif given is None or given.kind != kind:
        # A connection that breaks in the middle of an answer leaves half of one.
        broken = (FailureKind.UNREACHABLE, FailureKind.PROVIDER_ERROR)
        if kind not in broken or not (disturbed or silenced):
            yield f"{name}, the provider's answer is {given}"
    elif item.failure is not None and item.failure.retry_after_seconds != given.retry_after:
        asked = item.failure.retry_after_seconds
        yield f"{name} and a Retry-After of {asked} s, the provider asked for {given.retry_after} s"


def _time_for_a_call(account: Account, whole: timedelta, begin: datetime) -> timedelta:
    limits, run_timeout = [whole], account.story.run_timeout_seconds
    if account.story.deadline is not None:
        limits.append(max(account.story.deadline - begin, timedelta(seconds=1)) - LAG / 4)
    if run_timeout is not None:  # Temporal lets no activity have a longer timeout, its margin included
        limits.append(timedelta(seconds=run_timeout) - CALL_MARGIN)
    return min(limits)


def _silenced(account: Account, begin: datetime, end: datetime) -> bool:
    if account.events_between(SILENCERS, begin - LAG, end):
        return True
    cuts = account.events_between(_CONNECTION, begin - LAG, end)
    return any(event.peer == "temporal" for event in cuts)


def a_cancel_is_obeyed(account: Account) -> Iterator[str]:
    """A task ends canceled if and only if it was canceled before its end."""
    history = account.history
    if history.state == "canceled" and history.cancel_at is None:
        yield "I7: the task ended canceled, nobody canceled it"
    if history.cancel_at is not None and history.state not in ("canceled", "open") and not account.is_cut_off:
        yield f"I7: the task was canceled, yet it {history.state}"
    if history.cancel_at is None:
        for act in account.story.acts:
            in_time = history.closed_at is not None and act.answered_at < history.closed_at
            if act.name == CANCEL_TASK and act.reply == "accepted" and in_time:
                yield f"I7: the cancel of {act.actor} was accepted, the history does not know it"


def each_action_counts_once(account: Account) -> Iterator[str]:
    """What operators were told is what the ledger says, unless an answer was lost with a connection, or with
    the task."""
    unsure = set(account.uncertain)
    if account.is_cut_off:
        unsure |= {act.actor for act in account.story.acts if act.reply != Reply.ACCEPTED} | {RECONCILER}
    for complaint in action_checks.each_action_counts_once(account.story):
        if not any(actor in complaint for actor in unsure):
            yield complaint


CHECKS: Sequence[Check] = (
    the_task_ended,
    nothing_is_open,
    each_request_was_recorded_first,
    no_more_calls_at_once_than_allowed,
    the_workflow_never_stumbles,
    the_query_agrees,
    each_end_has_its_cause,
    a_cancel_is_obeyed,
    each_action_counts_once,
    the_stories_are_as_ever,
)


def violations(account: Account) -> list[str]:
    """What each check finds; nothing for a task that kept its promises."""
    if not account.story.items:
        # A task that is canceled, or cut off, before a worker has looked at it does nothing at all.
        is_canceled = account.history.state == "canceled" and account.history.cancel_at is not None
        if (is_canceled or account.is_cut_off) and not account.story.calls:
            return list(the_task_ended(account))
        return [*the_task_ended(account), "the ledger has no work item of the task"]
    return [complaint for check in CHECKS for complaint in check(account)]


def batch_violations(batch: BatchAccount, events: Iterable[Event]) -> list[str]:
    """What is wrong with the batch itself; its tasks are checked like all others."""
    wrong = list(_stumbles(batch.history, events))
    if batch.query_error:
        wrong.append(f"I10: the batch does not answer its query: {batch.query_error}")
    if batch.result is None:
        return [*wrong, "lost: the batch has not completed"]
    for row, ended in batch.tasks.items():
        expected = ended if ended in ("completed", "canceled") else "failed"
        if batch.recorded.get(row) != expected:
            wrong.append(f"{row} is {batch.recorded.get(row)} in the batch, its task {ended}")
    counts = Counter(batch.recorded.values())
    told = {state: batch.result[state] for state in ("completed", "failed", "canceled")}
    if told != {state: counts[state] for state in told} or batch.result["rows"] != len(batch.tasks):
        wrong.append(f"the client got {dict(batch.result)} for the batch, its rows are {dict(counts)}")
    return wrong
