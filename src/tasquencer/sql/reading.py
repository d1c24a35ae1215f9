"""Reads the ledger: the queries, and their rows as work items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import JsonValue
from pydantic_core import to_jsonable_python

from tasquencer.core.work_item import Transition, WorkItem, WorkItemState
from tasquencer.ledger.contract import OpenWorkItem, Place, WorkItemFilter
from tasquencer.sql.prepared import rows_of
from tasquencer.sql.schema import (
    Id,
    is_canceled,
    is_failed,
    is_open,
    unescaped,
    work_item_transitions,
    work_items,
)
from tasquencer.sql.writing import PARAMETERS

__all__ = [
    "domain_records_in",
    "holder_in",
    "open_work_items_in",
    "open_work_items_query",
    "transitions_in",
    "work_items_in",
    "work_items_query",
]

_NOT_IN_WORK_ITEM = ("failure_kind", "failure_message", "version")
_COLUMNS = [column for column in work_items.c if column.name not in _NOT_IN_WORK_ITEM]


_OPEN = (WorkItemState.INITIALIZED, WorkItemState.STARTED)

_COMMON = {
    frozenset({WorkItemState.FAILED}): is_failed,
    frozenset({WorkItemState.CANCELED}): is_canceled,
    frozenset(_OPEN): is_open,
} | {frozenset({state}): is_open for state in _OPEN}
"""Conditions on work items in these states, as their indexes have them."""


def work_items_query(wanted: WorkItemFilter) -> sa.Select[tuple[object, ...]]:
    """Return the query for the work items that the filter selects, in a form that uses the indexes."""
    columns = work_items.c
    query = sa.select(*_COLUMNS)
    if wanted.task_id is not None:
        query = query.where(columns.task_id == wanted.task_id)
    if wanted.work_item_id is not None:
        query = query.where(columns.id == wanted.work_item_id)
    if wanted.states is not None:
        query = query.where(columns.state.in_(sorted(wanted.states)))
        if (common := _COMMON.get(wanted.states)) is not None:
            query = query.where(common)
    if wanted.failure_kind is not None:
        query = query.where(is_failed, columns.failure_kind == wanted.failure_kind)
    if wanted.payload_kind is not None:
        query = query.where(columns.payload["kind"].as_string() == wanted.payload_kind)
    if wanted.created_since is not None:
        query = query.where(columns.created_at >= wanted.created_since)
    if wanted.ended_since is not None:
        query = query.where(columns.ended_at >= wanted.ended_since)
    order = [columns.created_at, columns.attempt, columns.id]
    query = query.order_by(*(order if wanted.oldest_first else [column.desc() for column in order]))
    return query.limit(wanted.limit).offset(wanted.offset)


def work_items_in(connection: sa.Connection, wanted: WorkItemFilter) -> list[WorkItem]:
    """Return the work items that the filter selects."""
    rows = connection.execute(work_items_query(wanted)).mappings()
    return [WorkItem.model_validate(dict(row)) for row in rows]


_HOLDER = sa.select(work_items.c.task_id, work_items.c.state).where(
    work_items.c.id == sa.bindparam("id", type_=Id())
)


def holder_in(connection: sa.Connection, work_item_id: str) -> tuple[str, WorkItemState] | None:
    """Return the task and the state of a work item, if it exists."""
    for task_id, state in rows_of(connection, _HOLDER, [work_item_id]):
        return unescaped(task_id), WorkItemState(state)
    return None


def open_work_items_query(
    created_before: datetime, after: Place | None, limit: int
) -> sa.Select[tuple[object, ...]]:
    """Return the query for a page of the open work items, oldest first, in the order of their index."""
    columns = work_items.c
    order = [columns.created_at, columns.attempt, columns.id]
    query = sa.select(*(columns[name] for name in OpenWorkItem.model_fields)).where(
        is_open, columns.created_at < created_before
    )
    if after is not None:
        place = [
            sa.literal(value, column.type)
            for value, column in zip((after.created_at, after.attempt, after.id), order, strict=True)
        ]
        query = query.where(sa.tuple_(*order) > sa.tuple_(*place))
    return query.order_by(*order).limit(limit)


def open_work_items_in(
    connection: sa.Connection, created_before: datetime, after: Place | None, limit: int
) -> list[OpenWorkItem]:
    """Return a page of the open work items, oldest first."""
    rows = connection.execute(open_work_items_query(created_before, after, limit)).mappings()
    return [OpenWorkItem.model_validate(dict(row)) for row in rows]


def transitions_in(connection: sa.Connection, work_item_ids: Sequence[str]) -> dict[str, list[Transition]]:
    """Return the transitions of work items, oldest first, by work item id."""
    column = work_item_transitions.c
    query = sa.select(work_item_transitions).order_by(column.work_item_id, column.sequence)
    found: dict[str, list[Transition]] = {}
    for row in _of_work_items(connection, query, column.work_item_id, work_item_ids):
        found.setdefault(row["work_item_id"], []).append(Transition.model_validate(dict(row)))
    return found


def domain_records_in(
    connection: sa.Connection, table: sa.Table, work_item_ids: Sequence[str]
) -> dict[str, dict[str, JsonValue]]:
    """Return the rows of a domain table, by work item id."""
    found: dict[str, dict[str, JsonValue]] = {}
    for row in _of_work_items(connection, sa.select(table), table.c.work_item_id, work_item_ids):
        values = dict(row)
        key = values.pop("work_item_id")
        found[key] = to_jsonable_python(values)
    return found


def _of_work_items(
    connection: sa.Connection,
    query: sa.Select[Any],
    column: sa.ColumnElement[str],
    work_item_ids: Sequence[str],
) -> Iterator[sa.RowMapping]:
    ids = list(dict.fromkeys(work_item_ids))
    for first in range(0, len(ids), PARAMETERS):
        some = ids[first : first + PARAMETERS]
        yield from connection.execute(query.where(column.in_(some))).mappings()
