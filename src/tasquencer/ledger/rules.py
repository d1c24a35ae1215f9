"""Rules for entries that meet what the ledger already holds.

A worker may write and then die before its workflow task ends. The next worker decides again, with newer
events, and may decide differently. The history counts. So an entry that contradicts the ledger replaces what
it contradicts, which is kept as a `Supersession`. Only a later workflow task may do this, because an entry of
an earlier one comes from a worker that Temporal has already given up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import LedgerConflict
from tasquencer.core.work_item import LEGAL_TRANSITIONS, DelayReason, Transition, WorkItem, WorkItemState

__all__ = ["Held", "Supersession", "as_recorded", "check_owner", "follows", "judge"]

_WHY = "the workflow task that had decided this was lost, and the task decided otherwise"


class Supersession(BaseModel):
    """The part of a work item that was replaced, and its replacement.

    Attributes:
        number: 1 for the first one of a work item, then counting up.
        from_sequence: The first transition that was replaced.
        at: When the decision that counts was made.
        held: The work item, its replaced transitions and its domain records before the replacement.
        decided: The entry that counts, as JSON.
    """

    model_config = ConfigDict(frozen=True)

    work_item_id: str
    number: int
    from_sequence: int
    at: AwareDatetime
    actor: str
    reason: str
    held: dict[str, JsonValue]
    decided: dict[str, JsonValue]


@dataclass(frozen=True)
class Held:
    """All that the ledger holds of a work item.

    Attributes:
        transitions: Oldest first.
        as_of: By sequence, when the workflow task that wrote the transition began, if known.
        records: The domain records, by table.
        superseded: How many supersessions the work item has had before.
    """

    item: WorkItem
    transitions: Sequence[Transition]
    as_of: Mapping[int, datetime]
    records: Mapping[str, Mapping[str, JsonValue]]
    superseded: int


def check_owner(entry: LedgerEntry, task_id: str | None) -> None:
    """Raise `LedgerConflict` for an entry about a work item of another task."""
    if task_id is not None and task_id != entry.work_item.task_id:
        raise LedgerConflict(entry.work_item.id, f"it belongs to task {task_id!r}")


def follows(entry: LedgerEntry, log: Mapping[int, WorkItemState]) -> bool:
    """Return whether the entry is the next transition after those that the ledger holds.

    Args:
        log: The next states of the transitions that the ledger holds of the entry's work item, by sequence.

    Raises:
        LedgerConflict: the previous state cannot become this one, or the entry contradicts itself: its
        transition and work item differ in id or state, the time of the start or end is missing or too
        much, or the failure is.
    """
    transition, item = entry.transition, entry.work_item
    if (problem := _contradiction(transition, item)) is not None:
        raise LedgerConflict(item.id, f"the entry contradicts itself: {problem}")
    state = log[max(log)] if log else None
    if transition.sequence != len(log) or transition.previous_state is not state:
        return False
    if transition.next_state not in LEGAL_TRANSITIONS[state]:
        raise LedgerConflict(item.id, f"it {_found(log)} and cannot become {transition.next_state}")
    return True


def _found(log: Mapping[int, WorkItemState]) -> str:
    return f"is {log[max(log)]} after transition {max(log)}" if log else "does not exist"


def judge(entry: LedgerEntry, held: Held) -> Supersession | None:
    """Decide about an entry that does not follow: return its supersession, or None to skip the entry.

    Raises:
        LedgerConflict: transitions before the entry differ or are missing, or its workflow task began
        earlier than the one that wrote what the ledger holds.
    """
    transition, item = entry.transition, entry.work_item
    number = transition.sequence
    known = {one.sequence: one for one in held.transitions}
    same = known.get(number)
    if same is not None and _says_the_same(entry, same, held, is_last=number == max(known)):
        return None
    if entry.offered:
        return None
    before = known.get(number - 1)
    if number and (before is None or before.next_state is not transition.previous_state):
        log = {one.sequence: one.next_state for one in held.transitions}
        expected = f"transition {number} from {transition.previous_state}"
        raise LedgerConflict(item.id, f"it {_found(log)}, the entry is its {expected}")
    decided = max((began for one, began in held.as_of.items() if one >= number), default=None)
    is_later = entry.as_of is not None and (decided is None or entry.as_of >= decided)
    is_legal = transition.next_state in LEGAL_TRANSITIONS[transition.previous_state if number else None]
    if not (is_later and is_legal):
        state = same.next_state if same is not None else held.item.state
        said = f"its transition {number} is {state}, the entry says {transition.next_state}"
        raise LedgerConflict(item.id, said)
    later = [one.model_dump(mode="json") for one in held.transitions if one.sequence >= number]
    return Supersession(
        work_item_id=item.id,
        number=held.superseded + 1,
        from_sequence=number,
        at=transition.at,
        actor=transition.actor,
        reason=_WHY,
        held={
            "work_item": held.item.model_dump(mode="json"),
            "transitions": list(later),
            "records": {table: dict(values) for table, values in held.records.items()},
        },
        decided=entry.model_dump(mode="json", exclude={"offered", "as_of"}),
    )


def _says_the_same(entry: LedgerEntry, same: Transition, held: Held, *, is_last: bool) -> bool:
    """Return whether the entry equals what the ledger holds. Times may differ if it was decided twice."""
    transition, item, present = entry.transition, entry.work_item, held.item
    if (transition.next_state, transition.actor) != (same.next_state, same.actor):
        return False
    if transition.previous_state is not same.previous_state:
        return False
    if transition.next_state is WorkItemState.INITIALIZED:
        plan = present.delay_reason is DelayReason.OPERATOR or (
            (item.delay_seconds, item.delay_reason) == (present.delay_seconds, present.delay_reason)
        )
        return plan and item.payload == present.payload and transition.reason == same.reason
    if is_last and transition.next_state.is_terminal:
        return (item.result, item.failure) == (present.result, present.failure)
    return True


def _contradiction(transition: Transition, item: WorkItem) -> str | None:
    if transition.work_item_id != item.id:
        return f"its transition is of work item {transition.work_item_id!r}"
    if transition.next_state is not item.state:
        return f"the transition leads to {transition.next_state}, the work item is {item.state}"
    if item.state.is_terminal != (item.ended_at is not None):
        return f"{item.state} {'without' if item.ended_at is None else 'with'} ended_at"
    if item.started_at is None and item.state not in (WorkItemState.INITIALIZED, WorkItemState.CANCELED):
        return f"{item.state} without started_at"
    if (item.state is WorkItemState.FAILED) != (item.failure is not None):
        return f"{item.state} {'without' if item.failure is None else 'with'} a failure"
    return None


def as_recorded(later: WorkItem, present: WorkItem) -> WorkItem:
    """Return the work item after a later entry. Fields that only the creating entry sets do not change."""
    kept = ["id", "task_id", "run_id", "task_type", "lineage", "attempt", "payload", "created_at"]
    has_started = present.started_at is not None  # at the time of its transition, after this wait
    if later.delay_reason is not DelayReason.OPERATOR or has_started:
        kept += ["delay_seconds", "delay_reason", "not_before"]
    kept += ["worker"] if later.worker is None else []
    kept += ["started_at"] if has_started else []
    return later.model_copy(update={name: getattr(present, name) for name in kept})
