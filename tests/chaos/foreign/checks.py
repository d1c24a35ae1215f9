"""Finds what is wrong in the account of a foreign workflow or of an agent. Pure functions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta

from tasquencer.core.failure import FailureKind
from tasquencer.core.observed import is_observed
from tasquencer.core.work_item import WorkItem, WorkItemState
from tests.chaos.foreign.application import SEEN, TAKEN
from tests.chaos.foreign.campaign import ForeignAccount
from tests.chaos.shapes import checks as shapes
from tests.chaos.shapes.checks import LOST_WITHIN, name_of

__all__ = ["CHECKS", "gaps", "is_forgotten", "violations"]

Check = Callable[[ForeignAccount], Iterator[str]]

_REPORTED_WITHIN = timedelta(seconds=10)
"""An observed attempt's outcome reaches Temporal this time after its end, and its worker's death is seen this
time after it, on a busy machine too."""

OF_ANY_TASK = (
    shapes.it_does_not_stand_still,
    shapes.no_workflow_task_fails,
    shapes.each_history_replays,
    shapes.what_ended_never_changes,
    shapes.nothing_starts_early,
    shapes.nothing_stays_open,
)
"""Checks of `tests.chaos.shapes` that need none of its programs."""


def violations(account: ForeignAccount) -> list[str]:
    """Everything that is wrong, in sentences that begin with the invariant's number."""
    return [one for check in CHECKS for one in check(account)]


def what_holds_for_any_task(account: ForeignAccount) -> Iterator[str]:
    """I3, I4, I6, I8, I10, I13."""
    for check in OF_ANY_TASK:
        yield from check(account.known)


def executions_are_recorded_first(account: ForeignAccount) -> Iterator[str]:
    """I1: the executions' own log against the ledger."""
    items = {item.id: item for item in account.known.items}
    for one in account.executions:
        name = f"{one.what} ({one.key})"
        item = items.get(one.key)
        if item is None:
            yield f"I1: {name} belongs to no work item"
            continue
        if one.attempt and one.attempt != item.attempt + 1:
            yield f"I1: {name} was attempt {one.attempt} for itself, {item.attempt} in the ledger"
        if one.held is not None and "started" not in one.held:
            yield f"I1: {name} found its work item {'/'.join(one.held) or 'unknown'}"


def one_execution_for_each_work_item(account: ForeignAccount) -> Iterator[str]:
    """I2: in the executions' own log, and in Temporal's histories."""
    for (what, key), number in Counter((one.what, one.key) for one in account.executions).items():
        if number > 1:
            yield f"I2: {number} executions of {what} with the key {key}"
    ids = {item.id for item in account.known.items if not is_observed(item.id)}
    for run in account.known.runs:
        for activity, attempts in run.native.items():
            if activity in ids and attempts > 1:
                yield f"I2: Temporal tried the activity of {activity} {attempts} times"


def each_lineage_is_bounded(account: ForeignAccount) -> Iterator[str]:
    """I5: for adopted activities and agents; the observed ones are Temporal's."""
    ours = [item for item in account.known.items if not is_observed(item.id)]
    yield from shapes.each_lineage_is_bounded(replace(account.known, items=ours))


def only_observed_attempts_are_left(account: ForeignAccount) -> Iterator[str]:
    """I6: tasks close their work items themselves; nobody but the reconciler closes an observed one."""
    for item in account.left_open:
        if not is_observed(item.id) and not is_forgotten(account, item):
            yield f"I6: {name_of(item)} was left to the reconciler"


def is_forgotten(account: ForeignAccount, item: WorkItem) -> bool:
    """Return whether only a lost workflow task knew the adopted work item.

    It was canceled before its code could adopt anything again. Such a run ends as natively, with no record.
    """
    run = account.known.last
    return (
        account.task.script is not None
        and item.attempt == 0
        and run.canceled
        and run.lost > 0
        and run.markers == 0
    )


