"""The ledger's tables.

The migrations create them, and a test compares the two. Only the migrations contain the triggers. These
refuse changes of terminal work items, terminal AI jobs and transitions (also by TRUNCATE or REPLACE), and
further transitions of a terminal work item.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from tasquencer.ai.record import AI_JOBS
from tasquencer.batch.rows import RowState
from tasquencer.batch.store import BatchState
from tasquencer.core.work_item import DelayReason, WorkItemState

__all__ = [
    "SCHEMA_VERSION",
    "SCHEMA_VERSIONS",
    "VERSION_TABLE",
    "Id",
    "Json",
    "UtcTime",
    "ai_jobs",
    "batch_rows",
    "batches",
    "escaped",
    "is_canceled",
    "is_failed",
    "is_open",
    "is_pending",
    "metadata",
    "schema_compatibility",
    "unescaped",
    "work_item_supersessions",
    "work_item_transitions",
    "work_items",
]

SCHEMA_VERSIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
"""Every schema version so far, oldest first: the numbers of the migrations."""

SCHEMA_VERSION = SCHEMA_VERSIONS[-1]
"""The version this release works with."""

VERSION_TABLE = "tasquencer_schema_version"
"""The table with the schema's version. It does not have Alembic's usual name, so that your own migrations can
live in the same database."""


class UtcTime(sa.types.TypeDecorator[datetime]):
    """An aware time, UTC. PostgreSQL: `timestamptz`. SQLite: sortable text without an offset."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Convert to UTC. The value is naive for SQLite, whose driver would ignore the offset."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"the ledger takes aware times, not {value!r}")
        in_utc = value.astimezone(UTC)
        return in_utc.replace(tzinfo=None) if dialect.name == "sqlite" else in_utc

    def bind_processor(self, dialect: sa.Dialect) -> Callable[[datetime | None], object] | None:
        """Return SQLite's text itself, because SQLAlchemy would rebuild it from the parts of the time."""
        if dialect.name != "sqlite":
            return super().bind_processor(dialect)

        def text(value: datetime | None) -> str | None:
            in_utc = self.process_bind_param(value, dialect)
            return None if in_utc is None else in_utc.isoformat(" ", "microseconds")

        return text

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Aware, UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Id(sa.types.TypeDecorator[str]):
    """Text in which characters that a database cannot hold are escaped, so that ids stay distinct.

    NUL and lone surrogates become `␀` with four hexadecimal digits, and so does `␀` itself.
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: sa.Dialect) -> str | None:
        """Escaped."""
        return value if value is None else escaped(value)

    def process_result_value(self, value: str | None, _dialect: sa.Dialect) -> str | None:
        """Return the original text."""
        return value if value is None else unescaped(value)


_ESCAPED = re.compile("[\x00\u2400\ud800-\udfff]")


def _escape(found: re.Match[str]) -> str:
    return f"\u2400{ord(found[0]):04x}"


def escaped(text: str) -> str:
    """Return an id as it is stored in the database."""
    return text if _ESCAPED.search(text) is None else _ESCAPED.sub(_escape, text)


def unescaped(text: str) -> str:
    """Return the id for a text from the database. Lone surrogates stay escaped."""
    if "\u2400" not in text:
        return text
    return re.sub("\u2400(0000|2400)", lambda found: chr(int(found[1], 16)), text)


Json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
"""JSON. Python's None is SQL's NULL."""


def _one_of(column: str, values: list[str]) -> str:
    return f"{column} IN (" + ", ".join(f"'{value}'" for value in values) + ")"


_STATES = [state.value for state in WorkItemState]
_TERMINAL = [state.value for state in WorkItemState if state.is_terminal]
_OPEN = [state.value for state in WorkItemState if not state.is_terminal]

metadata = sa.MetaData()

work_items = sa.Table(
    "work_items",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("task_id", Id, nullable=False),
    sa.Column("run_id", Id, nullable=False),
    sa.Column("task_type", sa.Text, nullable=False),
    sa.Column("lineage", Id, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("payload", Json),
    sa.Column("result", Json),
    sa.Column("failure_kind", sa.Text),
    sa.Column("failure_message", sa.Text),
    sa.Column("failure", Json),
    sa.Column("delay_seconds", sa.Double, nullable=False),
    sa.Column("delay_reason", sa.Text, nullable=False),
    sa.Column("not_before", UtcTime, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("started_at", UtcTime),
    sa.Column("ended_at", UtcTime),
    sa.Column("worker", sa.Text),
    sa.Column("version", sa.Integer, nullable=False, server_default="0"),
    sa.UniqueConstraint("run_id", "lineage", "attempt", name="work_items_attempt_once"),
    sa.CheckConstraint(_one_of("state", _STATES), name="work_items_state_known"),
    sa.CheckConstraint(
        _one_of("delay_reason", [reason.value for reason in DelayReason]),
        name="work_items_delay_reason_known",
    ),
    sa.CheckConstraint("attempt >= 0", name="work_items_attempt_counts_from_0"),
    sa.CheckConstraint("delay_seconds >= 0", name="work_items_delay_not_negative"),
    sa.CheckConstraint(
        f"({_one_of('state', _TERMINAL)}) = (ended_at IS NOT NULL)", name="work_items_terminal_means_ended"
    ),
    sa.CheckConstraint(
        "state IN ('initialized', 'canceled') OR started_at IS NOT NULL", name="work_items_started_has_time"
    ),
    sa.CheckConstraint("(state = 'failed') = (failure_kind IS NOT NULL)", name="work_items_failed_has_kind"),
)
"""One row for each attempt."""

is_open = sa.text(_one_of("state", _OPEN))
"""True for open work items, in the words of their index (SQLite compares the text)."""

is_failed = sa.text("state = 'failed'")
"""True for failed work items, in the words of their index."""

is_canceled = sa.text("state = 'canceled'")
"""True for canceled work items, in the words of their index."""

sa.Index("work_items_newest", work_items.c.created_at, work_items.c.attempt, work_items.c.id)
sa.Index(
    "work_items_of_task", work_items.c.task_id, work_items.c.created_at, work_items.c.attempt, work_items.c.id
)
for _name, _which in (("open", is_open), ("failed", is_failed), ("canceled", is_canceled)):
    sa.Index(
        f"work_items_{_name}",
        work_items.c.created_at,
        work_items.c.attempt,
        work_items.c.id,
        sqlite_where=_which,
        postgresql_where=_which,
    )
sa.Index(
    "work_items_failed_so",
    work_items.c.failure_kind,
    work_items.c.created_at,
    work_items.c.attempt,
    work_items.c.id,
    sqlite_where=is_failed,
    postgresql_where=is_failed,
)

work_item_transitions = sa.Table(
    "work_item_transitions",
    metadata,
    sa.Column("work_item_id", Id, sa.ForeignKey("work_items.id"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("previous_state", sa.Text),
    sa.Column("next_state", sa.Text, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("as_of", UtcTime),
    sa.CheckConstraint("sequence >= 0", name="work_item_transitions_sequence_counts_from_0"),
    sa.CheckConstraint(_one_of("previous_state", _OPEN), name="work_item_transitions_previous_state_open"),
    sa.CheckConstraint(_one_of("next_state", _STATES), name="work_item_transitions_next_state_known"),
    sa.CheckConstraint(
        "(sequence = 0) = (previous_state IS NULL)", name="work_item_transitions_first_has_no_previous"
    ),
    sqlite_with_rowid=False,
)
"""Every change of a work item's state. Append-only."""

