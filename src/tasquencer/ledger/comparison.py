"""Finds differences between the ledger and a task's histories.

The histories are the truth. The ledger may contain more than they do, and the following is not a difference:

- the worker that ran a work item, if Temporal does not name it;
- an earlier time: a workflow task was repeated after a crash, and the ledger keeps the first time;
- a settled work item that a lost workflow task wrote and no other one decided again, or its start;
- the cancellation of a work item that a run left open because it had no chance to end it;
- entries of a running task that are not in its history yet;
- missing facts that an older release does not keep, if its workers wrote during an upgrade.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import JsonValue

from tasquencer.core.wording import one_line
from tasquencer.core.work_item import DelayReason, Transition, WorkItem, WorkItemState

__all__ = ["Difference", "FullWorkItem", "differences"]

_FACTS = ("run_id", "task_type", "lineage", "attempt", "payload", "result", "failure")
_TIMES = ("created_at", "started_at", "ended_at")
_WAIT = ("delay_seconds", "delay_reason")

_LATER_FACTS = frozenset({"cached_tokens", "reasoning_tokens"})
"""Facts of an answer that older releases do not keep."""

_SHOWN = 80
"""Maximum characters of a value in a difference."""

_STATUS = "status"
"""The column of a domain record that holds the state of its work item."""


@dataclass(frozen=True)
class FullWorkItem:
    """A work item with its transitions and domain records.

    Attributes:
        records: Its domain records, by table.
    """

    work_item: WorkItem
    transitions: Sequence[Transition]
    records: Mapping[str, Mapping[str, JsonValue]] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """One difference between the ledger and the histories."""

    task_id: str
    work_item_id: str
    problem: str

    def __str__(self) -> str:
        return f"task {self.task_id}, work item {self.work_item_id}: {self.problem}"


def differences(
    told: Mapping[str, FullWorkItem], held: Mapping[str, FullWorkItem], *, under_way: bool
) -> list[Difference]:
    """Return the differences about the work items of one task.

    Args:
        told: The work items according to the histories, by id.
        held: The work items according to the ledger, by id.
        under_way: True if a run of the task is running. The ledger may then be ahead of its history.
    """
    found = []
    for work_item_id in [*told, *(known for known in held if known not in told)]:
        history, ledger = told.get(work_item_id), held.get(work_item_id)
        item = (history or held[work_item_id]).work_item
        found += [
            Difference(item.task_id, work_item_id, problem)
            for problem in _problems(history, ledger, under_way=under_way)
        ]
    return found


def _problems(history: FullWorkItem | None, ledger: FullWorkItem | None, *, under_way: bool) -> Iterator[str]:
    if ledger is None:
        yield "is missing in the ledger"
        return
    state = ledger.work_item.state
    if history is None:
        if not under_way and state is not WorkItemState.CANCELED:
            yield f"is {state} in the ledger, the histories know nothing of it"
        return
    ahead = False
    if _states(history) != _states(ledger):
        problem = _other_states(history, ledger, under_way=under_way)
        if problem is not None:
            yield problem
            return
        ahead = True
    yield from _transition_problems(history, ledger)
    yield from _fact_problems(history.work_item, ledger.work_item, ahead=ahead)
    for table, record in history.records.items():
        yield from _record_problems(table, record, ledger.records.get(table), ahead=ahead)


def _states(recorded: FullWorkItem) -> list[WorkItemState]:
    return [step.next_state for step in recorded.transitions]


def _other_states(history: FullWorkItem, ledger: FullWorkItem, *, under_way: bool) -> str | None:
    """Return the problem with different states, or None if the ledger only contains more."""
    told, held = _states(history), _states(ledger)
    more = held[len(told) :]
    if held[: len(told)] == told and (under_way or more == [WorkItemState.CANCELED]):
        return None
    lost_start = [*told[:-1], WorkItemState.STARTED, *told[-1:]]
    if told[-1:] == [WorkItemState.CANCELED] and held == lost_start:
        return None
    return f"went {' → '.join(told)}, in the ledger {' → '.join(held) or 'nowhere'}"


def _transition_problems(history: FullWorkItem, ledger: FullWorkItem) -> Iterator[str]:
    for told, held in zip(history.transitions, ledger.transitions, strict=False):
        if told.next_state is not held.next_state:  # a lost start, and what followed
            return
        which = f"transition {told.sequence} ({told.next_state})"
        for name in ("previous_state", "actor", "reason"):
            yield from _problem(f"{name} of {which}", getattr(told, name), getattr(held, name))
        if held.at > told.at:
            yield from _problem(f"at of {which}", told.at, held.at)


def _fact_problems(told: WorkItem, held: WorkItem, *, ahead: bool) -> Iterator[str]:
    for name in _FACTS:
        if not (ahead and getattr(told, name) is None):
            fact, kept = getattr(told, name), getattr(held, name)
            yield from _problem(name, _as_far_as_kept(fact, kept), kept)
    if told.worker is not None and not ahead:
        yield from _problem("worker", told.worker, held.worker)
    # If an operator ended the wait, the ledger holds its real length, which may differ as times may.
    if DelayReason.OPERATOR not in (told.delay_reason, held.delay_reason):
        for name in _WAIT:
            yield from _problem(name, getattr(told, name), getattr(held, name))
    for name in (*_TIMES, "not_before"):
        at, kept = getattr(told, name), getattr(held, name)
        if at is None:
            if kept is not None and not ahead:
                yield from _problem(name, None, kept)
        elif kept is None or kept > at:
            yield from _problem(name, at, kept)


def _record_problems(
    table: str, told: Mapping[str, JsonValue], held: Mapping[str, JsonValue] | None, *, ahead: bool
) -> Iterator[str]:
    if held is None:
        yield f"has no row in {table}"
        return
    if ahead and told.get(_STATUS) != held.get(_STATUS):  # a later transition brought it
        return
    for name, value in told.items():
        if name not in _LATER_FACTS or held.get(name) is not None:
            yield from _problem(f"{table}.{name}", value, held.get(name))


def _as_far_as_kept(told: object, held: object) -> object:
    """Return the history's facts, without the later ones that the ledger does not have."""
    if not isinstance(told, dict) or not isinstance(held, dict):
        return told
    return {name: value for name, value in told.items() if name not in _LATER_FACTS or name in held}


def _problem(name: str, told: object, held: object) -> Iterator[str]:
    if told != held:
        yield f"{name} is {_shown(held)} in the ledger, {_shown(told)} in the history"


def _shown(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, datetime):
        return value.isoformat()
    return one_line(repr(value) if isinstance(value, str) else str(value), _SHOWN)
