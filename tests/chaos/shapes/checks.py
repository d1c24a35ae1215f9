"""Finds what is wrong in the account of one program's task. Pure functions, from an account to sentences."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

from tasquencer.core.failure import FailureKind
from tasquencer.core.policy import Counts, Verdict
from tasquencer.core.task_state import TASK_ACTOR
from tasquencer.core.work_item import LEGAL_TRANSITIONS, WorkItem, WorkItemState
from tests.chaos.shapes.interpreter import policy_of
from tests.chaos.shapes.witnesses import ShapeAccount

__all__ = ["CHECKS", "LOST_WITHIN", "name_of", "violations"]

_TICK = timedelta(milliseconds=5)
"""What two clocks on one machine may differ by, and what rounding costs."""

LOST_WITHIN = timedelta(seconds=15)
"""A worker's death shows in its calls' heartbeats after this time at the latest."""

_TASK_ERRORS = ("RetriesExhausted", "NotRetryable", "DeadlineExceeded", "TaskFailed")

Check = Callable[[ShapeAccount], Iterator[str]]


def violations(account: ShapeAccount) -> list[str]:
    """Everything that is wrong, in sentences that begin with the invariant's number."""
    return [one for check in CHECKS for one in check(account)]


def it_does_not_stand_still(account: ShapeAccount) -> Iterator[str]:
    """I13: every task ends, and by itself."""
    if account.last.state == "open":
        troubles = f": {account.last.troubles[-1]}" if account.last.troubles else ""
        yield f"I13: the task stands still{troubles}"
    if account.last.state in ("terminated", "timed out", "continued"):
        yield f"I13: the task was {account.last.state}, nobody asked for that"


def no_workflow_task_fails(account: ShapeAccount) -> Iterator[str]:
    """I8: our own code raises nothing."""
    for run in (*account.runs, *account.left_runs):
        for trouble in dict.fromkeys(run.troubles):
            yield f"I8: a workflow task failed: {trouble}"


def each_history_replays(account: ShapeAccount) -> Iterator[str]:
    """I10, with the same code on a fresh worker."""
    for run in (*account.runs, *account.left_runs):
        if run.replay_error:
            yield f"I10: run {run.run_id} does not replay: {run.replay_error}"


def each_run_leaves_the_cache(account: ShapeAccount) -> Iterator[str]:
    """I13: a run that stays in the cache keeps others from a worker."""
    for run in (*account.runs, *account.left_runs):
        if run.run_id in account.kept:
            yield f"I13: a worker could not remove run {run.run_id} from its cache"


def requests_are_recorded_first(account: ShapeAccount) -> Iterator[str]:
    """I1: the requests' own log against the ledger."""
    items = {item.id: item for item in account.items}
    for request in account.requests:
        name = f"the request of {request.lineage}#{request.attempt} ({request.key})"
        item = items.get(request.key)
        if item is None:
            yield f"I1: {name} belongs to no work item"
            continue
        if (item.lineage, item.attempt) != (request.lineage, request.attempt):
            yield f"I1: {name} left under the id of {item.lineage}#{item.attempt}"
        if request.held is not None and "started" not in request.held:
            yield f"I1: {name} found its work item {'/'.join(request.held) or 'unknown'}"
        if item.started_at is None or request.at < item.started_at - _TICK:
            yield f"I1: {name} arrived before its start"


def one_request_for_each_work_item(account: ShapeAccount) -> Iterator[str]:
    """I2: in the requests' own log, and in Temporal's histories."""
    for key, number in Counter(request.key for request in account.requests).items():
        if number > 1:
            yield f"I2: {number} requests with the key {key}"
    if any(request.tries > 1 for request in account.requests):
        yield "I2: Temporal tried a call again"
    for run in (*account.runs, *account.left_runs):
        # After a reset two histories may have the call: the second one is stopped before it makes a request.
        for key, number in Counter(key for key, _ in run.scheduled).items():
            if number > 1:
                yield f"I2: a history has {number} calls of {key}"
    calls = {call for run in (*account.runs, *account.left_runs) for call in run.scheduled}
    known = {item.id: item for item in account.items}
    for key, _ in calls:
        if key not in known:
            yield f"I1: a history has a call of {key}, the ledger does not know it"
        elif known[key].started_at is None:
            yield f"I1: a history has a call of {name_of(known[key])}, the ledger says it never started"