def rows_are_native_attempts(account: ForeignAccount) -> Iterator[str]:
    """Each observed work item is an attempt that Temporal made; only those that never ran may be missing."""
    native = account.known.last.native
    for lineage, chain in _observed(account).items():
        numbers = [item.attempt for item in chain]
        if len(set(numbers)) != len(numbers):
            yield f"I2: {lineage} has an attempt twice: {numbers}"
        made = native.get(lineage)
        if made is not None and max(numbers) + 1 > made:
            yield f"{lineage} has attempt {max(numbers)}, Temporal made {made}"
        if account.task.script is not None and max(numbers) + 1 > account.task.script.attempts:
            yield f"I5: {lineage} has the attempts {numbers}, {account.task.script.attempts} are allowed"
        ends = [before for before in chain[:-1] if not _result_is_lost(account, before)]
        if any(before.state is not WorkItemState.FAILED for before in ends):
            yield f"{lineage} has a successor to {[item.state.value for item in chain[:-1]]}"
    ran = {(one.activity, one.attempt - 1) for one in account.executions}
    for lineage, number in gaps(account):
        if (lineage, number) in ran:
            yield f"I1: {lineage} lacks attempt {number}, which was executed"
        elif not account.known.deaths:
            yield f"{lineage} lacks attempt {number}, no worker died"


def gaps(account: ForeignAccount) -> list[tuple[str, int]]:
    """Attempts of observed activities without a work item: their worker died before it could write one."""
    found = []
    for lineage, chain in _observed(account).items():
        made = account.known.last.native.get(lineage, max(item.attempt for item in chain) + 1)
        found += [(lineage, number) for number in set(range(made)) - {item.attempt for item in chain}]
    return sorted(found)


def lost_attempts_have_a_death(account: ForeignAccount) -> Iterator[str]:
    """I8: nothing but a worker's death loses an attempt."""
    for item in account.known.items:
        if item.failure is None or item.started_at is None or item.ended_at is None:
            continue
        begin = item.started_at - LOST_WITHIN
        if item.failure.kind in (FailureKind.WORKER_LOST, FailureKind.TIMED_OUT) and not any(
            begin <= at <= item.ended_at for at in account.known.deaths
        ):
            yield f"I8: {name_of(item)} failed with {item.failure.kind}, no worker died"
        elif item.failure.kind == FailureKind.UNEXPECTED:
            yield f"I8: {name_of(item)} failed with {item.failure}"


def the_workflow_sees_what_the_ledger_holds(account: ForeignAccount) -> Iterator[str]:
    """The results and failures that the workflow's code got, against the last rows."""
    if account.task.script is None or account.known.last.state != "completed":
        return
    items = {item.id: item for item in account.known.items}
    for call, got in zip(account.task.script.calls, account.result, strict=True):
        if got is None:
            continue
        item = items.get(str(got["by"]))
        if item is None or item.state is not WorkItemState.COMPLETED:
            yield f"{call.activity} returned {got}, its work item is {item and item.state}"
        elif item.result != got:
            yield f"{call.activity} returned {got}, {name_of(item)} holds {item.result}"
    for kind, ours in ((TAKEN, False), (SEEN, True)):
        made = [
            got
            for call, got in zip(account.task.script.calls, account.result, strict=True)
            if call.activity == kind
        ]
        ends = _lasts([item for item in account.known.items if is_observed(item.id) is ours])
        states = Counter(item.state for item in ends)
        results = sum(got is not None for got in made)
        lost = sum(_result_is_lost(account, item) for item in ends)
        ended = states[WorkItemState.COMPLETED] + states[WorkItemState.FAILED]
        if ended != len(made) or not results <= states[WorkItemState.COMPLETED] <= results + lost:
            yield f"{kind}: the workflow saw {results} results of {len(made)}, the ledger {dict(states)}"


def _result_is_lost(account: ForeignAccount, item: WorkItem) -> bool:
    """Return whether its worker may have died after the record and before Temporal had the result."""
    if not is_observed(item.id) or item.state is not WorkItemState.COMPLETED or item.ended_at is None:
        return False
    died_at = account.died.get((item.worker or "").partition("@")[0])
    return died_at is not None and item.ended_at <= died_at <= item.ended_at + _REPORTED_WITHIN


def _observed(account: ForeignAccount) -> dict[str, list[WorkItem]]:
    return _chains([item for item in account.known.items if is_observed(item.id)])


def _lasts(items: Sequence[WorkItem]) -> list[WorkItem]:
    return [chain[-1] for chain in _chains(items).values()]


def _chains(items: Sequence[WorkItem]) -> dict[str, list[WorkItem]]:
    found = defaultdict[str, list[WorkItem]](list)
    for item in sorted(items, key=lambda one: one.attempt):
        found[item.lineage].append(item)
    return found


CHECKS: Sequence[Check] = (
    what_holds_for_any_task,
    executions_are_recorded_first,
    one_execution_for_each_work_item,
    each_lineage_is_bounded,
    only_observed_attempts_are_left,
    rows_are_native_attempts,
    lost_attempts_have_a_death,
    the_workflow_sees_what_the_ledger_holds,
)
