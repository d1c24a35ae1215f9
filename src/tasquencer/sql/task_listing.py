"""Lists tasks with the totals of their work items.

The ledger has no table of tasks. A task is found by its decisive work item, which determines its state: the
newest open work item, or else the one that ended last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from pydantic import AwareDatetime, BaseModel, ConfigDict

from tasquencer.ai.usage import Usage
from tasquencer.core.work_item import WorkItemState
from tasquencer.sql.schema import ai_jobs, is_open, work_items

__all__ = ["TaskFilter", "TaskState", "TaskSummary", "tasks_in"]

_OPEN = (WorkItemState.INITIALIZED, WorkItemState.STARTED)


class TaskState(StrEnum):
    """The state of a task, according to its work items."""

    STARTED = "started"
    """A work item is open."""
    COMPLETED = "completed"
    """No work item is open, and the one that ended last completed."""
    FAILED = "failed"
    CANCELED = "canceled"


class TaskFilter(BaseModel):
    """Selects the tasks to list. A field that is None or empty does not matter.

    Attributes:
        model: A work item of the task used this model.
        metadata: A work item of the task has all these labels.
        active_since: The task's decisive work item was created at this time (aware) or later.
        limit: At most this many.
        offset: Skip this many of the newest.
    """

    model_config = ConfigDict(frozen=True)

    state: TaskState | None = None
    task_type: str | None = None
    model: str | None = None
    metadata: Mapping[str, str] = {}
    active_since: datetime | None = None
    limit: int = 100
    offset: int = 0


class TaskSummary(Usage):
    """A task.

    Attributes:
        attempts: Its work items.
        lineages: The chains of attempts that they belong to.
        models: The models of its work items.
        ended_at: When the last of its work items ended. None while one is open.
        input_tokens, output_tokens, cost_usd: Totals of all attempts, failed ones included.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str
    task_type: str
    state: TaskState
    attempts: int
    lineages: int
    models: list[str]
    created_at: AwareDatetime
    ended_at: AwareDatetime | None


def tasks_in(connection: sa.Connection, wanted: TaskFilter) -> list[TaskSummary]:
    """Return the tasks that the filter selects, the most recently active ones first."""
    decisive = connection.execute(_decisive(wanted)).all()
    ids = [task_id for task_id, *_ in decisive]
    sums = {row["task_id"]: row for row in connection.execute(_sums(ids)).mappings()}
    models: dict[str, list[str]] = {}
    for task_id, model in connection.execute(_models(ids)):
        models.setdefault(task_id, []).append(model)
    return [
        TaskSummary.model_validate(
            {
                **sums[task_id],
                "task_type": task_type,
                "state": TaskState.STARTED if state in _OPEN else TaskState(state),
                "models": models.get(task_id, []),
                "ended_at": None if state in _OPEN else sums[task_id]["ended_at"],
            }
        )
        for task_id, task_type, state in decisive
    ]


def _decisive(wanted: TaskFilter) -> sa.Select[Any]:
    this, other = work_items.c, work_items.alias("other")
    overruled = sa.exists().where(other.c.task_id == this.task_id, _rank(other.c) > _rank(this))
    query = sa.select(this.task_id, this.task_type, this.state)
    if wanted.state is TaskState.STARTED:
        query = query.where(is_open)
    elif wanted.state is not None:
        query = query.where(this.state == wanted.state.value)
    if wanted.task_type is not None:
        query = query.where(this.task_type == wanted.task_type)
    if wanted.active_since is not None:
        query = query.where(this.created_at >= wanted.active_since)
    if wanted.model is not None:
        job = work_items.alias("job")
        used = sa.join(job, ai_jobs, ai_jobs.c.work_item_id == job.c.id)
        of_model = sa.select(job.c.task_id).select_from(used).where(ai_jobs.c.model == wanted.model)
        query = query.where(this.task_id.in_(of_model))
    if wanted.metadata:
        labelled = work_items.alias("labelled")
        labels = [
            labelled.c.payload["metadata", key].as_string() == value for key, value in wanted.metadata.items()
        ]
        query = query.where(this.task_id.in_(sa.select(labelled.c.task_id).where(*labels)))
    query = query.where(~overruled)  # last, because it reads other rows for each remaining row
    order = (this.created_at.desc(), this.attempt.desc(), this.id.desc())
    return query.order_by(*order).limit(wanted.limit).offset(wanted.offset)


def _rank(columns: Any) -> sa.Tuple:
    """The order in which work items of a task are decisive."""
    is_under_way = sa.case((columns.state.in_(_OPEN), 1), else_=0)
    last = sa.func.coalesce(columns.ended_at, columns.created_at)
    return sa.tuple_(is_under_way, last, columns.created_at, columns.attempt, columns.id)


def _sums(task_ids: Sequence[str]) -> sa.Select[Any]:
    columns = work_items.c
    return (
        sa.select(
            columns.task_id,
            sa.func.min(columns.created_at).label("created_at"),
            sa.func.max(columns.ended_at).label("ended_at"),
            sa.func.count().label("attempts"),
            sa.func.count(columns.lineage.distinct()).label("lineages"),
            *(sa.func.sum(ai_jobs.c[name]).label(name) for name in Usage.model_fields),
        )
        .join(ai_jobs, ai_jobs.c.work_item_id == columns.id, isouter=True)
        .where(columns.task_id.in_(task_ids))
        .group_by(columns.task_id)
    )


def _models(task_ids: Sequence[str]) -> sa.Select[Any]:
    columns = work_items.c
    return (
        sa.select(columns.task_id, ai_jobs.c.model)
        .distinct()
        .join(ai_jobs, ai_jobs.c.work_item_id == columns.id)
        .where(columns.task_id.in_(task_ids), ai_jobs.c.model.is_not(None))
        .order_by(columns.task_id, ai_jobs.c.model)
    )
