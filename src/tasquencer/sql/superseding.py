"""Replaces entries of a lost workflow task: the only way to change immutable rows.

The supersession is inserted first. The database's triggers then allow this one change, until the work item's
row counts the supersession in its `version`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from pydantic_core import to_jsonable_python

from tasquencer.core.entries import DomainRecord
from tasquencer.core.work_item import Transition, WorkItem
from tasquencer.ledger.rules import Held, Supersession
from tasquencer.sql.schema import work_item_supersessions, work_item_transitions, work_items

__all__ = ["held_of", "make_room", "put_in_place", "supersessions_in"]


def held_of(connection: sa.Connection, work_item_id: str, domain_tables: Mapping[str, sa.Table]) -> Held:
    """Return all that the ledger holds of a work item, which must exist."""
    row = connection.execute(sa.select(work_items).where(work_items.c.id == work_item_id)).mappings().one()
    columns = work_item_transitions.c
    query = sa.select(work_item_transitions).where(columns.work_item_id == work_item_id)
    steps = list(connection.execute(query.order_by(columns.sequence)).mappings())
    records = {}
    for name, table in domain_tables.items():
        found = connection.execute(sa.select(table).where(table.c.work_item_id == work_item_id)).mappings()
        for values in found:
            records[name] = to_jsonable_python(dict(values))
    return Held(
        WorkItem.model_validate(dict(row)),
        [Transition.model_validate(dict(step)) for step in steps],
        {step["sequence"]: step["as_of"] for step in steps if step["as_of"] is not None},
        records,
        row["version"],
    )


def make_room(connection: sa.Connection, replaced: Supersession) -> None:
    """Store the replaced part, and delete its transitions."""
    connection.execute(sa.insert(work_item_supersessions).values(**dict(replaced)))
    columns = work_item_transitions.c
    connection.execute(
        sa.delete(work_item_transitions).where(
            columns.work_item_id == replaced.work_item_id, columns.sequence >= replaced.from_sequence
        )
    )


def put_in_place(
    connection: sa.Connection,
    replaced: Supersession,
    row: Mapping[str, Any],
    record: DomainRecord | None,
    domain_tables: Mapping[str, sa.Table],
) -> None:
    """Write the new work item and domain record. Afterwards they are immutable again.

    Args:
        row: The columns of the work item.
    """
    if record is not None and (table := domain_tables.get(record.table)) is not None:
        values = {name: value for name, value in record.values.items() if name in table.c}
        connection.execute(
            sa.update(table).where(table.c.work_item_id == replaced.work_item_id).values(**values)
        )
    kept = {"id", "task_id", "run_id", "task_type", "lineage", "attempt"}
    values = {column.name: row[column.name] for column in work_items.c if column.name not in kept}
    values["version"] = replaced.number
    connection.execute(sa.update(work_items).where(work_items.c.id == replaced.work_item_id).values(**values))


def supersessions_in(connection: sa.Connection, work_item_ids: list[str]) -> dict[str, list[Supersession]]:
    """Return the supersessions of some work items, oldest first, by work item id."""
    columns = work_item_supersessions.c
    found: dict[str, list[Supersession]] = {}
    query = sa.select(work_item_supersessions).where(columns.work_item_id.in_(work_item_ids))
    for row in connection.execute(query.order_by(columns.work_item_id, columns.number)).mappings():
        found.setdefault(row["work_item_id"], []).append(Supersession.model_validate(dict(row)))
    return found
