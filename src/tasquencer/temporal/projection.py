"""Compares the ledger with the histories, and restores what it has lost.

The histories are the truth. `verify` compares. `rebuild` repeats the writes of the histories, which adds
missing entries and changes no existing one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import LedgerConflict
from tasquencer.core.observed import is_observed
from tasquencer.ledger.comparison import Difference, FullWorkItem, differences
from tasquencer.ledger.contract import Ledger
from tasquencer.ledger.memory import InMemoryLedger
from tasquencer.temporal.histories import TaskHistory, Write

__all__ = ["Rebuilt", "Verified", "rebuild", "verify"]


@dataclass
class Verified:
    """The result of a comparison.

    Attributes:
        work_items: The number of work items in the histories.
        gaps: The parts that could not be compared, one line each.
    """

    work_items: int
    differences: list[Difference]
    gaps: list[str]


@dataclass
class Rebuilt:
    """The result of a rebuild.

    Attributes:
        work_items: The ids of the work items that were missing.
        transitions: How many transitions were missing, including those of missing work items.
        refused: Entries that contradict the ledger, which does not change, one line each.
        gaps: The parts that could not be read, one line each.
    """

    work_items: list[str] = field(default_factory=list)
    transitions: int = 0
    refused: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)


async def verify(told: TaskHistory, ledger: Ledger) -> Verified:
    """Compare a task's histories with the ledger."""
    unknown = await _unknown_tables(told.writes, ledger)
    gaps = [*told.gaps, *_unreadable(unknown)]
    expected = InMemoryLedger()
    for write in told.writes:
        gaps += await _write(expected, write, unknown)
    tables = sorted(_tables(told.writes) - unknown)
    of_history = await _recorded(expected, told.task_id, tables)
    of_ledger = await _recorded(ledger, told.task_id, tables)
    found = differences(of_history, of_ledger, under_way=told.under_way)
    return Verified(len(of_history), found, gaps)


async def rebuild(told: TaskHistory, ledger: Ledger) -> Rebuilt:
    """Repeat the writes of a task's histories. Safe to do twice, and while a worker runs."""
    unknown = await _unknown_tables(told.writes, ledger)
    done = Rebuilt(gaps=[*told.gaps, *_unreadable(unknown)])
    before = await _recorded(ledger, told.task_id, ())
    for write in told.writes:
        done.refused += await _write(ledger, write, unknown)
    after = await _recorded(ledger, told.task_id, ())
    done.work_items = [key for key in after if key not in before]
    done.transitions = sum(map(_length, after.values())) - sum(map(_length, before.values()))
    return done


def _length(recorded: FullWorkItem) -> int:
    return len(recorded.transitions)


async def _write(ledger: Ledger, write: Write, unknown: set[str]) -> list[str]:
    """Record the entries that the ledger does not refuse. Return the refusals, one line each.

    An entry without the time of its decision replaces nothing.
    """
    refused = []
    entries = [_without_record(entry, unknown).model_copy(update={"as_of": None}) for entry in write.entries]
    try:
        await ledger.record(entries)
    except LedgerConflict:
        for entry in entries:
            try:
                await ledger.record([entry])
            except LedgerConflict as conflict:
                refused.append(f"work item {conflict.work_item_id}: {conflict.problem}")
    if write.settlement is not None:
        await ledger.settle(write.settlement)
    return refused


def _without_record(entry: LedgerEntry, unknown: set[str]) -> LedgerEntry:
    if entry.record is None or entry.record.table not in unknown:
        return entry
    return entry.model_copy(update={"record": None})


def _tables(writes: Iterable[Write]) -> set[str]:
    return {entry.record.table for write in writes for entry in write.entries if entry.record is not None}


async def _unknown_tables(writes: Iterable[Write], ledger: Ledger) -> set[str]:
    unknown = set()
    for table in _tables(writes):
        try:
            await ledger.domain_records(table, [])
        except KeyError:
            unknown.add(table)
    return unknown


def _unreadable(unknown: set[str]) -> list[str]:
    return [f"the ledger has no domain table {table!r}: its rows are left out" for table in sorted(unknown)]


async def _recorded(ledger: Ledger, task_id: str, tables: Sequence[str]) -> dict[str, FullWorkItem]:
    """Return all that the ledger holds of a task, oldest first, without observed attempts."""
    items = [item for item in await ledger.work_items_of(task_id) if not is_observed(item.id)]
    ids = [item.id for item in items]
    records = {table: await ledger.domain_records(table, ids) for table in tables}
    # Read these last: they show whether a running task wrote while the rest was read.
    transitions = await ledger.transitions_of(ids)
    return {
        item.id: FullWorkItem(
            item,
            transitions.get(item.id, []),
            {table: rows[item.id] for table, rows in records.items() if item.id in rows},
        )
        for item in items
    }
