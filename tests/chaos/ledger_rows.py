"""The ledger's account: its tables, read with plain SQL."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from tasquencer.core.failure import Failure
from tasquencer.core.work_item import Transition, WorkItem
from tasquencer.sql.databases import Database

__all__ = ["LedgerRows", "ended_since", "items_of", "read_ledger"]

_TIMES = ("not_before", "created_at", "started_at", "ended_at")
_JSON = ("payload", "result", "failure")


@dataclass
class LedgerRows:
    """All rows, by task and by work item."""

    items: dict[str, list[WorkItem]] = field(default_factory=lambda: defaultdict(list))
    transitions: dict[str, list[Transition]] = field(default_factory=lambda: defaultdict(list))
    jobs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    superseded: dict[str, list[WorkItem]] = field(default_factory=lambda: defaultdict(list))
    """Work items as they were before a later decision took the place of something, by id."""


async def read_ledger(database: Database) -> LedgerRows:
    """Everything in the ledger."""

    def read(connection: sa.Connection) -> LedgerRows:
        rows = LedgerRows()
        for item in _items(connection, "ORDER BY created_at, attempt, id", {}):
            rows.items[item.task_id].append(item)
        for row in connection.execute(sa.text("SELECT * FROM work_item_transitions ORDER BY sequence")):
            step = Transition.model_validate({**row._mapping, "at": _time(row.at)})
            rows.transitions[step.work_item_id].append(step)
        for row in connection.execute(sa.text("SELECT * FROM ai_jobs")):
            rows.jobs[row.work_item_id] = dict(row._mapping)
        for row in connection.execute(sa.text("SELECT * FROM work_item_supersessions ORDER BY number")):
            held = json.loads(row.held) if isinstance(row.held, str) else row.held
            rows.superseded[row.work_item_id].append(WorkItem.model_validate(held["work_item"]))
        return rows

    return await database.read(read)


async def items_of(database: Database, task_id: str) -> list[WorkItem]:
    """The task's work items, oldest first."""
    where = "WHERE task_id = :task ORDER BY created_at, attempt, id"
    return await database.read(lambda connection: _items(connection, where, {"task": task_id}))


async def ended_since(database: Database, known: Collection[str]) -> list[WorkItem]:
    """Ended work items, without those whose ids are known."""
    query = sa.text("SELECT id FROM work_items WHERE ended_at IS NOT NULL")

    def read(connection: sa.Connection) -> list[WorkItem]:
        new = [row.id for row in connection.execute(query) if row.id not in known]
        found: list[WorkItem] = []
        for work_item_id in new:
            found += _items(connection, "WHERE id = :id", {"id": work_item_id})
        return found

    return await database.read(read)


def _items(connection: sa.Connection, rest: str, values: Mapping[str, Any]) -> list[WorkItem]:
    query = sa.text(f"SELECT * FROM work_items {rest}")
    return [_item(dict(row._mapping)) for row in connection.execute(query, values)]


def _item(row: dict[str, Any]) -> WorkItem:
    for name in _TIMES:
        row[name] = _time(row[name])
    for name in _JSON:
        row[name] = json.loads(row[name]) if isinstance(row[name], str) else row[name]
    failure = Failure.model_validate(row["failure"]) if row["failure"] is not None else None
    assert row.pop("failure_kind") == (failure.kind if failure else None)
    assert row.pop("failure_message") == (failure.message if failure else None)
    return WorkItem.model_validate({**row, "failure": failure})


def _time(value: datetime | str | None) -> datetime | None:
    if value is None:
        return None
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
