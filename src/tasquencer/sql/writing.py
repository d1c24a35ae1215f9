"""Writes entries: the rows that they add and change, and the statements.

`write` works within a transaction that the caller begins and commits. Two processes may write the same
entries at the same time. The primary key of the transitions makes one of them wait for the other and fail
with an `IntegrityError`. Its next try finds the rows and skips them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from pydantic import JsonValue
from sqlalchemy.dialects import postgresql, sqlite

from tasquencer.core.entries import DomainRecord, LedgerEntry
from tasquencer.core.errors import LedgerConflict
from tasquencer.core.observed import is_observed
from tasquencer.core.work_item import DelayReason, Transition, WorkItem, WorkItemState
from tasquencer.ledger.contract import Settlement
from tasquencer.ledger.rules import Supersession, as_recorded, check_owner, follows, judge
from tasquencer.sql.group_commit import Write
from tasquencer.sql.prepared import execute_many, rows_of
from tasquencer.sql.schema import Id, is_open, unescaped, work_item_transitions, work_items
from tasquencer.sql.superseding import held_of, make_room, put_in_place

__all__ = ["PARAMETERS", "find_open", "settle", "taken_attempt", "write"]

PARAMETERS = 1_000
"""The maximum number of values in one `IN (…)`. SQLite takes 32,766, PostgreSQL 32,767."""

Row = dict[str, Any]

# Statements are built once, because building one takes longer than running it.
_CREATE = sa.insert(work_items)
_APPEND = sa.insert(work_item_transitions)
_SETTABLE = (
    "state", "result", "failure_kind", "failure_message", "failure", "started_at", "ended_at", "worker",
)  # fmt: skip
_DELAY = ("delay_seconds", "delay_reason", "not_before")


@functools.cache
def _log(ids: int) -> sa.Select[tuple[str, int, str, str]]:
    columns = work_item_transitions.c
    wanted = columns.work_item_id.in_([sa.bindparam(str(number), type_=Id()) for number in range(ids)])
    task_id = work_items.c.task_id
    query = sa.select(columns.work_item_id, columns.sequence, columns.next_state, task_id)
    return query.join(work_items, work_items.c.id == columns.work_item_id).where(wanted)


@functools.cache
def _open_of(tasks: int) -> sa.Select[tuple[str, str, str]]:
    columns = work_items.c
    wanted = columns.task_id.in_([sa.bindparam(str(number), type_=Id()) for number in range(tasks)])
    return sa.select(columns.task_id, columns.run_id, columns.id).where(wanted, is_open)


@functools.cache
def _update(columns: tuple[str, ...]) -> sa.Update:
    values: dict[str, Any] = {name: sa.bindparam(name) for name in columns}
    worker, started_at = work_items.c.worker, work_items.c.started_at
    values["worker"] = sa.func.coalesce(sa.bindparam("worker", type_=worker.type), worker)
    # A start that is delivered again has a later time. Keep the first and its wait, as the transition does.
    values["started_at"] = sa.func.coalesce(started_at, sa.bindparam("started_at", type_=started_at.type))
    for column in (work_items.c[name] for name in _DELAY if name in columns):
        later = sa.bindparam(column.name, type_=column.type)
        values[column.name] = sa.case((started_at.is_(None), later), else_=column)
    return sa.update(work_items).where(work_items.c.id == sa.bindparam("same_id")).values(values)


@dataclass
class _Plan:
    created: dict[str, WorkItem] = field(default_factory=dict)
    changed: dict[str, WorkItem] = field(default_factory=dict)
    delayed: set[str] = field(default_factory=set)
    transitions: dict[tuple[str, int], LedgerEntry] = field(default_factory=dict)
    replaced: dict[str, Supersession] = field(default_factory=dict)
    attempts: dict[tuple[str, str, int], str] = field(default_factory=dict)
    records: dict[str, DomainRecord] = field(default_factory=dict)


def write(
    connection: sa.Connection, entries: Sequence[LedgerEntry], domain_tables: Mapping[str, sa.Table]
) -> None:
    """Write the entries that the ledger does not hold yet, within the connection's transaction.

    Raises:
        LedgerConflict: an entry contradicts what the ledger holds. Roll back.
        sqlalchemy.exc.IntegrityError: a constraint refuses a row, or another writer has just written it.
    """
    logs, owners = _logs(connection, sorted({entry.work_item.id for entry in entries}))
    plan = _Plan()
    for entry in entries:
        _place(connection, plan, entry, logs[entry.work_item.id], owners, domain_tables)
    if not plan.transitions:
        return
    for _, replaced in sorted(plan.replaced.items()):
        make_room(connection, replaced)
    # All writers use the same order, so that two writers of the same work items do not deadlock.
    if plan.created:
        execute_many(connection, _CREATE, [_row(item) for _, item in sorted(plan.created.items())])
    steps = [vars(entry.transition) | {"as_of": entry.as_of} for _, entry in sorted(plan.transitions.items())]
    execute_many(connection, _APPEND, steps)
    for key, replaced in sorted(plan.replaced.items()):
        row = _row(plan.changed.pop(key))
        put_in_place(connection, replaced, row, plan.records.pop(key, None), domain_tables)
    for columns, ids in ((_SETTABLE, plan.changed.keys() - plan.delayed), (_SETTABLE + _DELAY, plan.delayed)):
        if ids:
            execute_many(connection, _update(columns), [_row(plan.changed[key]) for key in sorted(ids)])
    _write_records(connection, plan.records, domain_tables)


def find_open(connection: sa.Connection, writes: Sequence[Write]) -> None:
    """Fill in `found_open` of the writes that ask for it, within the connection's transaction."""
    asking = [one for one in writes if one.run is not None]
    found: dict[tuple[str, str], set[str]] = {}
    tasks = _padded(sorted({one.run[0] for one in asking if one.run is not None}))
    for task_id, run_id, key in rows_of(connection, _open_of(len(tasks)), tasks) if tasks else ():
        if not is_observed(key):
            found.setdefault((unescaped(task_id), unescaped(run_id)), set()).add(unescaped(key))
    for one in asking:
        one.found_open.clear()
        one.found_open.update(found.get(one.run or ("", ""), ()))