def what_ended_never_changes(account: ShapeAccount) -> Iterator[str]:
    """I3. Only entries of a lost workflow task may be superseded, and the old ones are kept."""
    now = {item.id: item for item in account.items}
    for seen in account.sightings:
        item = now.get(seen.id)
        if item is None:
            yield f"I3: {name_of(seen)} is gone"
        elif item != seen and seen not in account.superseded:
            changed = [name for name in type(item).model_fields if getattr(item, name) != getattr(seen, name)]
            yield f"I3: {name_of(seen)} changed after its end: {', '.join(changed)}"
    if account.superseded and not any(run.lost for run in (*account.runs, *account.left_runs)):
        yield f"I3: {name_of(account.superseded[0])} was superseded, no workflow task was lost"
    for item in account.items:
        steps = account.transitions[item.id]
        previous = None
        for number, step in enumerate(steps):
            if step.sequence != number or step.previous_state != previous:
                yield f"I3: transition {number} of {name_of(item)} does not follow from the one before"
            if step.next_state not in LEGAL_TRANSITIONS[previous]:
                yield f"I3: {name_of(item)} went from {previous} to {step.next_state}"
            previous = step.next_state
        if previous != item.state:
            yield f"I3: {name_of(item)} is {item.state}, its last transition says {previous}"


def nothing_starts_early(account: ShapeAccount) -> Iterator[str]:
    """I4: a retry waits for its delay, unless an operator ended the wait."""
    for chain in _lineages(account).values():
        for before, item in zip([None, *chain], chain, strict=False):
            if item.started_at is None:
                continue
            if item.started_at < item.not_before - _TICK:
                yield _early(item, item.not_before - item.started_at)
            if before is None or before.ended_at is None or account.is_reset:
                continue
            earliest = before.ended_at + timedelta(seconds=item.delay_seconds) - _TICK
            if item.delay_reason != "operator" and item.started_at < earliest:
                yield _early(item, earliest - item.started_at)


def _early(item: WorkItem, by: timedelta) -> str:
    return f"I4: {name_of(item)} started {by.total_seconds():.3f} s early"


def each_lineage_is_bounded(account: ShapeAccount) -> Iterator[str]:
    """I5: at most one work item per try, none missing and none twice, except those that a reset replaced."""
    for lineage, chain in _lineages(account).items():
        numbers = [item.attempt for item in chain]
        if max(numbers) > account.program.retries:
            yield f"I5: {lineage} has attempt {max(numbers)}, {account.program.retries} retries are allowed"
        if sorted(set(numbers)) != list(range(max(numbers) + 1)):
            yield f"I5: {lineage} has the attempts {numbers}"
        if len(set(numbers)) != len(numbers) and not account.is_reset:
            yield f"I5: {lineage} has an attempt twice: {numbers}"


def nothing_stays_open(account: ShapeAccount) -> Iterator[str]:
    """I6; a reconciler may have to help after a reset, which is not looked at here."""
    if account.last.state == "open":
        return
    for item in account.items:
        if not item.state.is_terminal and not (account.is_reset and _is_left(account, item)):
            yield f"I6: the task is {account.last.state}, {name_of(item)} is {item.state}"
    if account.last.closed_at is not None:
        for request in account.requests:
            if request.at > account.last.closed_at + _TICK:
                yield f"I6: the request {request.key} left after the task had {account.last.state}"


def the_policy_decides(account: ShapeAccount) -> Iterator[str]:
    """I7: a task fails if its policy says so, and only then, unless its own code or a cancel ends it."""
    if account.last.state == "open" or account.is_reset:
        return
    must_fail, may_fail = (_policy_fails(account, with_cancels=one) for one in (False, True))
    canceled = any(run.canceled for run in account.runs)
    by_policy = account.last.state == "failed" and account.last.error_type in _TASK_ERRORS
    # The end of a lineage that the code has left behind, or of a visit, comes after its decision to return.
    visits = any(act.name.startswith("visit") for act in account.program.acts)
    leaves = visits or '"leave"]' in json.dumps(account.program.body)
    if must_fail and account.last.state == "completed" and not leaves:
        yield f"I7: the task completed, its policy {account.program.policy} says that it fails"
    if by_policy and not (must_fail or may_fail):
        policy = account.program.policy
        yield f"I7: the task failed with {account.last.error_type}, its policy {policy} does not"
    if account.last.state == "canceled" and not canceled:
        yield "I7: the task ended canceled, nobody canceled it"


def _policy_fails(account: ShapeAccount, *, with_cancels: bool) -> bool:
    """Whether the policy ever says so: of work items that the task canceled, its code may have done that, and
    then the policy sees it, or its end, and then not."""
    policy, states = policy_of(account.program), dict[str, WorkItem]()
    # A policy counts nothing that only a lost workflow task knew.
    known = None if account.listed is None else {row["id"] for row in account.listed}
    items = {item.id: item for item in account.items if known is None or item.id in known}
    steps = sorted(
        (step for work_item_id in items for step in account.transitions[work_item_id]),
        key=lambda step: (step.at, step.next_state is not WorkItemState.INITIALIZED),
    )
    for step in steps:
        item = items[step.work_item_id]
        states[item.id] = item.model_copy(update={"state": step.next_state})
        if step.actor == TASK_ACTOR and step.next_state is WorkItemState.CANCELED and not with_cancels:
            continue
        if policy(step, _counts(list(states.values()))) is Verdict.FAIL:
            return True
    return False


