"""Batches and their rows."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
oldest_compatible = "0001"

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_TIME = sa.DateTime(timezone=True)
_PENDING = "state = 'pending'"


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("defaults", _JSON, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("filled_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.CheckConstraint(
            "state IN ('started', 'completed', 'failed', 'canceled')", name="batches_state_known"
        ),
    )
    op.create_table(
        "batch_rows",
        sa.Column("batch_id", sa.Text, sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("row_id", sa.Text, nullable=False),
        sa.Column("request", _JSON, nullable=False),
        sa.Column("request_bytes", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("number", sa.Integer),
        sa.Column("ended_at", _TIME),
        sa.Column("work_item_id", sa.Text),
        sa.Column("attempts", sa.Integer),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("cost_usd", sa.Double),
        sa.Column("failure", _JSON),
        sa.UniqueConstraint("batch_id", "row_id", name="batch_rows_id_once"),
        sa.CheckConstraint(
            "state IN ('pending', 'completed', 'failed', 'canceled')", name="batch_rows_state_known"
        ),
        sa.CheckConstraint("(state = 'pending') = (ended_at IS NULL)", name="batch_rows_ended_has_time"),
        sa.CheckConstraint(
            "state <> 'completed' OR work_item_id IS NOT NULL", name="batch_rows_completed_has_work_item"
        ),
    )
    op.create_index(
        "batch_rows_pending",
        "batch_rows",
        ["batch_id", "position"],
        sqlite_where=sa.text(_PENDING),
        postgresql_where=sa.text(_PENDING),
    )
    op.create_index("batch_rows_ended", "batch_rows", ["batch_id", "number"])