def settle(
    connection: sa.Connection, settlement: Settlement, domain_tables: Mapping[str, sa.Table]
) -> list[str]:
    """Cancel the open work items of the settlement within the connection's transaction. Return their ids.

    Raises:
        sqlalchemy.exc.IntegrityError: another writer has just ended one of them.
    """
    of_run = (work_items.c.task_id == settlement.task_id, work_items.c.run_id == settlement.run_id)
    left = sa.select(work_items.c.id, work_items.c.state).where(*of_run, is_open).order_by(work_items.c.id)
    states = {key: WorkItemState(state) for key, state in connection.execute(left) if settlement.covers(key)}
    ids = list(states)
    logs, _ = _logs(connection, ids)
    steps = [
        Transition(
            work_item_id=key,
            sequence=len(logs[key]),
            previous_state=state,
            next_state=WorkItemState.CANCELED,
            at=settlement.at,
            actor=settlement.actor,
            reason=settlement.reason,
        )
        for key, state in states.items()
    ]
    if steps:
        execute_many(connection, _APPEND, [vars(step) | {"as_of": None} for step in steps])
    for first in range(0, len(ids), PARAMETERS):
        some = ids[first : first + PARAMETERS]
        ended = {"state": WorkItemState.CANCELED, "ended_at": settlement.at}
        connection.execute(sa.update(work_items).where(work_items.c.id.in_(some)).values(ended))
        for table in domain_tables.values():
            if "status" in table.c:
                status = sa.update(table).where(table.c.work_item_id.in_(some))
                connection.execute(status.values(status=WorkItemState.CANCELED))
    return ids


def taken_attempt(connection: sa.Connection, entries: Sequence[LedgerEntry]) -> LedgerConflict | None:
    """Return the conflict of the first entry that creates a work item in a place that is taken."""
    for item in (entry.work_item for entry in entries if entry.transition.sequence == 0):
        holder = connection.execute(
            sa.select(work_items.c.id).where(
                work_items.c.run_id == item.run_id,
                work_items.c.lineage == item.lineage,
                work_items.c.attempt == item.attempt,
                work_items.c.id != item.id,
            )
        ).scalar()
        if holder is not None:
            return _taken(item, holder)
    return None


def _taken(item: WorkItem, holder: str) -> LedgerConflict:
    place = f"attempt {item.attempt} of lineage {item.lineage!r} in run {item.run_id!r}"
    return LedgerConflict(item.id, f"{place} is already work item {holder!r}")


def _logs(
    connection: sa.Connection, ids: Sequence[str]
) -> tuple[dict[str, dict[int, WorkItemState]], dict[str, str]]:
    """Return the next states of each work item's transitions by sequence, and its task if it exists."""
    logs: dict[str, dict[int, WorkItemState]] = {key: {} for key in ids}
    owners: dict[str, str] = {}
    for first in range(0, len(ids), PARAMETERS):
        some = _padded(ids[first : first + PARAMETERS])
        for key, sequence, state, task_id in rows_of(connection, _log(len(some)), some):
            logs[unescaped(key)][sequence] = WorkItemState(state)
            owners[unescaped(key)] = unescaped(task_id)
    return logs, owners


def _padded(ids: Sequence[str]) -> list[str]:
    """Return the ids, with the last one repeated up to a power of two. So few statements serve all sizes."""
    places = 1 << (len(ids) - 1).bit_length()
    return [*ids, *[ids[-1]] * (places - len(ids))] if ids else []