def _counts(items: Sequence[WorkItem]) -> Counts:
    of = Counter(item.state.value for item in items)
    last: dict[str, WorkItem] = {}
    for item in items:
        if item.lineage not in last or last[item.lineage].attempt < item.attempt:
            last[item.lineage] = item
    ends = Counter(item.state.value for item in last.values())
    return Counts(
        initialized=of["initialized"],
        started=of["started"],
        completed=of["completed"],
        failed=of["failed"],
        canceled=of["canceled"],
        open_lineages=ends["initialized"] + ends["started"],
        completed_lineages=ends["completed"],
        failed_lineages=ends["failed"],
        canceled_lineages=ends["canceled"],
    )


def outcomes_have_causes(account: ShapeAccount) -> Iterator[str]:
    """I8: what a work item ended with, its own request said, or an operator, or a worker's death."""
    requests = {request.key: request for request in account.requests}
    for item in account.items:
        if item.started_at is None or not account.transitions[item.id]:
            continue
        if account.transitions[item.id][-1].actor != TASK_ACTOR:
            continue
        request = requests.get(item.id)
        if item.state is WorkItemState.COMPLETED:
            result = item.result if isinstance(item.result, dict) else {}
            if request is None or request.came not in ("ok", "deaf"):
                yield f"I8: {name_of(item)} completed, its request says {request and request.came}"
            elif result.get("by") != item.id:
                yield f"I8: {name_of(item)} holds the answer of {result.get('by')}"
        elif item.state is WorkItemState.FAILED and item.failure is not None and item.ended_at is not None:
            lost = (item.started_at - LOST_WITHIN, item.ended_at)
            kind = item.failure.kind
            if kind == FailureKind.WORKER_LOST and not any(lost[0] <= at <= lost[1] for at in account.deaths):
                yield f"I8: {name_of(item)} failed with {kind}, no worker died"
            # The run before a reset may have started the same child workflow.
            is_left = account.is_reset and "already started" in item.failure.message
            if kind == FailureKind.UNEXPECTED and not is_left:
                yield f"I8: {name_of(item)} failed with {item.failure}"


def the_task_and_the_ledger_agree(account: ShapeAccount) -> Iterator[str]:
    """The task replays its history to tell of its work items: it tells what the ledger holds."""
    if account.last.state == "open" or account.is_reset:
        return
    if account.listed is None:
        yield f"I10: the closed task does not answer its query: {account.query_error}"
        return
    told = {str(row["id"]): row for row in account.listed}
    for item in account.items:
        row = told.pop(item.id, None)
        if row is None:
            if item.state is not WorkItemState.CANCELED:
                yield f"the task does not know {name_of(item)} of the ledger, which is {item.state}"
            continue
        for name in ("state", "attempt", "lineage"):
            if getattr(item, name) != row[name]:
                there = f"{getattr(item, name)} in the ledger, {row[name]} in the task"
                yield f"{name_of(item)}: {name} is {there}"
    for stranger, row in told.items():
        yield f"the task knows {row['lineage']}#{row['attempt']} ({stranger}), the ledger does not"


def _lineages(account: ShapeAccount) -> dict[str, list[WorkItem]]:
    found = defaultdict[str, list[WorkItem]](list)
    for item in account.items:
        found[item.lineage].append(item)
    return {
        lineage: sorted(chain, key=lambda item: (item.attempt, item.created_at))
        for lineage, chain in found.items()
    }


def _is_left(account: ShapeAccount, item: WorkItem) -> bool:
    told = {str(row["id"]) for row in account.listed or ()}
    return item.id not in told


def name_of(item: WorkItem) -> str:
    """Its lineage, attempt and id."""
    return f"{item.lineage}#{item.attempt} ({item.id})"


CHECKS: Sequence[Check] = (
    it_does_not_stand_still,
    no_workflow_task_fails,
    each_history_replays,
    each_run_leaves_the_cache,
    requests_are_recorded_first,
    one_request_for_each_work_item,
    what_ended_never_changes,
    nothing_starts_early,
    each_lineage_is_bounded,
    nothing_stays_open,
    the_policy_decides,
    outcomes_have_causes,
    the_task_and_the_ledger_agree,
)
