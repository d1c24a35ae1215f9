"""Removes complete old tasks from a ledger: the only exception to "ended work items never change".

The triggers that would refuse it are disabled within the deleting transaction. So they stay active for all
other transactions, and are active again after a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import sqlalchemy as sa

from tasquencer.sql.databases import database_at
from tasquencer.sql.migrate import check_schema
from tasquencer.sql.schema import ai_jobs, batches, work_item_supersessions, work_item_transitions, work_items

__all__ = ["Old", "old_tasks", "prune"]

_PAGE = 500
"""Work items in one transaction. Writers wait for it."""

_TABLES = (ai_jobs, work_item_supersessions, work_item_transitions, work_items)
"""The tables in the order in which rows can be deleted."""

_Place = tuple[datetime, int, str]


@dataclass(frozen=True)
class Old:
    """The old part of a ledger."""

    tasks: int = 0
    work_items: int = 0
    batches: int = 0


def _is_needed(before: datetime) -> sa.ColumnElement[bool]:
    """True for batches that stay, because their answers belong to their tasks."""
    return sa.or_(batches.c.ended_at.is_(None), batches.c.ended_at >= before)


def _is_of(batch_id: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """True for work items whose task is a row of the batch."""
    prefix = batch_id + "/"
    return sa.func.substr(work_items.c.task_id, 1, sa.func.length(prefix)) == prefix


async def old_tasks(database_url: str, before: datetime) -> Old:
    """Count the tasks whose work items all ended before this time, and the batches that ended before it.

    Tasks of a batch that stays do not count.

    Raises:
        LedgerUnavailable: the database cannot be reached or used.
        SchemaMismatch: it has another schema than this release.
    """
    of_task = (
        sa.select(sa.func.count().label("work_items"))
        .select_from(work_items)
        .where(~sa.exists().where(_is_needed(before), _is_of(batches.c.id)))
        .group_by(work_items.c.task_id)
        .having(
            sa.func.count() == sa.func.count(work_items.c.ended_at),
            sa.func.max(work_items.c.ended_at) < before,
        )
        .subquery()
    )
    query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(of_task.c.work_items), 0)).select_from(
        of_task
    )
    database = database_at(database_url, command_seconds=None)
    try:
        await check_schema(database)
        tasks, items = await database.read(lambda connection: connection.execute(query).one())
        return Old(tasks, int(items), len(await database.read(partial(_old_batches, before=before))))
    except database.outages as error:
        raise database.unavailable(error) from error
    finally:
        await database.close()


async def prune(database_url: str, before: datetime, progress: Callable[[Old], None] = lambda _: None) -> Old:
    """Delete the tasks whose work items all ended before this time, and old batches. Return the counts.

    Works page by page while workers run. If it is interrupted, run it again for the rest.

    Args:
        before: An aware time.
        progress: Called after each page with the counts so far.

    Raises:
        LedgerUnavailable: the database cannot be reached or used, its user may not alter the tables, or
        one of your own tables refers to a work item.
        SchemaMismatch: it has another schema than this release.
    """
    database = database_at(database_url, command_seconds=None)
    done = Old()
    place: _Place | None = None
    try:
        await check_schema(database)
        while True:
            page = await database.read(partial(_page, before=before, after=place))
            if not page:
                break
            last = page[-1]
            place = (last.created_at, last.attempt, last.id)
            tasks = sorted({row.task_id for row in page})
            if await database.read(partial(_old_of, task_ids=tasks, before=before)):
                deleted = await database.write(partial(_delete, task_ids=tasks, before=before))
                done = Old(done.tasks + deleted.tasks, done.work_items + deleted.work_items)
                progress(done)
        for batch_id in await database.read(partial(_old_batches, before=before)):
            if await database.write(partial(_delete_batch, batch_id=batch_id, before=before)):
                done = replace(done, batches=done.batches + 1)
                progress(done)
        return done
    except database.outages as error:
        raise database.unavailable(error) from error
    finally:
        await database.close()


def _page(
    connection: sa.Connection, before: datetime, after: _Place | None
) -> list[sa.Row[tuple[datetime, int, str, str]]]:
    order = (work_items.c.created_at, work_items.c.attempt, work_items.c.id)
    query = sa.select(*order, work_items.c.task_id).where(work_items.c.created_at < before)
    if after is not None:
        query = query.where(sa.tuple_(*order) > sa.tuple_(*after))
    return list(connection.execute(query.order_by(*order).limit(_PAGE)))


def _old_of(connection: sa.Connection, task_ids: list[str], before: datetime) -> list[str]:
    """Return the old ones among these tasks."""
    is_recent = sa.or_(work_items.c.ended_at.is_(None), work_items.c.ended_at >= before)
    query = sa.select(work_items.c.task_id).where(work_items.c.task_id.in_(task_ids), is_recent).distinct()
    recent = set(connection.execute(query).scalars())
    of_batch = {one: one.partition("/")[0] for one in task_ids if "/" in one}  # a batch's id has no slash
    needed = sa.select(batches.c.id).where(batches.c.id.in_(set(of_batch.values())), _is_needed(before))
    kept = set(connection.execute(needed).scalars())
    return [one for one in task_ids if one not in recent and of_batch.get(one) not in kept]


def _delete(connection: sa.Connection, task_ids: list[str], before: datetime) -> Old:
    with _without_triggers(connection):  # from here no other transaction writes
        tasks = _old_of(connection, task_ids, before)
        query = sa.select(work_items.c.id).where(work_items.c.task_id.in_(tasks))
        ids = list(connection.execute(query).scalars())
        for table in _TABLES:
            key = table.c.id if table is work_items else table.c.work_item_id
            for first in range(0, len(ids), _PAGE):
                connection.execute(sa.delete(table).where(key.in_(ids[first : first + _PAGE])))
    return Old(len(tasks), len(ids))


def _old_batches(connection: sa.Connection, before: datetime) -> list[str]:
    return list(connection.execute(sa.select(batches.c.id).where(batches.c.ended_at < before)).scalars())


def _delete_batch(connection: sa.Connection, batch_id: str, before: datetime) -> bool:
    """Delete the batch and its rows if it is still old. Return whether it was."""
    old = sa.delete(batches).where(batches.c.id == batch_id, batches.c.ended_at < before)
    return connection.execute(old).rowcount > 0


@contextmanager
def _without_triggers(connection: sa.Connection) -> Iterator[None]:
    """Allow the deletion of immutable rows within this transaction."""
    names = [table.name for table in _TABLES]
    if connection.dialect.name == "postgresql":
        for name in names:
            connection.exec_driver_sql(f"ALTER TABLE {name} DISABLE TRIGGER {name}_immutable")
        yield
        for name in names:
            connection.exec_driver_sql(f"ALTER TABLE {name} ENABLE TRIGGER {name}_immutable")
        return
    find = "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = ?"
    triggers = [f"{name}_no_delete" for name in names]
    statements = [connection.exec_driver_sql(find, (name,)).scalar_one() for name in triggers]
    for name in triggers:
        connection.exec_driver_sql(f"DROP TRIGGER {name}")
    yield
    for statement in statements:
        connection.exec_driver_sql(statement)