def _place(
    connection: sa.Connection,
    plan: _Plan,
    entry: LedgerEntry,
    log: dict[int, WorkItemState],
    owners: Mapping[str, str],
    domain_tables: Mapping[str, sa.Table],
) -> None:
    """Add the entry to the plan, unless it is skipped."""
    transition, item = entry.transition, entry.work_item
    check_owner(entry, owners.get(item.id))
    place = (item.id, transition.sequence)
    if place in plan.transitions:
        _check_repeated(plan.transitions[place], entry)
        return
    if not follows(entry, log):
        if item.id not in owners:
            expected = f"transition {transition.sequence} from {transition.previous_state}"
            raise LedgerConflict(item.id, f"it does not exist, the entry is its {expected}")
        if item.id in plan.changed:
            raise LedgerConflict(item.id, "entries that are written together contradict each other")
        held = held_of(connection, item.id, domain_tables)
        replaced = judge(entry, held)
        if replaced is None:
            return
        plan.replaced[item.id] = replaced
        for later in [known for known in log if known >= transition.sequence]:
            del log[later]
        plan.changed[item.id] = (
            item if transition.sequence == 0 else item.model_copy(update={"payload": held.item.payload})
        )
    elif not log and item.id not in plan.changed:
        _check_attempt(plan, item)
        plan.created[item.id] = item
    elif item.id in plan.created:
        plan.created[item.id] = as_recorded(item, plan.created[item.id])
    else:
        # The old row is not read, because columns that a later entry may not set are not written.
        before = plan.changed.get(item.id)
        plan.changed[item.id] = item if before is None else as_recorded(item, before)
        if item.delay_reason is DelayReason.OPERATOR:
            plan.delayed.add(item.id)
    log[transition.sequence] = transition.next_state
    plan.transitions[place] = entry
    if entry.record is not None:
        plan.records[item.id] = entry.record


def _check_attempt(plan: _Plan, item: WorkItem) -> None:
    attempt = (item.run_id, item.lineage, item.attempt)
    if attempt in plan.attempts:
        raise _taken(item, plan.attempts[attempt])
    plan.attempts[attempt] = item.id


def _check_repeated(known: LedgerEntry, entry: LedgerEntry) -> None:
    """Refuse an entry that contradicts another one of the same write."""
    said = [(one.transition.next_state, one.transition.actor, one.work_item.result) for one in (known, entry)]
    if said[0] != said[1]:
        raise LedgerConflict(entry.work_item.id, "entries that are written together contradict each other")


def _row(item: WorkItem) -> Row:
    """Return the work item's columns, and its id again for the condition of the statement."""
    failure = item.failure
    return vars(item) | {
        "failure_kind": None if failure is None else failure.kind,
        "failure_message": None if failure is None else failure.message,
        "failure": None if failure is None else failure.model_dump(mode="json"),
        "same_id": item.id,
        "version": 0,
    }


def _write_records(
    connection: sa.Connection, records: Mapping[str, DomainRecord], domain_tables: Mapping[str, sa.Table]
) -> None:
    groups: dict[tuple[str, frozenset[str]], list[Row]] = {}
    for key, record in sorted(records.items()):
        table = domain_tables.get(record.table)
        if table is None:
            raise LedgerConflict(key, f"the ledger has no domain table {record.table!r}")
        unknown = sorted(record.values.keys() - table.c.keys())
        if unknown or "work_item_id" in record.values:
            raise LedgerConflict(
                key, f"domain table {record.table!r} takes no {(unknown or ['work_item_id'])[0]!r}"
            )
        row: dict[str, JsonValue] = dict.fromkeys(_emptied(table)) | dict(record.values)
        groups.setdefault((record.table, frozenset(row)), []).append(row | {"work_item_id": key})
    for (name, columns), rows in groups.items():
        table = domain_tables[name]
        statement = _upsert(table, columns, connection.dialect.name)
        if columns | {"work_item_id"} == set(table.c.keys()):
            execute_many(connection, statement, rows)
        else:  # SQLAlchemy knows the defaults of the others
            connection.execute(statement, rows)


@functools.cache
def _upsert(table: sa.Table, columns: frozenset[str], dialect: str) -> sa.Insert:
    statement = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    new = {column: statement.excluded[column] for column in columns}
    return statement.on_conflict_do_update(index_elements=["work_item_id"], set_=new)


@functools.cache
def _emptied(table: sa.Table) -> list[str]:
    """Return the columns to empty when a record replaces another and does not name them."""
    return [
        column.name
        for column in table.c
        if not column.primary_key
        and column.name != "work_item_id"
        and column.default is None
        and column.server_default is None
    ]
