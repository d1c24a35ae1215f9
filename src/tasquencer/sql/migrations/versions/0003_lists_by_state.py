"""Indexes for the lists of failed and of canceled work items, in their order."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
oldest_compatible = "0001"

_INDEXES = {
    "work_items_failed": (["created_at", "attempt", "id"], "state = 'failed'"),
    "work_items_failed_so": (["failure_kind", "created_at", "attempt", "id"], "state = 'failed'"),
    "work_items_canceled": (["created_at", "attempt", "id"], "state = 'canceled'"),
}


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        with op.get_context().autocommit_block():
            _change()
    else:
        _change()


def _change() -> None:
    for name, (columns, state) in _INDEXES.items():
        op.drop_index(name, if_exists=True, postgresql_concurrently=True)
        op.create_index(
            name,
            "work_items",
            columns,
            sqlite_where=sa.text(state),
            postgresql_where=sa.text(state),
            postgresql_concurrently=True,
        )
    op.drop_index("work_items_failed_by_kind", if_exists=True, postgresql_concurrently=True)