work_item_supersessions = sa.Table(
    "work_item_supersessions",
    metadata,
    sa.Column("work_item_id", Id, sa.ForeignKey("work_items.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("from_sequence", sa.Integer, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("held", Json, nullable=False),
    sa.Column("decided", Json, nullable=False),
    sa.CheckConstraint("number >= 1", name="work_item_supersessions_number_counts_from_1"),
)
"""Entries of lost workflow tasks, with the entries that replaced them. Append-only."""

ai_jobs = sa.Table(
    AI_JOBS,
    metadata,
    sa.Column("work_item_id", Id, sa.ForeignKey("work_items.id"), primary_key=True),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("model", sa.Text),
    sa.Column("max_retries", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("last_error", sa.Text),
    sa.Column("finish_reason", sa.Text),
    sa.Column("provider_request_id", sa.Text),
    sa.Column("input_tokens", sa.BigInteger),
    sa.Column("output_tokens", sa.BigInteger),
    sa.Column("cost_usd", sa.Double),
    sa.Column("latency_seconds", sa.Double),
    sa.Column("cached_tokens", sa.BigInteger),
    sa.Column("reasoning_tokens", sa.BigInteger),
    sa.CheckConstraint(
        _one_of("status", ["pending", *(state for state in _STATES if state != "initialized")]),
        name="ai_jobs_status_known",
    ),
    sa.CheckConstraint("attempt >= 0 AND attempt <= max_retries", name="ai_jobs_attempt_within_retries"),
)
"""The domain record of AI work items."""

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("defaults", Json, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("filled_at", UtcTime),
    sa.Column("ended_at", UtcTime),
    sa.CheckConstraint(_one_of("state", [state.value for state in BatchState]), name="batches_state_known"),
)
"""One row for each batch of prompts."""

is_pending = sa.text("state = 'pending'")
"""True for pending rows of batches, in the words of their index."""

batch_rows = sa.Table(
    "batch_rows",
    metadata,
    sa.Column("batch_id", Id, sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("row_id", Id, nullable=False),
    sa.Column("request", Json, nullable=False),
    sa.Column("request_bytes", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("number", sa.Integer),
    sa.Column("ended_at", UtcTime),
    sa.Column("work_item_id", Id),
    sa.Column("attempts", sa.Integer),
    sa.Column("input_tokens", sa.BigInteger),
    sa.Column("output_tokens", sa.BigInteger),
    sa.Column("cost_usd", sa.Double),
    sa.Column("failure", Json),
    sa.UniqueConstraint("batch_id", "row_id", name="batch_rows_id_once"),
    sa.CheckConstraint(_one_of("state", [state.value for state in RowState]), name="batch_rows_state_known"),
    sa.CheckConstraint("(state = 'pending') = (ended_at IS NULL)", name="batch_rows_ended_has_time"),
    sa.CheckConstraint(
        "state <> 'completed' OR work_item_id IS NOT NULL", name="batch_rows_completed_has_work_item"
    ),
)
"""One row for each prompt of a batch. The answers are in `ai_jobs`."""

sa.Index(
    "batch_rows_pending",
    batch_rows.c.batch_id,
    batch_rows.c.position,
    sqlite_where=is_pending,
    postgresql_where=is_pending,
)
sa.Index("batch_rows_ended", batch_rows.c.batch_id, batch_rows.c.number)

schema_compatibility = sa.Table(
    "tasquencer_schema_compatibility",
    metadata,
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("oldest_compatible", sa.Text, nullable=False),
)
"""For each migration, the oldest schema whose releases work on its result. See `tasquencer.sql.migrate`.

The upgrade maintains it, like `VERSION_TABLE`. It is not made by a migration.
"""
