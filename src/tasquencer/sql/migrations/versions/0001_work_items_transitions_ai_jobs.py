"""Work items, their transitions and AI jobs, and the triggers that make them immutable after their end."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_TIME = sa.DateTime(timezone=True)
_OPEN = "state IN ('initialized', 'started')"
_FAILED = "state = 'failed'"


def upgrade() -> None:
    op.create_table(
        "work_items",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("task_id", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("task_type", sa.Text, nullable=False),
        sa.Column("lineage", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("payload", _JSON),
        sa.Column("result", _JSON),
        sa.Column("failure_kind", sa.Text),
        sa.Column("failure_message", sa.Text),
        sa.Column("failure", _JSON),
        sa.Column("delay_seconds", sa.Double, nullable=False),
        sa.Column("delay_reason", sa.Text, nullable=False),
        sa.Column("not_before", _TIME, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.Column("worker", sa.Text),
        sa.UniqueConstraint("run_id", "lineage", "attempt", name="work_items_attempt_once"),
        sa.CheckConstraint(
            "state IN ('initialized', 'started', 'completed', 'failed', 'canceled')",
            name="work_items_state_known",
        ),
        sa.CheckConstraint(
            "delay_reason IN ('first_try', 'backoff', 'retry_after', 'operator')",
            name="work_items_delay_reason_known",
        ),
        sa.CheckConstraint("attempt >= 0", name="work_items_attempt_counts_from_0"),
        sa.CheckConstraint("delay_seconds >= 0", name="work_items_delay_not_negative"),
        sa.CheckConstraint(
            "(state IN ('completed', 'failed', 'canceled')) = (ended_at IS NOT NULL)",
            name="work_items_terminal_means_ended",
        ),
        sa.CheckConstraint(
            "state IN ('initialized', 'canceled') OR started_at IS NOT NULL",
            name="work_items_started_has_time",
        ),
        sa.CheckConstraint(
            "(state = 'failed') = (failure_kind IS NOT NULL)", name="work_items_failed_has_kind"
        ),
    )
    op.create_index("work_items_newest", "work_items", ["created_at", "attempt", "id"])
    op.create_index("work_items_of_task", "work_items", ["task_id", "created_at", "attempt", "id"])
    op.create_index(
        "work_items_failed_by_kind",
        "work_items",
        ["failure_kind", "ended_at"],
        sqlite_where=sa.text(_FAILED),
        postgresql_where=sa.text(_FAILED),
    )
    op.create_index(
        "work_items_open",
        "work_items",
        ["created_at", "attempt", "id"],
        sqlite_where=sa.text(_OPEN),
        postgresql_where=sa.text(_OPEN),
    )
    op.create_table(
        "work_item_transitions",
        sa.Column("work_item_id", sa.Text, sa.ForeignKey("work_items.id"), primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("previous_state", sa.Text),
        sa.Column("next_state", sa.Text, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.CheckConstraint("sequence >= 0", name="work_item_transitions_sequence_counts_from_0"),
        sa.CheckConstraint(
            "previous_state IN ('initialized', 'started')", name="work_item_transitions_previous_state_open"
        ),
        sa.CheckConstraint(
            "next_state IN ('initialized', 'started', 'completed', 'failed', 'canceled')",
            name="work_item_transitions_next_state_known",
        ),
        sa.CheckConstraint(
            "(sequence = 0) = (previous_state IS NULL)", name="work_item_transitions_first_has_no_previous"
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ai_jobs",
        sa.Column("work_item_id", sa.Text, sa.ForeignKey("work_items.id"), primary_key=True),
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
        sa.CheckConstraint(
            "status IN ('pending', 'started', 'completed', 'failed', 'canceled')", name="ai_jobs_status_known"
        ),
        sa.CheckConstraint("attempt >= 0 AND attempt <= max_retries", name="ai_jobs_attempt_within_retries"),
    )
    guard = _guard_on_postgresql if op.get_bind().dialect.name == "postgresql" else _guard_on_sqlite
    ended = "IN ('completed', 'failed', 'canceled')"
    guard(
        "work_items",
        "OLD.state " + ended,
        "a work item that has ended is immutable",
        "id",
        "run_id, lineage, attempt",
    )
    guard("work_item_transitions", None, "transitions are immutable", "work_item_id, sequence")
    guard("ai_jobs", "OLD.status " + ended, "an AI job that has ended is immutable", "work_item_id")


def _guard_on_postgresql(table: str, protected: str | None, message: str, *_keys: str) -> None:
    """Refuse UPDATE and DELETE of protected rows (None: of any), and TRUNCATE."""
    op.execute(
        f"CREATE FUNCTION refuse_change_of_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ "
        f"BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = 'restrict_violation'; END $$"
    )
    condition = f"WHEN ({protected}) " if protected else ""
    op.execute(
        f"CREATE TRIGGER {table}_immutable BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW {condition}"
        f"EXECUTE FUNCTION refuse_change_of_{table}()"
    )
    op.execute(
        f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT "
        f"EXECUTE FUNCTION refuse_change_of_{table}()"
    )


def _guard_on_sqlite(table: str, protected: str | None, message: str, *keys: str) -> None:
    """Refuse UPDATE and DELETE of protected rows (None: of any).

    INSERT OR REPLACE deletes the existing row without firing triggers for DELETE. So an INSERT that would
    meet a protected row is refused too.
    """
    refuse = f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
    condition = f"WHEN {protected} " if protected else ""
    for event in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} "
            f"FOR EACH ROW {condition}{refuse}"
        )
    for number, key in enumerate(keys):
        same = " AND ".join(f"held.{column} = NEW.{column}" for column in key.split(", "))
        meets = f"{same} AND {protected.replace('OLD.', 'held.')}" if protected else same
        exists = f"EXISTS (SELECT 1 FROM {table} AS held WHERE {meets})"  # noqa: S608 - names from this file
        name = f"{table}_no_replace{number or ''}"
        op.execute(f"CREATE TRIGGER {name} BEFORE INSERT ON {table} FOR EACH ROW WHEN {exists} {refuse}")
